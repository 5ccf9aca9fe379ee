// The review desk: the queue on one side, a run on the other, and the keys that work in both. On a phone one of the two is shown.

import { element } from "../dom.js";
import { text } from "../language.js";
import { Draft } from "./review_draft.js";
import { Queue } from "./review_list.js";
import { RunView } from "./review_run.js";
import { button, dialog, empty, errorBox } from "./parts.js";

const KEYS_OFF = "glm.review.keys";
const HELP = [
  ["j", "k"],
  ["1", "5"],
  ["0"],
  ["Space"],
  ["f"],
  ["t"],
  ["n"],
  ["e"],
  ["←", "→"],
  ["Shift", "→"],
  ["Alt", "Shift", "→"],
  ["Enter"],
  ["r"],
  ["c"],
  ["/"],
  ["Esc"],
  ["?"],
];

/** Reviews that aren't saved yet, by run: they are kept when another run is shown, and when another tab is. */
const drafts = new Map();
window.addEventListener("beforeunload", (event) => [...drafts.values()].some((draft) => draft.unsaved) && event.preventDefault());

export async function show(root, context) {
  const desk = new Desk(root, context);
  await desk.begin();
  return () => desk.leave();
}

class Desk {
  constructor(root, context) {
    Object.assign(this, { root, context, api: context.api, say: context.say });
    this.view = null;
    this.opening = 0; // number of the newest run asked for
    this.queue = new Queue(context, (id, how) => this.open(id, how));
    this.pane = element("div", { class: "glm-run-pane", id: "glm-run", tabindex: "-1", role: "region", "aria-label": text("review.run.pane") });
    this.conflicts = element("div", { class: "glm-conflicts" });
    const help = button(text("review.keys"), () => this.help(), { id: "glm-keys-help", "aria-keyshortcuts": "?" });
    const head = element("div", { class: "glm-bar glm-desk-head" }, element("h1", {}, text("review.title")), this.conflicts, element("span", { class: "glm-end" }), help);
    this.node = element("div", { class: "glm-desk" }, this.queue.node, this.pane);
    root.replaceChildren(head, this.node);
    this.keys = (event) => this.key(event);
    document.addEventListener("keydown", this.keys);
  }

  async begin() {
    this.pane.replaceChildren(empty(text("review.choose")));
    const chosen = this.queue.current;
    await Promise.all([this.queue.load(), chosen ? this.open(chosen) : null]);
    if (!chosen && this.queue.page.runs.length && matchMedia("(min-width: 1000px)").matches) await this.open(this.queue.page.runs[0].id);
  }

  leave() {
    document.removeEventListener("keydown", this.keys);
    this.view?.leave();
  }

  /** Shows a run. */
  async open(id, { byMouse = true } = {}) {
    const number = (this.opening += 1);
    this.queue.choose(id);
    this.node.classList.add("glm-showing-run");
    this.view?.leave();
    this.view = null;
    this.pane.setAttribute("aria-busy", "true");
    try {
      const found = await this.api(`runs/${encodeURIComponent(id)}`);
      if (number !== this.opening) return;
      let draft = drafts.get(id);
      if (!draft?.unsaved) {
        draft = new Draft(this.api, found, () => this.changed(draft));
        drafts.set(id, draft);
      } else draft.changed = () => this.changed(draft);
      this.view = new RunView(found, draft, this.forRun());
      this.pane.replaceChildren(this.view.node);
      this.pane.scrollTop = 0;
      if (byMouse) this.rest();
    } catch (problem) {
      if (number !== this.opening) return;
      this.pane.replaceChildren(button(text("review.back"), () => this.list(), { class: "glm-button glm-only-narrow" }), errorBox(problem, () => this.open(id)));
    } finally {
      if (number === this.opening) this.pane.removeAttribute("aria-busy");
    }
  }

  forRun() {
    return {
      api: this.api,
      say: this.say,
      open: (id) => this.open(id),
      step: (count) => this.step(count),
      doneAndNext: () => this.doneAndNext(),
      list: () => this.list(),
      rest: () => this.rest(),
    };
  }

  /** Back to the list, where only one of the two is shown. */
  list() {
    this.node.classList.remove("glm-showing-run");
    this.queue.node.querySelector('[aria-current="true"]')?.focus();
  }

  /** Where the keys work and no button has them. */
  rest() {
    this.pane.focus({ preventScroll: true });
  }

  changed(draft) {
    const { rating, flagged, status, corrected, tags } = draft.value;
    this.queue.update(draft.id, { rating, flagged, reviewed: draft.review.version > 0 ? status === "done" : false, corrected: corrected !== null || draft.spans.length > 0, tags });
    if (this.view?.draft === draft) this.view.update();
    else if (draft.state === "saved") drafts.delete(draft.id);
    this.showConflicts();
  }

  /** Runs that wait for a decision while another one is shown. */
  showConflicts() {
    const waiting = [...drafts.values()].filter((draft) => ["conflict", "failed"].includes(draft.state) && draft !== this.view?.draft);
    const buttons = waiting.map((draft) => button(text("review.waits", { id: draft.id.slice(0, 8) }), () => this.open(draft.id), { kind: "danger" }));
    this.conflicts.replaceChildren(...buttons);
  }

  async step(count) {
    const next = await this.queue.neighbour(count);
    if (next) return this.open(next);
    this.say(text(count > 0 ? "review.end" : "review.beginning"));
  }

  async doneAndNext() {
    if (!this.view) return this.step(1);
    this.view.draft.set({ status: "done" });
    await this.step(1);
  }

  key(event) {
    const { target } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || event.isComposing) return;
    if (document.querySelector("dialog[open]") || localStorage.getItem(KEYS_OFF) === "off") return;
    const typing = target.matches("input:not([type=checkbox]):not([type=radio]), textarea, select, [contenteditable]");
    if (typing) {
      if (event.key === "Escape" && target.id === "glm-search") this.rest();
      return;
    }
    // Space presses a button that has the focus, but not a row of the queue: there it means what it means everywhere on the desk.
    if (event.key === " " && target.matches("button:not(.glm-row), summary, a, input")) return;
    const { view } = this;
    const digit = /^[0-5]$/.test(event.key) ? Number(event.key) : null;
    const act = {
      j: () => this.step(1),
      k: () => this.step(-1),
      " ": () => this.doneAndNext(),
      "/": () => this.queue.search.select(),
      "?": () => this.help(),
      f: view && (() => view.draft.set({ flagged: !view.draft.value.flagged })),
      t: view && (() => view.bar.tag()),
      n: view && (() => view.bar.note()),
      e: view && (() => view.edit()),
      r: view && (() => view.rewrite()),
      c: view?.places.length ? () => view.toggleColours() : null,
      Escape: () => (view?.panel ? view.panel.close() : matchMedia("(max-width: 999px)").matches ? this.list() : this.rest()),
    }[event.key];
    if (digit !== null && view) view.draft.set({ rating: digit || null });
    else if (act) act();
    else return;
    event.preventDefault();
  }

  help() {
    const rows = HELP.map((keys, at) => element("div", { class: "glm-key-row" }, element("dt", {}, ...keys.map((key) => element("kbd", {}, key))), element("dd", {}, text(`review.key.${at}`))));
    const on = element("input", { type: "checkbox", checked: localStorage.getItem(KEYS_OFF) !== "off" });
    on.addEventListener("change", () => localStorage.setItem(KEYS_OFF, on.checked ? "on" : "off"));
    const body = element("div", { class: "glm-stack" }, element("dl", { class: "glm-keys" }, ...rows), element("label", { class: "glm-check" }, on, text("review.keys.on")));
    dialog(text("review.keys"), body, { id: "glm-keys-dialog" });
  }
}

