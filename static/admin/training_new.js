// A new training: dataset, base, options with a line each, the rows as the trainer sees them, an estimate; then it is started.

import { element } from "../dom.js";
import { button, dialog, empty, errorBox, field, loading, number, select, table } from "./parts.js";

const RATES = { lora: 0.002, full: 0.0003 }; // app/training_plan.py's

/** Opens the dialog. tab: the training tab, whose `found` names datasets and versions. */
export function newTraining(tab) {
  const { t } = tab;
  const { datasets, versions, current } = tab.found;
  if (!datasets.length) return dialog(t("training.new"), empty(t("training.datasets.none")));
  const input = (id, attributes) => element("input", { id, autocomplete: "off", ...attributes });
  const fields = {
    dataset: select("glm-new-dataset", datasets.map((one) => [one.id, `${one.name} (${number(one.train)} + ${number(one.held_out)})`])),
    base: select("glm-new-base", versions.filter((one) => one.there).map((one) => [String(one.id), `${one.name} · ${one.id}`]), String(current)),
    kind: select("glm-new-kind", ["lora", "full"].map((kind) => [kind, t(`training.kind.${kind}`)]), "lora"),
    name: input("glm-new-name", { required: true, maxlength: "60", value: `${versions.find((one) => one.id === current)?.name ?? "model"}-${versions.length}` }),
    steps: input("glm-new-steps", { type: "number", min: "1" }),
    rate: input("glm-new-rate", { type: "number", min: "0", step: "any" }),
    rank: input("glm-new-rank", { type: "number", min: "1", max: "1024", value: "8" }),
    replay: input("glm-new-replay", { type: "number", min: "0", max: "90", value: "50" }),
  };
  const more = element(
    "details",
    { class: "glm-fold" },
    element("summary", {}, t("training.more")),
    element(
      "div",
      { class: "glm-form" },
      field(t("training.steps"), fields.steps, t("training.steps.help")),
      field(t("training.rate"), fields.rate, t("training.rate.help", RATES)),
      field(t("training.rank"), fields.rank, t("training.rank.help")),
      field(t("training.replay"), fields.replay, t("training.replay.help")),
    ),
  );
  const said = element("div", { class: "glm-stack", id: "glm-new-said", "aria-live": "polite" });
  const start = element("button", { type: "submit", class: "glm-primary", id: "glm-new-start" }, t("training.start"));
  const look = button(t("training.preview"), () => preview(), { drawing: "search", id: "glm-new-preview" });
  const form = element(
    "form",
    { class: "glm-form" },
    field(t("training.dataset"), fields.dataset),
    field(t("training.base.choice"), fields.base),
    field(t("training.kind"), fields.kind, t("training.kind.help")),
    field(t("training.name"), fields.name),
    more,
    element("div", { class: "glm-bar" }, look, start),
    said,
  );
  const opened = dialog(t("training.new"), form, { id: "glm-new-training", wide: true });

  const given = (node) => (node.value === "" ? null : Number(node.value));
  const body = () => ({
    dataset: fields.dataset.value,
    base: Number(fields.base.value),
    options: { kind: fields.kind.value, steps: given(fields.steps), learning_rate: given(fields.rate), rank: given(fields.rank) ?? 8, replay_share: (given(fields.replay) ?? 0) / 100 },
  });

  async function attempt(work) {
    look.disabled = start.disabled = true;
    said.replaceChildren(loading());
    try {
      await work();
    } catch (problem) {
      said.replaceChildren(errorBox(problem));
    } finally {
      look.disabled = start.disabled = false;
    }
  }

  const preview = () => attempt(async () => said.replaceChildren(...described(await tab.api("training/preview", { body: body() }), t)));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(async () => {
      await tab.api("training/runs", { body: { ...body(), name: fields.name.value } });
      opened.close();
      tab.say(t("training.started"));
      await tab.load();
    });
  });
  return opened;
}

function described({ plan, rows }, t) {
  const words = { sequences: number(rows.sequences), rows: number(rows.rows), tokens: number(rows.tokens), steps: number(plan.steps), epochs: number(plan.epochs, 1), minutes: number(Math.max(1, plan.seconds / 60)) };
  const lines = rows.shown.flatMap((row) => {
    if (!row.sequences.length) return [[element("span", { class: "glm-wrong" }, t(`training.left.${row.left_out}`)), "", "0"]];
    return row.sequences.map((one) => [quoted(one.reads), quoted(one.answers), number(one.tokens)]);
  });
  const left = rows.left_out.reduce((count, one) => count + one.rows, 0);
  return [
    element("p", { class: "glm-remark", id: "glm-new-plan" }, t("training.plan", words)),
    ...(left ? [element("p", { class: "glm-remark glm-remark-busy" }, t("training.left_out", { count: number(left) }))] : []),
    element("p", { class: "glm-detail" }, t("training.shown")),
    table(t("training.preview"), [t("training.reads"), t("training.answers"), t("training.tokens")], lines, { id: "glm-new-rows" }),
  ];
}

const quoted = (words) => element("span", { class: "glm-training-text", dir: "auto" }, words);
