// Datasets: freeze a selection (administrators), the list, the rows page by page with tombstones, the hash.

import { element } from "../dom.js";
import { badge, button, dialog, empty, errorBox, field, loading, moment, number, table } from "./parts.js";
import { lively, refused, selection, shownRow } from "./data_selection.js";

const SOURCES = ["span", "answer", "good"];

export async function showDatasets(root, context) {
  const { api, t, staff, signal, say } = context;
  const list = element("div", { class: "glm-stack", id: "glm-data-sets" }, loading());

  async function load() {
    try {
      const { datasets, next } = await api("datasets", { signal });
      list.replaceChildren(...(datasets.length ? [datasetTable(datasets)] : [empty(t("data.sets.none"))]));
      if (next) more(next);
    } catch (problem) {
      if (problem.name !== "AbortError") list.replaceChildren(errorBox(problem, load));
    }
  }

  function more(next) {
    const again = button(t("data.more"), async () => {
      again.remove();
      const page = await api(`datasets?after=${encodeURIComponent(next)}`, { signal });
      list.append(datasetTable(page.datasets));
      if (page.next) more(page.next);
    });
    list.append(again);
  }

  function datasetTable(datasets) {
    const heads = ["name", "rows", "hash", "made", "actions"].map((key) => t(`data.sets.${key}`));
    const cells = datasets.map((one) => [
      element("strong", { dir: "auto" }, `${one.name} ${one.version}`),
      element("span", { class: "glm-bar" }, t("data.sets.parts", { train: number(one.train), held_out: number(one.held_out) }), one.removed ? badge(t("data.removed", { count: number(one.removed) }), "busy") : null),
      element("code", { title: one.hash }, one.hash.slice(0, 12)),
      moment(one.created),
      element(
        "div",
        { class: "glm-bar" },
        button(t("data.rows"), () => rowsOf(one, context), { "aria-label": t("data.rows.of", { name: `${one.name} ${one.version}` }), "data-rows": `${one.name} ${one.version}` }),
        element("a", { class: "glm-button", href: `#data?view=lineage&dataset=${encodeURIComponent(one.id)}`, "aria-label": t("data.lineage.of", { name: `${one.name} ${one.version}` }) }, t("data.lineage")),
      ),
    ]);
    return table(t("data.datasets"), heads, cells);
  }

  root.replaceChildren(element("h1", {}, t("data.datasets")), element("p", { class: "glm-detail" }, t("data.sets.help")));
  if (staff.role === "admin") root.append(freezing(context, load, say));
  root.append(element("h2", {}, t("data.sets.list")), list);
  await load();
}

/** The form that freezes; done(): called when it did. */
function freezing(context, done, say) {
  const { api, t } = context;
  const name = element("input", { id: "glm-data-name", required: true, maxlength: "80", autocomplete: "off" });
  const share = element("input", { id: "glm-data-share", type: "number", min: "0", max: "50", value: "10" });
  const redact = element("input", { type: "checkbox", checked: true, id: "glm-data-set-redact" });
  const boxes = SOURCES.map((one) => element("label", { class: "glm-check" }, element("input", { type: "checkbox", name: "source", value: one, checked: one !== "good" }), element("span", {}, t(`data.source.${one}`))));
  const sources = element("fieldset", { class: "glm-boxes" }, element("legend", {}, t("data.sources")), ...boxes);
  const said = element("div", { class: "glm-stack", id: "glm-data-set-preview", "aria-live": "polite" });
  const freeze = element("button", { type: "submit", class: "glm-primary", id: "glm-data-freeze", disabled: true }, t("data.freeze"));

  const body = () => ({
    filters: chosen.body(),
    held_out_share: Number(share.value || 0) / 100,
    sources: [...sources.querySelectorAll(":checked")].map((box) => box.value),
    redact: redact.checked,
  });
  const look = lively(async (signal) => {
    freeze.disabled = true;
    try {
      const found = await api("datasets/preview", { body: body(), signal });
      freeze.disabled = !found.rows;
      said.replaceChildren(...preview(found, t));
    } catch (problem) {
      refused(problem, said);
    }
  });
  const chosen = selection(context, "datasets", look);
  const form = element(
    "form",
    { class: "glm-card glm-form", id: "glm-data-freezing" },
    element("h2", {}, t("data.freeze.title")),
    chosen.node,
    sources,
    element("label", { class: "glm-check" }, redact, element("span", {}, t("data.set.redact"))),
    field(t("data.share"), share, t("data.share.help")),
    said,
    field(t("data.name"), name, t("data.name.help")),
    element("div", { class: "glm-bar" }, freeze),
  );
  form.addEventListener("change", (event) => event.target !== name && look());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      const made = await api("datasets", { body: { ...body(), name: name.value } });
      say(t("data.frozen", { name: `${made.name} ${made.version}`, rows: number(made.rows) }));
      await done();
    } catch (problem) {
      refused(problem, said);
    }
  });
  look();
  return form;
}

/** What freezing would give: counts, what is left out and why, the first rows as the trainer reads them. */
function preview(found, t) {
  const nodes = [element("p", { id: "glm-data-set-count" }, t("data.would", { rows: number(found.rows), runs: number(found.runs), train: number(found.train), held_out: number(found.held_out) }))];
  const left = Object.entries(found.left_out);
  if (left.length) nodes.push(element("ul", { class: "glm-detail", id: "glm-data-left-out" }, ...left.map(([reason, count]) => element("li", {}, t(`data.left.${reason}`, { count: number(count) })))));
  if (found.first.length) {
    const rows = found.first.map((row, at) => shownRow(row.content, `${t("data.row", { number: at + 1 })} · ${t(`data.part.${row.part}`)}`));
    nodes.push(element("details", { class: "glm-fold" }, element("summary", {}, t("data.see", { count: number(rows.length) })), element("div", { class: "glm-stack" }, ...rows)));
  }
  return nodes;
}

/** The rows of a dataset in a dialog, a page at a time. */
function rowsOf(dataset, { api, t }) {
  const body = element("div", { class: "glm-stack", id: "glm-data-rows" });
  dialog(t("data.rows.of", { name: `${dataset.name} ${dataset.version}` }), body, { id: "glm-data-rows-dialog", wide: true });
  body.append(element("p", { class: "glm-detail" }, t("data.hash"), " ", element("code", {}, dataset.hash)));
  const draw = (row) => {
    const run = row.run ? element("a", { href: `#data?view=lineage&run=${encodeURIComponent(row.run)}`, click: () => document.getElementById("glm-data-rows-dialog").close() }, t("data.run")) : null;
    const head = element("div", { class: "glm-bar" }, element("strong", {}, number(row.index + 1)), badge(t(`data.part.${row.part}`)), run, element("code", { class: "glm-detail", title: row.hash }, row.hash.slice(0, 12)));
    const content = row.removed ? element("p", { class: "glm-detail" }, t("data.tombstone"), " ", moment(row.removed)) : shownRow(row.content, t("data.row", { number: row.index + 1 }));
    return element("div", { class: "glm-stack", "data-row": row.index }, head, content);
  };
  async function load(after) {
    try {
      const page = await api(`datasets/${dataset.id}/rows?after=${after}`);
      body.append(...page.rows.map(draw));
      if (page.next) {
        const again = button(t("data.more"), () => (again.remove(), load(page.next)), { id: "glm-data-more-rows" });
        body.append(again);
      }
    } catch (problem) {
      body.append(errorBox(problem, () => load(after)));
    }
  }
  load(-1);
}
