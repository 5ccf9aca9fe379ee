// The training tab: what serves, all model versions with their comparisons, trainings with their progress, a new training.

import { element } from "../dom.js";
import { badge, button, dialog, empty, moment, number, table } from "./parts.js";
import { PolledTab } from "./polled_tab.js";
import { comparison, curve, verdict } from "./training_figures.js";
import { newTraining } from "./training_new.js";

const POLL = 1500; // ms between two looks while something is under way
const IDLE = 5000; // and else: another administrator, or the server itself, may begin something
const COUNTED = 10_000; // answers of a version are counted up to so many
const ACTIVE = ["queued", "running", "stopping"];
const TONES = { queued: "busy", running: "busy", stopping: "busy", stopped: "", done: "good", failed: "bad" };

export async function show(root, context) {
  const tab = new Training(root, context);
  await tab.load();
  return () => tab.leave();
}

class Training extends PolledTab {
  constructor(root, context) {
    super(root, context, "training", ["said", "serving", "versions", "runs", "history"], 2 * POLL);
    this.details = new Map();
    this.opened = context.argument.get("run");
    this.start = button(this.t("training.new"), () => newTraining(this), { kind: "primary", drawing: "plus", id: "glm-training-new", disabled: true });
    root.replaceChildren(element("div", { class: "glm-bar" }, element("h1", {}, this.t("training.title")), element("span", { class: "glm-end" }), this.start), ...Object.values(this.parts));
  }

  /** Shows what is there now; comes again by itself while something is under way. */
  async load() {
    clearTimeout(this.timer);
    this.found = await this.api("training");
    const shown = this.found.runs.filter((run) => ACTIVE.includes(run.state) || run.id === this.opened);
    for (const run of shown) this.details.set(run.id, await this.api(`training/runs/${run.id}`));
    if (this.left) return;
    this.start.disabled = false;
    this.draw("serving", [this.found.current, this.found.reason, this.found.switch], () => this.serving());
    this.draw("versions", [this.found.versions, this.found.current, this.busy()], () => this.versions());
    this.draw("runs", [this.found.runs, [...this.details], this.opened], () => this.runs());
    this.draw("history", [this.found.deployments], () => this.history());
    const measuring = this.found.versions.some((one) => one.evaluation?.state === "running");
    const busy = this.busy() || measuring || this.found.runs.some((run) => ACTIVE.includes(run.state));
    this.later(busy ? POLL : IDLE);
  }

  busy() {
    return this.found.switch?.state === "loading";
  }

  version(id) {
    return this.found.versions.find((one) => one.id === id);
  }

  serving() {
    const { current, reason, switch: change } = this.found;
    const now = this.version(current);
    const nodes = [element("p", { class: "glm-remark", id: "glm-serving" }, now ? this.t("training.serving", now) : this.t("training.serving.none"))];
    if (reason) nodes.push(element("p", { class: "glm-remark glm-remark-busy" }, this.t("training.reason", { reason })));
    if (change?.state === "loading") nodes.push(element("p", { class: "glm-remark glm-remark-busy", role: "status" }, this.t(`training.switch.${change.drain ? "draining" : "loading"}`, change)));
    if (change?.state === "failed") {
      nodes.push(element("div", { class: "glm-error", role: "alert" }, element("p", {}, this.t("training.switch.failed", change)), element("p", { class: "glm-detail", lang: "en" }, change.problem.message)));
    }
    return nodes;
  }

  versions() {
    const heads = ["version", "made", "dataset", "from", "wrote", "compared", "actions"].map((key) => this.t(`training.${key}`));
    return [element("h2", {}, this.t("training.versions")), table(this.t("training.versions"), heads, this.found.versions.map((one) => this.row(one)), { id: "glm-training-versions-table" })];
  }

  row(one) {
    const name = element("span", { class: "glm-bar" }, element("strong", { dir: "auto" }, `${one.name} · ${one.id}`));
    if (one.current) name.append(badge(this.t("training.current"), "good"));
    if (one.tainted) name.append(badge(this.t("training.tainted"), "bad"));
    if (!one.there) name.append(badge(this.t("training.gone"), "bad"));
    const from = one.parent ? `${this.version(one.parent)?.name ?? "?"} · ${one.parent}` : this.t("training.base");
    return [name, moment(one.created), one.dataset ?? "–", from, `${number(one.runs)}${one.runs >= COUNTED ? "+" : ""}`, this.compared(one), this.actions(one)];
  }

  compared(one) {
    const found = one.evaluation;
    if (!found) return "–";
    if (found.state === "running") return element("span", { class: "glm-detail", role: "status" }, this.t("training.comparing"));
    if (found.state !== "done") return element("span", { class: "glm-wrong", title: found.results?.error }, this.t("training.compare.failed"));
    const open = () => dialog(this.t("training.compared"), comparison(found, this.t), { id: "glm-comparison", wide: true });
    return element("span", { class: "glm-bar" }, verdict(found, this.t), button(this.t("training.details"), open, { id: `glm-compared-${one.id}` }));
  }

  actions(one) {
    const label = (verb) => ({ "aria-label": this.t("training.serve.of", { verb, ...one }) });
    const served = this.found.deployments.some((each) => each.version === one.id) || !one.parent;
    const verb = this.t(served ? "training.serve.back" : "training.serve");
    const busy = this.busy() || !one.there;
    const bar = element("div", { class: "glm-bar" });
    if (one.parent) {
      const compare = () => this.act(() => this.api(`training/versions/${one.id}/compare`, { method: "POST" }), this.t("training.compare.begun"));
      bar.append(
        button(this.t(one.evaluation ? "training.compare.again" : "training.compare"), compare, {
          id: `glm-compare-${one.id}`,
          disabled: busy || one.evaluation?.state === "running",
          "aria-label": this.t("training.compare.of", one),
        }),
      );
    }
    if (!one.current) bar.append(button(verb, () => this.serve(one, verb, served), { kind: "primary", id: `glm-serve-${one.id}`, disabled: busy, ...label(verb) }));
    return bar;
  }

  /** Asks, with all that speaks against it, then puts a version into service. */
  async serve(one, verb, served) {
    const found = one.evaluation?.state === "done" ? one.evaluation : null;
    const drain = element("input", { type: "checkbox", id: "glm-serve-drain" });
    const body = element("div", { class: "glm-stack" }, element("p", {}, this.t("training.serve.help", one)));
    const warn = (key) => body.append(element("p", { class: "glm-remark glm-remark-busy" }, this.t(key)));
    if (found) body.append(comparison(found, this.t));
    else if (!served) warn("training.serve.unchecked");
    if (found && ["worse", "mixed"].includes(found.results.verdict.overall)) warn("training.serve.worse");
    if (one.tainted) warn("training.serve.tainted");
    body.append(element("label", { class: "glm-check" }, drain, element("span", {}, this.t("training.serve.drain"))));
    const go = async () => {
      opened.close();
      await this.act(() => this.api(`training/versions/${one.id}/deploy`, { body: { drain: drain.checked, unchecked: !found } }));
    };
    body.append(element("div", { class: "glm-bar" }, button(verb, go, { kind: "primary", id: "glm-confirm" }), button(this.t("shell.cancel"), () => opened.close())));
    const opened = dialog(this.t("training.serve.of", { verb, ...one }), body, { id: "glm-serve-dialog", wide: Boolean(found) });
  }

  runs() {
    const head = element("h2", {}, this.t("training.runs"));
    if (!this.found.runs.length) return [head, empty(this.t(this.found.datasets.length ? "training.runs.none" : "training.datasets.none"))];
    return [head, ...this.found.runs.map((run) => this.card(run))];
  }

  card(run) {
    const open = ACTIVE.includes(run.state) || run.id === this.opened;
    const bar = element("div", { class: "glm-bar" }, element("h3", { dir: "auto" }, run.name), badge(this.t(`training.state.${run.state}`), TONES[run.state]), element("span", { class: "glm-detail" }, moment(run.created)));
    bar.append(element("span", { class: "glm-end" }), ...this.buttons(run));
    const what = this.t("training.of", { kind: this.t(`training.kind.${run.kind}`), dataset: run.dataset, base: run.base });
    const card = element("article", { class: "glm-card", "data-run": run.id, "data-state": run.state }, bar, element("p", { class: "glm-detail" }, what));
    if (run.error) card.append(element("p", { class: "glm-wrong" }, run.error));
    if (run.result) card.append(element("p", {}, this.t("training.result", { id: run.result })));
    if (ACTIVE.includes(run.state)) card.append(this.progress(run.progress, run));
    const detail = this.details.get(run.id);
    if (open && detail) {
      if (detail.curve.length > 1) card.append(curve(detail.curve, run.plan.steps, this.t));
      if (detail.log.length) card.append(element("details", { class: "glm-fold", open: run.state === "failed" }, element("summary", {}, this.t("training.log")), element("pre", { class: "glm-training-log", role: "log", tabindex: "0", "aria-label": this.t("training.log") }, detail.log.join("\n"))));
    }
    return card;
  }

  progress(found, run) {
    if (!found) return element("p", { role: "status" }, this.t("training.progress.none"));
    const words = { step: number(found.step), steps: number(found.steps), loss: number(found.loss, 3), rate: number(found.tokens_per_second), minutes: number(found.seconds_left / 60, 1) };
    return element("div", { class: "glm-stack" }, element("progress", { max: found.steps, value: found.step, "aria-label": run.name }), element("p", {}, this.t("training.progress", words)));
  }

  buttons(run) {
    const post = (verb) => () => this.act(() => this.api(`training/runs/${run.id}/${verb}`, { method: "POST" }));
    const made = [];
    if (run.state === "running") made.push(button(this.t("training.stop"), post("stop"), { id: `glm-stop-${run.id}`, title: this.t("training.stop.help") }));
    if (run.state === "stopping") made.push(button(this.t("training.stop.now"), post("stop"), { kind: "danger", id: `glm-stop-${run.id}`, title: this.t("training.stop.now.help") }));
    if (["stopped", "failed"].includes(run.state)) made.push(button(this.t("training.resume"), post("resume"), { kind: "primary", id: `glm-resume-${run.id}` }));
    if (!ACTIVE.includes(run.state)) {
      const toggle = async () => {
        this.opened = this.opened === run.id ? null : run.id;
        this.context.remember(this.opened ? { run: this.opened } : {});
        await this.act(async () => {});
      };
      made.push(button(this.t("training.details"), toggle, { id: `glm-details-${run.id}`, "aria-expanded": String(this.opened === run.id) }));
    }
    return made;
  }

  history() {
    if (!this.found.deployments.length) return [];
    const rows = this.found.deployments.map((one) => [`${one.name} · ${one.version}`, moment(one.since), one.until ? moment(one.until) : this.t("training.current"), one.by ?? "–"]);
    return [element("h2", {}, this.t("training.history")), table(this.t("training.history"), ["version", "since", "until", "by"].map((key) => this.t(`training.${key}`)), rows)];
  }
}
