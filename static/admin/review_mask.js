// Correcting by re-masking: the panel of one span of the output. The span is a blank; the model offers fills given what stands
// left and right, each with its probability; one is taken, or own words are typed.

import { element } from "../dom.js";
import { text } from "../language.js";
import { characters, percent } from "./review_output.js";
import { button, errorBox, loading } from "./parts.js";

const AROUND = 60; // characters shown on each side of the blank
const WORDS = 20000; // characters of own words
const MASK = /\[MASK\]|\[sMASK\]|\[gMASK\]/;

export class MaskPanel {
  /** draft: of the run. place: {start, end} in characters. stored: the span if it is corrected already, or null. closed(): called
   *  when the panel closes itself. */
  constructor(api, draft, place, stored, closed) {
    Object.assign(this, { api, draft, place, stored, closed });
    this.asking = new AbortController();
    this.offered = null; // what the model offered
    const words = characters(draft.output);
    this.rejected = words.slice(place.start, place.end).join("");
    const side = (part) => element("span", { class: "glm-mask-side" }, part);
    const [left, right] = [words.slice(Math.max(0, place.start - AROUND), place.start), words.slice(place.end, place.end + AROUND)];
    this.context = element(
      "p",
      { class: "glm-mask-context", dir: "auto" },
      side(`${place.start > AROUND ? "… " : ""}${left.join("")}`),
      element("del", {}, this.rejected),
      element("span", { class: "glm-mask-blank" }, text("review.blank")),
      side(`${right.join("")}${words.length > place.end + AROUND ? " …" : ""}`),
    );
    this.list = element("div", { class: "glm-mask-fills", role: "group", "aria-label": text("review.fills") }, loading());
    this.said = element("div", { role: "alert", class: "glm-said" });
    this.node = element(
      "section",
      { class: "glm-mask", id: "glm-mask", "aria-label": text("review.mask.title"), tabindex: "-1", keydown: (event) => this.key(event) },
      this.head(),
      this.context,
      this.list,
      this.own(),
      this.said,
    );
    this.ask();
  }

  head() {
    const bar = element("div", { class: "glm-bar" }, element("h3", {}, text("review.mask.title")), element("span", { class: "glm-end" }));
    if (this.stored) bar.append(button(text("review.span.undo"), () => this.undo(), { drawing: "undo", id: "glm-mask-undo" }));
    bar.append(button(text("shell.close"), () => this.close(), { kind: "quiet", drawing: "close" }));
    return bar;
  }

  own() {
    this.input = element("textarea", { id: "glm-mask-own", rows: "1", maxlength: WORDS, dir: "auto", spellcheck: "true" });
    this.input.value = this.stored?.chosen ?? "";
    this.input.addEventListener("input", () => this.fit());
    const use = element("button", { type: "submit", class: "glm-primary", id: "glm-mask-use" }, text("review.own.use"));
    const remove = button(text("review.own.remove"), () => this.take("", "typed", null), { id: "glm-mask-remove", title: text("review.own.remove.help") });
    const label = element("label", { for: "glm-mask-own" }, text("review.own"));
    const form = element("form", { class: "glm-mask-own" }, label, this.input, use, this.rejected ? remove : null);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.input.value) this.take(this.input.value, "typed", null);
      else this.input.focus();
    });
    return form;
  }

  fit() {
    this.input.style.height = "auto";
    this.input.style.height = `${Math.min(this.input.scrollHeight + 2, 240)}px`;
  }

  /** Asks the model; own words can be typed meanwhile. */
  async ask() {
    this.list.replaceChildren(loading());
    const mine = this.asking;
    try {
      const body = { start: this.place.start, end: this.place.end };
      const found = await this.api(`runs/${this.draft.id}/fills`, { body, signal: mine.signal });
      if (mine.signal.aborted) return;
      this.offered = found;
      this.draw();
    } catch (problem) {
      if (problem.name === "AbortError") return;
      this.list.replaceChildren(errorBox(problem, () => this.ask()));
    }
  }

  draw() {
    const { fills, text: context, rejected_logprob: before } = this.offered;
    const [left, right = ""] = context.split(MASK);
    this.node.dataset.mask = this.offered.mask;
    const rows = fills.map((fill, at) => {
      const bar = element("span", { class: "glm-mask-bar", "aria-hidden": "true" });
      bar.style.setProperty("--share", fill.share ?? fill.probability);
      const same = fill.text.trim() === this.rejected.trim();
      const take = () => this.take(this.spaced(fill.text, left, right), "model", fill.logprob);
      const words = element("span", { class: "glm-mask-words", dir: "auto" }, fill.text.trim() || text("review.nothing"));
      const chance = element("span", { class: "glm-detail" }, same ? text("review.fill.same") : "", same ? " · " : "", percent(fill.probability));
      return element("button", { type: "button", class: "glm-mask-fill", id: `glm-mask-fill-${at}`, click: take, "aria-keyshortcuts": String(at + 1) }, element("kbd", { "aria-hidden": "true" }, String(at + 1)), words, chance, bar);
    });
    const help = element("p", { class: "glm-detail" }, text("review.fills.help"));
    if (before !== null) help.append(" ", text("review.fills.before", { percent: percent(Math.exp(before)) }));
    const again = button(text("review.fills.again"), () => this.ask(), { drawing: "again" });
    this.list.replaceChildren(...(rows.length ? rows : [element("p", {}, text("review.fills.none"))]), element("div", { class: "glm-bar" }, help, again));
    if (this.node.contains(document.activeElement) && document.activeElement !== this.input) this.list.querySelector("button")?.focus({ preventScroll: true });
    this.node.scrollIntoView({ block: "nearest" });
  }

  /** A fill as it goes into the output: with the spaces that the span had at its ends, where its neighbours don't have them. */
  spaced(fill, left, right) {
    const words = fill.trim();
    if (!words) return "";
    const [before, after] = [this.rejected.match(/^\s*/)[0], this.rejected.match(/\s*$/)[0]];
    const own = fill.startsWith(" ") && left && !/\s$/.test(left) && !before ? " " : before;
    return `${own}${words}${this.rejected.trim() ? after : fill.endsWith(" ") && right && !/^\s/.test(right) ? " " : ""}`;
  }

  async take(chosen, source, logprob, replace = false) {
    const alternatives = this.offered?.fills.map((fill) => ({ text: fill.text, logprob: fill.logprob })) ?? [];
    const span = { ...this.place, chosen, source };
    if (alternatives.length) span.alternatives = alternatives;
    if (logprob !== null) span.logprob = logprob;
    if (replace) span.replace = true;
    await this.doing(() => this.draft.correct(span), () => this.take(chosen, source, logprob, true));
  }

  undo() {
    return this.doing(() => this.draft.undo(this.stored.id));
  }

  async doing(work, instead = null) {
    this.said.replaceChildren();
    this.node.inert = true;
    try {
      await work();
      this.close();
    } catch (problem) {
      this.node.inert = false;
      if (problem.field === "corrected" && instead) {
        const yes = button(text("review.rewrite.replace.do"), instead, { kind: "danger", id: "glm-mask-replace" });
        this.said.replaceChildren(element("div", { class: "glm-remark glm-remark-busy glm-stack" }, element("p", {}, text("review.rewrite.replace")), element("div", { class: "glm-bar" }, yes)));
        yes.focus();
      } else if (problem.field === "start") this.said.replaceChildren(element("p", { class: "glm-wrong" }, text("review.overlap")));
      else this.said.replaceChildren(errorBox(problem));
    }
  }

  key(event) {
    const fills = [...this.list.querySelectorAll(".glm-mask-fill")];
    const typing = event.target === this.input;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") this.close();
    else if (typing && event.key === "Enter" && !event.shiftKey && !event.isComposing) this.node.querySelector("form").requestSubmit();
    else if (!typing && step && fills.length) fills[(fills.indexOf(document.activeElement) + step + fills.length) % fills.length].focus();
    else if (!typing && fills[Number(event.key) - 1] && !event.ctrlKey && !event.metaKey && !event.altKey) fills[Number(event.key) - 1].click();
    else if (!typing && event.key === "t" && !event.ctrlKey && !event.metaKey && !event.altKey) this.input.focus();
    else {
      // The desk's own keys don't work in here; what a button or a field does with a key stays.
      event.stopPropagation();
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  close() {
    this.asking.abort();
    this.closed();
  }
}
