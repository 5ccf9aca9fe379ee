// The filled text below the editor: its blanks as words that stream in, are locked, or open their card, and the line of buttons
// under it. It only shows; what happens then is the pane's business (canvas.js).

import { button, copyButton, errorBox, facts, thumbs, waitingText } from "./answer.js";
import { element, icon } from "./dom.js";
import { plain, sequence } from "./fills.js";
import { bind, text } from "./language.js";

const COLOURS = 6; // classes glm-fill-0 ... in style.css

export class Result {
  /** canvas: the pane, with {state, running, history, card} and what its buttons do. */
  constructor(canvas) {
    this.canvas = canvas;
    this.wanted = null; // the id of what had the focus and is not there at the moment
    this.body = element("div", { class: "glm-result-body" });
    this.node = element("div", { class: "glm-result", id: "glm-blanks-result", tabindex: "-1", role: "group" }, this.body);
    bind(this.node, "blanks.result", {}, "label");
    this.node.addEventListener("keydown", (event) => this.key(event));
  }

  draw() {
    const { filled } = this.canvas.state;
    this.node.hidden = !filled;
    if (!filled) return this.body.replaceChildren();
    const active = document.activeElement;
    if (this.body.contains(active)) this.wanted = active.id || this.node.id;
    else if (active !== this.node) this.wanted = null; // the visitor went elsewhere
    this.body.replaceChildren(...this.parts(filled));
    this.node.dataset.status = filled.status;
    if (this.wanted) this.restore();
  }

  /** What is drawn anew loses the focus: it goes back to where it was, and if that is not there yet, to the result. */
  restore() {
    const target = document.getElementById(this.wanted);
    target?.focus({ preventScroll: true });
    if (target && document.activeElement === target) this.wanted = null;
    else this.node.focus({ preventScroll: true });
  }

  focus(index) {
    document.getElementById(`glm-fill-${index}`)?.focus({ preventScroll: true });
  }

  parts(filled) {
    const running = filled.status === "running";
    const body = element("div", { class: "glm-filled", id: "glm-blanks-filled", dir: "auto" }, ...this.pieces(filled));
    body.setAttribute("aria-busy", String(running));
    const nodes = [bind(element("h3", { class: "glm-result-title" }), "blanks.result"), body];
    if (running && !filled.map.some((at) => filled.blanks[at]?.begun)) {
      nodes.push(element("p", { class: "glm-waiting" }, waitingText(filled)));
    }
    if (filled.status === "error") nodes.push(errorBox(filled, () => this.canvas.retry()));
    if (!running) nodes.push(this.actions(filled));
    if (!running && filled.blanks.some((blank) => blank.begun)) {
      const hint = bind(element("span"), "blanks.result.hint");
      const keys = bind(element("span", { class: "glm-hint-keys" }), "blanks.result.keys");
      nodes.push(element("p", { class: "glm-keys", id: "glm-result-hint" }, hint, " ", keys));
    }
    return nodes;
  }

  actions(filled) {
    const { canvas } = this;
    const bar = element("div", { class: "glm-actions" });
    const worded = (drawing, key, click, id, more = {}) => bar.append(button(drawing, key, click, { class: "glm-button", id, ...more }, true));
    const open = canvas.openBlanks();
    if (filled.blanks.some((blank) => blank.begun)) {
      bar.append(copyButton("blanks.copy", () => plain(filled), { class: "glm-button", id: "glm-blanks-copy" }, true));
      const some = open.length < filled.blanks.length;
      const refill = some ? "blanks.refill.others" : "blanks.refill";
      worded("again", refill, () => canvas.refill(open), "glm-blanks-again", { disabled: !open.length });
      if (filled.runs.length) worded("share", "share", () => canvas.share(), "glm-blanks-share");
    }
    const { canUndo, canRedo } = canvas.history;
    bar.append(button("undo", "undo", () => canvas.undo(), { id: "glm-blanks-undo", disabled: !canUndo, "aria-keyshortcuts": "Control+Z" }));
    bar.append(
      button("redo", "redo", () => canvas.redo(), { id: "glm-blanks-redo", disabled: !canRedo, "aria-keyshortcuts": "Control+Shift+Z" }),
    );
    if (filled.status !== "error" && filled.run) bar.append(...thumbs(filled, () => canvas.keep()));
    bar.append(facts(filled));
    return bar;
  }

  /** The text with its blanks as nodes: a mask that waits, words that stream in, or a button that opens a card. */
  pieces(filled) {
    const running = filled.status === "running";
    // An answer from the server's records comes without its blanks one by one; they follow.
    if (filled.result !== null && filled.blanks.some((blank) => !blank.begun)) return [filled.result];
    if (filled.status === "error" && !filled.blanks.some((blank) => blank.begun)) return [filled.source];
    return sequence(filled).map((part) => {
      if (part.index === undefined) return part.text;
      const { index, blank } = part;
      const colour = `glm-fill glm-fill-${index % COLOURS}`;
      if (!blank.begun && running) return element("span", { class: "glm-blank" }, blank.mask);
      if (!blank.done && running) return element("span", { class: `${colour} glm-growing`, id: `glm-fill-${index}` }, part.text);
      return this.opener(index, blank, blank.begun ? part.text || text("blanks.nothing") : blank.mask, colour);
    });
  }

  opener(index, blank, shown, colour) {
    const look = blank.begun ? `${colour} glm-filled-in${blank.locked ? " glm-locked" : ""}` : "glm-blank glm-filled-in";
    // A <span> in the role of a button, since a <button> can't break over lines as the words of a text do.
    const attributes = { role: "button", tabindex: "0", class: look, id: `glm-fill-${index}`, "aria-keyshortcuts": "L R" };
    const node = element("span", { ...attributes, "aria-haspopup": "dialog", "aria-expanded": String(this.canvas.card.index === index) });
    node.append(...(blank.locked ? [icon("lock")] : []), shown);
    const label = blank.locked ? "blanks.blank.locked" : "blanks.blank";
    node.setAttribute("aria-label", text(label, { number: index + 1, text: shown.trim() }));
    node.addEventListener("click", () => this.canvas.card.open(index));
    node.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const press = event.key.toLowerCase();
      if (press === "enter" || press === " ") this.canvas.card.open(index);
      else if (press === "l") this.canvas.lock(index);
      else if (press === "r") this.canvas.refill([index]);
      else return;
      event.preventDefault();
    });
    return node;
  }

  /** Undo and redo while the focus is in the result; a field for own words has its own. */
  key(event) {
    if (!(event.ctrlKey || event.metaKey) || event.altKey || event.target.localName === "input") return;
    const press = event.key.toLowerCase();
    if (press === "z" && !event.shiftKey) this.canvas.undo();
    else if ((press === "z" && event.shiftKey) || press === "y") this.canvas.redo();
    else return;
    event.preventDefault();
  }
}
