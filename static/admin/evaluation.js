// The evaluation tab: benchmarks on the model that serves: a new one, what is under way, results beside each other, the history.

import { element } from "../dom.js";
import { resultTable, values } from "./evaluation_results.js";
import { badge, button, empty, field, moment, number, table } from "./parts.js";
import { PolledTab } from "./polled_tab.js";

const POLL = 1000; // ms between two looks while something is measured
const IDLE = 5000;
const TONES = { running: "busy", stopped: "", done: "good", failed: "bad" };
const COMMANDS = "python -m engine evaluate --prepare list\npython -m engine evaluate --prepare NAME SOURCE --data FOLDER";

export async function show(root, context) {
  const tab = new Evaluation(root, context);
  await tab.load();
  return () => tab.leave();
}

class Evaluation extends PolledTab {
  constructor(root, context) {
    super(root, context, "evaluation", ["said", "new", "running", "results", "history"], IDLE);
    this.admin = context.staff.role === "admin";
    root.replaceChildren(element("h1", {}, this.t("evaluation.title")), element("p", { class: "glm-detail" }, this.t("evaluation.intro")), ...Object.values(this.parts));
  }

  /** Shows what is there now, and comes again by itself. */
  async load() {
    clearTimeout(this.timer);
    const found = await this.api("evaluations");
    if (this.left) return;
    this.found = found;
    const { evaluations, tasks, current, data, report } = found;
    const running = evaluations.filter((one) => one.state === "running");
    const ended = evaluations.filter((one) => one.state !== "running");
    if (this.admin) this.draw("new", [tasks, current, data], () => this.fresh());
    this.draw("running", running, () => this.running(running));
    this.draw("results", [ended, report], () => this.results(evaluations));
    this.draw("history", ended, () => this.history(ended));
    this.later(running.length ? POLL : IDLE);
  }

  fresh() {
    const { tasks, current, data } = this.found;
    const head = element("h2", {}, this.t("evaluation.new"));
    const how = [element("p", { class: "glm-detail" }, this.t("evaluation.prepare")), element("pre", { class: "glm-evaluation-commands", tabindex: "0", "aria-label": this.t("evaluation.prepare") }, COMMANDS)];
    if (!tasks.length) return [head, empty(this.t(data ? "evaluation.tasks.none" : "evaluation.data.none")), ...how];
    const boxes = tasks.map((task) => element("input", { type: "checkbox", value: task.file, "data-task": task.file }));
    const all = element("input", { type: "checkbox", id: "glm-evaluation-all" });
    all.addEventListener("change", () => boxes.forEach((box) => (box.checked = all.checked)));
    const label = (box, name, words) => element("label", { class: "glm-check" }, box, element("span", {}, name, words ? element("span", { class: "glm-detail", lang: "en" }, words) : ""));
    const labels = tasks.map((task, at) => label(boxes[at], task.name, task.description));
    const chosen = element("fieldset", { class: "glm-evaluation-tasks" }, element("legend", {}, this.t("evaluation.tasks")), label(all, this.t("evaluation.all")), ...labels);
    const limit = element("input", { type: "number", id: "glm-evaluation-limit", min: "1", step: "1", inputmode: "numeric" });
    const wrong = element("p", { class: "glm-wrong", role: "alert" });
    const start = () => {
      const files = boxes.filter((box) => box.checked).map((box) => box.value);
      const rows = limit.value === "" ? null : Number(limit.value);
      wrong.textContent = !files.length ? this.t("evaluation.choose") : !limit.validity.valid ? this.t("evaluation.limit.wrong") : "";
      if (wrong.textContent) return null;
      return this.act(() => this.api("evaluations", { body: { tasks: files, limit: rows } }), this.t("evaluation.started"));
    };
    const begin = button(this.t("evaluation.start"), start, { kind: "primary", id: "glm-evaluation-start", disabled: !current });
    const who = element("p", {}, current ? this.t("evaluation.measured", current) : this.t("evaluation.loading"));
    const more = element("details", { class: "glm-fold" }, element("summary", {}, this.t("evaluation.more")), ...how);
    return [head, element("div", { class: "glm-card glm-stack" }, who, chosen, field(this.t("evaluation.limit"), limit, this.t("evaluation.limit.help")), wrong, element("div", { class: "glm-bar" }, begin), more)];
  }

  running(running) {
    const head = element("h2", {}, this.t("evaluation.running"));
    if (!running.length) return [head, element("p", { class: "glm-detail" }, this.t("evaluation.running.none"))];
    return [head, ...running.map((one) => this.card(one))];
  }

  card(one) {
    const words = this.t(one.tasks.length === 1 ? "evaluation.of.one" : "evaluation.of", { tasks: number(one.tasks.length), name: one.name, id: one.version });
    const bar = element("div", { class: "glm-bar" }, element("h3", { dir: "auto" }, words), element("span", { class: "glm-detail" }, moment(one.created)), element("span", { class: "glm-end" }));
    if (one.stopping) bar.append(badge(this.t("evaluation.stopping"), "busy"));
    if (this.admin) {
      const stop = () => this.act(() => this.api(`evaluations/${one.id}/stop`, { method: "POST" }));
      bar.append(button(this.t(one.stopping ? "evaluation.stop.now" : "evaluation.stop"), stop, { id: `glm-stop-${one.id}`, title: this.t("evaluation.stop.help"), kind: one.stopping ? "danger" : "" }));
    }
    const card = element("article", { class: "glm-card glm-stack", "data-evaluation": one.id, "data-state": one.state }, bar, this.progress(one.progress));
    for (const result of one.results) card.append(values(result, this.t));
    return card;
  }

  progress(found) {
    if (!found) return element("p", { role: "status" }, this.t("evaluation.progress.none"));
    const words = [this.t("evaluation.progress", { ...found, done: number(found.done), total: number(found.total) })];
    if (found.seconds_left !== null) words.push(this.t("evaluation.left", { minutes: number(found.seconds_left / 60, 1) }));
    return element("div", { class: "glm-stack" }, element("progress", { max: Math.max(1, found.total), value: found.done, "aria-label": found.task }), element("p", {}, words.join("; ")));
  }

  results(evaluations) {
    const head = element("div", { class: "glm-bar" }, element("h2", {}, this.t("evaluation.results")), element("span", { class: "glm-end" }));
    if (this.found.report) head.append(element("a", { class: "glm-link", id: "glm-evaluation-report", href: "api/admin/evaluations/report", target: "_blank", rel: "noopener" }, this.t("evaluation.report")));
    const shown = resultTable(evaluations, this.t);
    return [head, shown ?? empty(this.t("evaluation.results.none"))];
  }

  /** For each model version, the newest first. */
  history(ended) {
    const heads = ["when", "state", "found", "by"].map((key) => this.t(`evaluation.${key}`));
    const row = (one) => [moment(one.created), badge(this.t(`evaluation.state.${one.state}`), TONES[one.state]), this.outcome(one), one.by ?? "–"];
    const nodes = [...new Set(ended.map((one) => one.version))].flatMap((id) => {
      const own = ended.filter((one) => one.version === id);
      const name = this.t("evaluation.version", { name: own[0].name, id });
      return [element("h3", { dir: "auto" }, name), table(`${this.t("evaluation.history")}: ${name}`, heads, own.map(row))];
    });
    return nodes.length ? [element("h2", {}, this.t("evaluation.history")), ...nodes] : [];
  }

  outcome(one) {
    const node = element("div", {}, ...one.results.map((result) => values(result, this.t)));
    if (one.error) node.append(element("p", { class: "glm-wrong", lang: "en" }, one.error));
    if (one.state === "stopped" && one.progress) node.append(element("p", { class: "glm-detail" }, this.t("evaluation.progress", { ...one.progress, done: number(one.progress.done), total: number(one.progress.total) })));
    if (one.log.length) node.append(element("details", { class: "glm-fold" }, element("summary", {}, this.t("evaluation.log")), element("pre", { class: "glm-evaluation-log", tabindex: "0", "aria-label": this.t("evaluation.log"), lang: "en" }, one.log.join("\n"))));
    return node;
  }
}
