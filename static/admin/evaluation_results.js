// What evaluations found: all model versions beside each other, with what others published beside them and marked as such.

import { element } from "../dom.js";
import { number, table } from "./parts.js";

const OVERALL = "overall";
const DIGITS = 2;

const rowsOf = (result, t) => (result.limit === null ? null : t("evaluation.first", { limit: number(result.limit) }));

/** One task in a line: its name and its values, those over all of it where there are several parts. */
export function values(result, t) {
  const whole = result.rows.filter((row) => row.group === OVERALL);
  const shown = whole.length ? whole : result.rows;
  const words = shown.map((row) => `${whole.length || result.rows.length === 1 ? "" : `${row.group} `}${row.metric} ${number(row.value, DIGITS)}`);
  const more = [rowsOf(result, t), result.cached ? t("evaluation.cached") : null].filter(Boolean);
  return element("span", { class: "glm-evaluation-found" }, `${result.name}: ${words.join(", ")}`, more.length ? element("span", { class: "glm-detail" }, ` (${more.join("; ")})`) : "");
}

/** A table of the newest values of each task, part and metric on each version; only what had the same rows stands in one line.
 *  evaluations: the newest first. null without results. */
export function resultTable(evaluations, t) {
  const versions = new Map();
  const lines = new Map();
  for (const one of evaluations) {
    for (const result of one.results) {
      versions.set(one.version, one.name);
      for (const row of result.rows) {
        const key = JSON.stringify([result.name, result.limit, row.group, row.metric, row.rows]);
        const line = lines.get(key) ?? { result, row, values: new Map() };
        if (!line.values.has(one.version)) line.values.set(one.version, row.value);
        lines.set(key, line);
      }
    }
  }
  if (!lines.size) return null;
  const numbers = [...versions.keys()].sort((a, b) => b - a);
  const heads = ["task", "group", "metric"].map((key) => t(`evaluation.${key}`));
  heads.push(...numbers.map((id) => t("evaluation.version", { name: versions.get(id), id })), t("evaluation.rows"), t("evaluation.published"));
  const sorted = [...lines.values()].sort((a, b) => a.result.name.localeCompare(b.result.name));
  return table(t("evaluation.results"), heads, sorted.map((line) => cells(line, numbers, t)), { id: "glm-evaluation-results-table" });
}

function cells({ result, row, values: found }, numbers, t) {
  const group = row.group === OVERALL ? t("evaluation.overall") : row.group;
  const value = (id) => (found.has(id) ? element("strong", { class: "glm-evaluation-value" }, number(found.get(id), DIGITS)) : "–");
  const limit = rowsOf(result, t);
  const rows = element("span", {}, number(row.rows), limit ? element("span", { class: "glm-detail" }, ` (${limit})`) : "");
  return [result.name, group, row.metric, ...numbers.map(value), rows, published(row.published, t)];
}

function published(found, t) {
  if (!found.length) return "–";
  const words = found.map((one) => `GLM-130B ${one.precision} ${number(one.value, DIGITS)}`).join(", ");
  const title = found.map((one) => one.origin).join("; ");
  return element("span", { title }, words, element("span", { class: "glm-detail" }, ` (${t("evaluation.published.mark")})`));
}
