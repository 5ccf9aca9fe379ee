// Figures of the training tab: the loss curve, and two versions side by side.

import { element } from "../dom.js";
import { badge, number, table } from "./parts.js";

const SPACE = "http://www.w3.org/2000/svg";
const NAMED = new Set(["held-out-corrections", "english", "chinese", "tatoeba-cloze", "questions"]);
const TONES = { better: "good", same: "", unknown: "", mixed: "busy", worse: "bad" };
const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP] = [640, 200, 44, 24, 10];

function drawn(tag, attributes, ...children) {
  const node = document.createElementNS(SPACE, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** The loss over the steps as an <svg>. points: [[step, loss], …], rising; steps: of the whole training. */
export function curve(points, steps, t) {
  const losses = points.map(([, loss]) => loss);
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const span = high - low || 1;
  const x = (step) => LEFT + ((WIDTH - LEFT - 8) * step) / steps;
  const y = (loss) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (loss - low) / span);
  const line = points.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" ");
  const words = `${t("training.curve")}: ${number(losses[0], 2)} → ${number(losses.at(-1), 2)}`;
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": words, class: "glm-training-curve" });
  svg.append(drawn("path", { d: `M${LEFT} ${TOP}V${HEIGHT - BOTTOM}H${WIDTH - 8}`, class: "glm-axis" }));
  for (const value of [low, high]) svg.append(drawn("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, number(value, 2)));
  svg.append(drawn("text", { x: LEFT, y: HEIGHT - 6 }, "0"), drawn("text", { x: WIDTH - 8, y: HEIGHT - 6, "text-anchor": "end" }, number(steps)));
  svg.append(drawn("polyline", { points: line }));
  return element("figure", {}, svg, element("figcaption", { class: "glm-detail" }, words));
}

/** What a comparison says, in a word. */
export function verdict(evaluation, t) {
  const overall = evaluation.results.verdict.overall;
  const [word] = t(`training.verdict.${overall}`).split(/[:：,，;；]/);
  return badge(word.replace(/[.。]$/, ""), TONES[overall]);
}

/** A comparison in words and as a table: of each kind of rows, the old version and the new one. */
export function comparison(evaluation, t) {
  const { models, verdict: found } = evaluation.results;
  const [fresh, old] = models;
  const rows = [];
  for (const group of ["rows", "general"]) {
    for (const name of Object.keys(fresh[group])) rows.push(...measures(name, fresh[group][name], old[group][name] ?? {}, t));
  }
  const heads = [t("training.measure"), t("training.old", { id: evaluation.other }), t("training.old", { id: evaluation.version })];
  const words = element("p", { class: "glm-bar" }, verdict(evaluation, t), element("span", {}, t(`training.verdict.${found.overall}`)));
  return element("div", { class: "glm-stack glm-comparison" }, words, table(t("training.compared"), heads, rows));
}

function measures(name, fresh, old, t) {
  const rows = NAMED.has(name) ? t(`training.rows.${name}`) : name; // a file of the host's has its own name
  const made = [];
  const asked = (one) => (one.blanks ?? 0) + (one.questions ?? 0);
  const right = (one) => `${number((one.blanks_right ?? 0) + (one.questions_right ?? 0))} / ${number(asked(one))}`;
  if (asked(fresh)) made.push([`${rows}: ${t("training.right")}`, right(old), right(fresh)]);
  for (const [field, words] of [["perplexity", "perplexity"], ["bits_per_byte", "bits"]]) {
    const cell = (one) => (one[field] === undefined ? "–" : number(one[field], 3));
    if (fresh[field] !== undefined) made.push([`${rows}: ${t(`training.${words}`)}`, cell(old), cell(fresh)]);
  }
  return made;
}
