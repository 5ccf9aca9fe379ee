// Lineage: from an output to weights, datasets, source runs and reviewers, and back from a run to what contains it.

import { element } from "../dom.js";
import { badge, button, empty, errorBox, field, moment, number, select, table } from "./parts.js";

const KINDS = ["run", "version", "dataset"];
const to = (kind, id) => `#data?view=lineage&${kind}=${encodeURIComponent(id)}`;

export async function showLineage(root, context) {
  const { t, argument, open, api, signal } = context;
  const kind = KINDS.find((one) => argument.get(one)) ?? "run";
  const id = argument.get(kind) ?? "";
  const what = select("glm-lineage-kind", KINDS.map((one) => [one, t(`data.lineage.${one}`)]), kind);
  const input = element("input", { id: "glm-lineage-id", required: true, value: id, autocomplete: "off", class: "glm-mono", maxlength: "200" });
  const form = element("form", { class: "glm-data-asked" }, field(t("data.lineage.what"), what), field(t("data.lineage.id"), input), element("button", { type: "submit", class: "glm-primary", id: "glm-lineage-show" }, t("data.lineage.show")));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    open("data", { view: "lineage", [what.value]: input.value.trim() });
  });
  const found = element("div", { class: "glm-stack", id: "glm-lineage" });
  root.replaceChildren(element("h1", {}, t("data.lineage")), element("p", { class: "glm-detail" }, t("data.lineage.help")), form, found);
  if (!id) return;
  try {
    const answer = await api(`lineage/${kind}/${encodeURIComponent(id)}`, { signal });
    found.replaceChildren(...{ run: ofRun, version: ofVersion, dataset: ofDataset }[kind](answer, context));
  } catch (problem) {
    if (problem.name !== "AbortError") found.replaceChildren(errorBox(problem));
  }
}

const tainted = (one, t) => (one.tainted ? badge(t("data.tainted"), "bad") : null);
const named = (one, t) => element("span", { class: "glm-bar" }, element("a", { href: to("version", one.id), dir: "auto" }, one.name), element("code", { class: "glm-detail", title: one.weights_hash }, one.weights_hash.slice(0, 12)), tainted(one, t));
const setLink = (one) => element("a", { href: to("dataset", one.id), dir: "auto" }, `${one.name} ${one.version}`);
const runLink = (id) => (id ? element("a", { href: to("run", id), class: "glm-mono" }, id) : "–");

/** The weights from the newest to the oldest, each with what it was trained on. */
function steps(rows, t) {
  const item = (one) => {
    const trained = one.dataset ? element("p", { class: "glm-bar glm-detail" }, t("data.trained_on"), " ", setLink(one.dataset), one.removed_rows ? badge(t("data.removed", { count: number(one.removed_rows) }), "busy") : null) : element("p", { class: "glm-detail" }, t("data.not_trained_here"));
    return element("li", {}, element("div", { class: "glm-card" }, named(one, t), trained));
  };
  return element("ol", { class: "glm-data-steps" }, ...rows.map(item));
}

function versions(rows, more, t, none) {
  if (!rows.length) return empty(t(none));
  const list = element("ul", { class: "glm-data-list" }, ...rows.map((one) => element("li", {}, named(one, t))));
  if (more) list.append(element("li", { class: "glm-detail" }, t("data.and_more", { count: number(more) })));
  return list;
}

function ofRun(found, { t }) {
  const heads = ["dataset", "rows", "reviewers", "made"].map((key) => t(`data.contains.${key}`));
  const cells = found.datasets.map((one) => [
    setLink(one),
    element("span", { class: "glm-bar" }, t("data.sets.parts", { train: number(one.train), held_out: number(one.held_out) }), one.removed ? badge(t("data.removed", { count: number(one.removed) }), "busy") : null),
    one.reviewers.join(", ") || "–",
    moment(one.created),
  ]);
  return [
    found.deleted ? element("p", { class: "glm-bar" }, badge(t("data.deleted"), "bad"), moment(found.deleted)) : element("p", {}, element("a", { href: `#review?run=${encodeURIComponent(found.run)}` }, t("data.open_run"))),
    element("h2", {}, t("data.written_by")),
    found.written_by.length ? steps(found.written_by, t) : empty(t("data.no_version")),
    element("h2", {}, t("data.contained")),
    cells.length ? table(t("data.contained"), heads, cells) : empty(t("data.contained.none")),
    element("h2", {}, t("data.learnt")),
    versions(found.models, found.more_models, t, "data.learnt.none"),
  ];
}

function ofVersion(found, { t }) {
  return [
    element("h2", {}, t("data.ancestors")),
    steps(found.steps, t),
    element("p", {}, t("data.wrote", { runs: number(found.runs) })),
    element("h2", {}, t("data.made_from")),
    versions(found.made_from_it, found.more_made, t, "data.made_from.none"),
  ];
}

function ofDataset(found, { t, api, signal }) {
  const people = found.reviewers.map(({ name, rows }) => element("li", {}, t("data.reviewer.rows", { name: name ?? "–", rows: number(rows) })));
  const written = found.written_by.map((one) => element("li", {}, named(one, t), " ", t("data.rows.count", { rows: number(one.rows) })));
  const sources = element("div", { class: "glm-stack", id: "glm-lineage-sources" });
  async function load(after) {
    try {
      const page = await api(`lineage/dataset/${found.dataset.id}/sources?after=${after}`, { signal });
      const heads = ["number", "part", "run", "reviewer", "hash"].map((key) => t(`data.source_row.${key}`));
      const cells = page.sources.map((row) => [number(row.index + 1), t(`data.part.${row.part}`), element("span", { class: "glm-bar" }, runLink(row.run), row.removed ? badge(t("data.deleted"), "bad") : null), row.reviewer ?? "–", element("code", { title: row.hash }, row.hash.slice(0, 12))]);
      sources.append(table(t("data.source_runs"), heads, cells));
      if (page.next) {
        const again = button(t("data.more"), () => (again.remove(), load(page.next)));
        sources.append(again);
      }
    } catch (problem) {
      if (problem.name !== "AbortError") sources.append(errorBox(problem, () => load(after)));
    }
  }
  load(-1);
  return [
    element("h2", { dir: "auto" }, `${found.dataset.name} ${found.dataset.version}`),
    element("p", { class: "glm-detail" }, t("data.hash"), " ", element("code", {}, found.dataset.hash)),
    element("h3", {}, t("data.trained")),
    versions(found.versions, 0, t, "data.trained.none"),
    element("h3", {}, t("data.reviewers")),
    element("ul", { class: "glm-data-list" }, ...people),
    element("h3", {}, t("data.written_by")),
    written.length ? element("ul", { class: "glm-data-list" }, ...written) : empty(t("data.no_version")),
    element("h3", {}, t("data.source_runs")),
    sources,
  ];
}
