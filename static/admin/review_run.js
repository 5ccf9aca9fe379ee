// One run on the review desk: what the visitor asked, what the model wrote with its probabilities, the corrections and their
// difference, and below it all that is known of the run.

import { element } from "../dom.js";
import { currentLanguage, text } from "../language.js";
import { difference } from "./review_diff.js";
import { MaskPanel } from "./review_mask.js";
import { characters, drawOutput, percent, select, selected, tokenPlaces, wordPlaces } from "./review_output.js";
import { conflictBox, facts, reviewBar } from "./review_parts.js";
import { badge, button, errorBox, moment } from "./parts.js";

const MASK = /(\[MASK\]|\[sMASK\]|\[gMASK\])/;
const COLOURS = "glm.review.colours";

export class RunView {
  /** found: the server's answer. draft: its Draft. desk: {api, say, step(count), doneAndNext(), open(id), conflicts()}. */
  constructor(found, draft, desk) {
    Object.assign(this, { found, draft, desk });
    this.places = tokenPlaces(found);
    this.words = wordPlaces(draft.output, currentLanguage());
    this.word = null; // what the keyboard has selected: {from, to}, indexes into words
    this.coloured = localStorage.getItem(COLOURS) !== "off";
    this.panel = null; // MaskPanel that is open
    this.rewriting = null; // the form for a whole new answer
    this.bar = reviewBar(this);
    this.said = element("div", { class: "glm-run-said" });
    this.answer = element("div", { class: "glm-stack" });
    this.changes = element("div", { class: "glm-stack", id: "glm-changes" });
    this.node = element(
      "article",
      { class: "glm-run", "data-run": found.run.id, "aria-label": text("review.run", { id: found.run.id }) },
      this.bar.node,
      this.said,
      this.head(),
      this.prompt(),
      this.answer,
      this.changes,
      facts(found, desk),
    );
    this.drawAnswer();
    this.update();
    this.selecting = () => this.showSelection();
    document.addEventListener("selectionchange", this.selecting);
  }

  leave() {
    document.removeEventListener("selectionchange", this.selecting);
    this.panel?.asking.abort();
  }

  head() {
    const { run, model_version: model } = this.found;
    const parts = [badge(text(`review.modes.${run.mode}`)), badge(text(`review.statuses.${run.status}`), { done: "good", error: "bad" }[run.status] ?? "busy")];
    const line = element("p", { class: "glm-detail" }, moment(run.created), model ? ` · ${model.name}` : "", run.client === "web" ? "" : ` · ${run.client}`);
    return element("div", { class: "glm-bar" }, ...parts, line);
  }

  /** What the visitor sent: a chat's messages, or a text with its blanks. */
  prompt() {
    const { run } = this.found;
    const box = element("section", { class: "glm-card glm-prompt", "aria-label": text("review.prompt") }, element("h2", {}, text("review.prompt")));
    if (run.prompt === null) box.append(element("p", { class: "glm-detail" }, text("review.deleted")));
    else if (Array.isArray(run.prompt)) {
      const messages = run.prompt.map((one) => element("div", { class: `glm-message glm-message-${one.role}` }, element("span", { class: "glm-detail" }, text(`review.role.${one.role}`)), element("p", { class: "glm-text", dir: "auto" }, one.content)));
      const earlier = messages.slice(0, -1);
      if (earlier.length > 2) box.append(element("details", { class: "glm-fold" }, element("summary", {}, text("review.earlier", { count: earlier.length })), ...earlier), messages.at(-1));
      else box.append(...messages);
    } else {
      const pieces = String(run.prompt).split(MASK).map((part, at) => (at % 2 ? element("mark", { class: "glm-blank" }, part) : part));
      box.append(element("p", { class: "glm-text", dir: "auto" }, ...pieces));
    }
    return box;
  }

  // The output

  drawAnswer() {
    const { run } = this.found;
    const colours = button(text("review.colours"), () => this.toggleColours(), { id: "glm-colours", "aria-pressed": String(this.coloured) });
    const keys = button(text("review.edit"), () => this.edit(), { drawing: "edit", id: "glm-edit" });
    const rewrite = button(text("review.rewrite"), () => this.rewrite(), { id: "glm-rewrite" });
    const head = element("div", { class: "glm-bar" }, element("h2", {}, text("review.output")), element("span", { class: "glm-end" }));
    if (run.output) head.append(...(this.places.length ? [colours] : []), keys, rewrite);
    else if (run.output !== null || run.prompt !== null) head.append(rewrite);
    const card = element("section", { class: "glm-card glm-answer", "aria-label": text("review.output") }, head);
    if (run.error_kind) card.append(element("p", { class: "glm-wrong" }, text("review.failed", { kind: run.error_kind }), " ", element("span", { class: "glm-detail", lang: "en" }, run.error_message ?? "")));
    if (run.output) {
      this.output = drawOutput(this.draft.output, this.coloured ? this.places : [], this.draft.spans, (span) => this.openPanel({ start: span.start, end: span.end }, span));
      this.output.setAttribute("aria-label", text("review.output.label"));
      this.output.addEventListener("keydown", (event) => this.outputKey(event));
      const start = button(text("review.correct"), () => this.correctSelected(), { kind: "primary", drawing: "edit", id: "glm-correct" });
      // A press must not take the selection away.
      start.addEventListener("pointerdown", (event) => event.preventDefault());
      this.floating = element("div", { class: "glm-floating", hidden: true }, start);
      this.spoken = element("p", { class: "glm-hidden", role: "status" });
      card.append(element("p", { class: "glm-detail" }, text("review.output.help")), element("div", { class: "glm-output-frame" }, this.output, this.floating), this.spoken);
    } else card.append(element("p", { class: "glm-detail" }, text(run.output === null && run.prompt === null ? "review.deleted" : "review.output.none")));
    this.answer.replaceChildren(card);
    if (this.panel) card.append(this.panel.node);
    if (this.rewriting) card.append(this.rewriting);
  }

  toggleColours() {
    this.coloured = !this.coloured;
    try {
      localStorage.setItem(COLOURS, this.coloured ? "on" : "off");
    } catch (problem) {
      console.warn("Can't remember the choice:", problem.message);
    }
    this.drawAnswer();
    this.answer.querySelector("#glm-colours")?.focus({ preventScroll: true });
  }

  showSelection() {
    if (!this.output) return;
    const place = this.panel ? null : selected(this.output);
    this.chosen = place;
    this.floating.hidden = !place;
    if (!place) return;
    const range = document.getSelection().getRangeAt(0);
    const [spot, frame] = [range.getBoundingClientRect(), this.floating.parentElement.getBoundingClientRect()];
    this.floating.style.setProperty("--top", `${spot.bottom - frame.top + 6}px`);
    this.floating.style.setProperty("--left", `${Math.max(0, Math.min(spot.left - frame.left, frame.width - this.floating.offsetWidth))}px`);
  }

  /** Begin to correct with the keyboard: the first word is selected, or the one that was. */
  edit() {
    if (!this.output) return;
    this.output.focus();
    if (!this.words.length) return;
    if (!selected(this.output)) this.choose({ from: 0, to: 0 });
  }

  /** Selects whole words, or with `place` characters. */
  choose(word, place = null) {
    this.word = word;
    const all = characters(this.draft.output);
    const whole = place ?? { start: this.words[Math.min(word.from, word.to)].start, end: this.words[Math.max(word.from, word.to)].end };
    select(this.output, whole);
    this.showSelection(); // the browser tells of it later, maybe after the next key
    this.spoken.textContent = text("review.selected", { words: all.slice(whole.start, whole.end).join("") });
  }

  outputKey(event) {
    if (event.target !== this.output || event.ctrlKey || event.metaKey) return;
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Enter" && this.chosen) this.correctSelected();
    else if (event.key === "Escape") {
      document.getSelection().removeAllRanges();
      this.word = null;
      this.node.parentElement.focus({ preventScroll: true });
    } else if (step && event.altKey && event.shiftKey && this.chosen) {
      const end = Math.min(characters(this.draft.output).length, Math.max(this.chosen.start + 1, this.chosen.end + step));
      this.choose(this.word, { start: this.chosen.start, end });
    } else if (step && this.words.length && !event.altKey) {
      const last = this.words.length - 1;
      const to = this.word ? Math.min(last, Math.max(0, this.word.to + step)) : 0;
      this.choose({ from: event.shiftKey && this.word ? this.word.from : to, to });
    } else if (event.key === "Home" || event.key === "End") {
      const to = event.key === "Home" ? 0 : this.words.length - 1;
      this.choose({ from: event.shiftKey && this.word ? this.word.from : to, to });
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  correctSelected() {
    const place = this.chosen;
    if (!place) return;
    const stored = this.draft.spans.find((span) => span.start === place.start && span.end === place.end) ?? null;
    const crossing = this.draft.spans.some((span) => !(span.end <= place.start || place.end <= span.start));
    if (crossing && !stored) return this.desk.say(text("review.overlap"), "error");
    this.openPanel(place, stored);
  }

  openPanel(place, stored) {
    this.panel?.asking.abort();
    this.panel?.node.remove();
    document.getSelection().removeAllRanges();
    this.panel = new MaskPanel(this.desk.api, this.draft, place, stored, () => this.closePanel());
    this.output.closest(".glm-card").append(this.panel.node);
    this.panel.node.focus();
    this.panel.node.scrollIntoView({ block: "nearest" });
    this.panel.fit();
  }

  closePanel() {
    const inside = this.panel.node.contains(document.activeElement) || document.activeElement === document.body;
    this.panel.node.remove();
    this.panel = null;
    this.showSelection();
    if (inside) this.output.focus({ preventScroll: true });
  }

  // A whole new answer

  rewrite() {
    if (this.rewriting) return this.rewriting.querySelector("textarea").focus();
    const area = element("textarea", { id: "glm-rewrite-text", rows: "8", maxlength: "200000", dir: "auto" });
    area.value = this.kept() ?? this.draft.value.corrected ?? this.draft.output;
    const keep = () => this.keep(area.value);
    area.addEventListener("input", keep);
    const close = () => {
      this.rewriting.remove();
      this.rewriting = null;
      this.answer.querySelector("#glm-rewrite")?.focus({ preventScroll: true });
    };
    const save = element("button", { type: "submit", class: "glm-primary", id: "glm-rewrite-save" }, text("review.rewrite.save"));
    const cancel = button(text("shell.cancel"), () => {
      this.keep(null);
      close();
    });
    const help = this.draft.spans.length ? element("p", { class: "glm-remark glm-remark-busy" }, text("review.rewrite.spans", { count: this.draft.spans.length })) : null;
    this.rewriting = element("form", { class: "glm-form glm-rewriting" }, element("label", { for: "glm-rewrite-text" }, text("review.rewrite.label")), area, ...(help ? [help] : []), element("div", { class: "glm-bar" }, save, cancel));
    this.rewriting.addEventListener("submit", (event) => {
      event.preventDefault();
      this.keep(null);
      this.draft.set({ corrected: area.value });
      close();
    });
    this.rewriting.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.rewriting.requestSubmit();
      else if (event.key === "Escape") close();
    });
    this.answer.firstChild.append(this.rewriting);
    area.focus();
  }

  /** What is being typed survives a reload. */
  keep(words) {
    try {
      if (words === null) sessionStorage.removeItem(`glm.rewrite.${this.draft.id}`);
      else sessionStorage.setItem(`glm.rewrite.${this.draft.id}`, words);
    } catch (problem) {
      console.warn("Can't keep what is typed:", problem.message);
    }
  }

  kept() {
    try {
      return sessionStorage.getItem(`glm.rewrite.${this.draft.id}`);
    } catch {
      return null; // storage is forbidden: there is nothing kept
    }
  }

  // What was changed

  /** The draft changed: show what it is now. */
  update() {
    const { draft } = this;
    this.bar.update();
    const spans = JSON.stringify(draft.spans);
    if (spans !== this.drawn) {
      if (this.drawn !== undefined) this.drawAnswer();
      this.drawn = spans;
    }
    this.drawChanges();
    if (draft.conflict) this.said.replaceChildren(conflictBox(draft, this.found.run));
    else if (draft.state === "failed") this.said.replaceChildren(errorBox(draft.problem, () => draft.send()));
    else if (draft.merged) {
      this.said.replaceChildren(element("p", { class: "glm-remark", role: "status" }, text("review.merged", { name: draft.merged })));
      draft.merged = null;
    } else if (!this.said.querySelector(".glm-remark")) this.said.replaceChildren();
  }

  drawChanges() {
    const { corrected } = this.draft.value;
    const { spans } = this.draft;
    const shown = JSON.stringify([corrected, this.drawn]);
    if (shown === this.shownChanges) return;
    this.shownChanges = shown;
    if (corrected === null && !spans.length) return this.changes.replaceChildren();
    const parts = difference(this.draft.output, corrected ?? this.draft.output).map(({ kind, text: words }) => (kind === "same" ? words : element(kind === "in" ? "ins" : "del", {}, words)));
    const list = element("ul", { class: "glm-span-list" }, ...spans.map((span) => this.spanRow(span)));
    const back = button(text("review.corrected.undo"), () => this.draft.set({ corrected: null }), { drawing: "undo", id: "glm-corrected-undo" });
    const head = element("div", { class: "glm-bar" }, element("h2", {}, text("review.diff")), element("span", { class: "glm-end" }), back);
    this.changes.replaceChildren(element("section", { class: "glm-card", "aria-label": text("review.diff") }, head, element("p", { class: "glm-text glm-diff", id: "glm-diff", dir: "auto" }, ...parts), spans.length ? list : element("p", { class: "glm-detail" }, text("review.rewritten"))));
  }

  spanRow(span) {
    const nothing = text("review.nothing");
    const sure = span.source === "model" && span.logprob !== null ? ` · ${percent(Math.exp(span.logprob))}` : "";
    const by = text(`review.source.${span.source}`) + sure + (span.reviewer ? ` · ${span.reviewer.name}` : "");
    const undo = () => this.draft.undo(span.id).catch((problem) => this.desk.say(problem.message, "error"));
    return element(
      "li",
      { class: "glm-bar", "data-span-row": span.id },
      element("span", { dir: "auto" }, element("del", {}, span.rejected || nothing), " → ", element("ins", {}, span.chosen || nothing)),
      element("span", { class: "glm-detail" }, by),
      element("span", { class: "glm-end" }),
      button(text("review.span.undo"), undo, { drawing: "undo", "aria-label": text("review.span.undo.of", { words: span.rejected || nothing }) }),
    );
  }
}
