// The card of one blank: its choices with their probabilities given both sides, the chosen one token by token, the visitor's own
// words beside them, its lock, and a way to fill it again. On a phone it is a sheet at the bottom of the window.

import { button } from "./answer.js";
import { compare } from "./canvas_score.js";
import { element } from "./dom.js";
import { choices, hasMask, percent, refilling, verdict } from "./fills.js";
import { errorText, text } from "./language.js";

const WORDS = 2000; // characters of own words
const HEAT = [0.05, 0.2, 0.5, 0.8]; // shares from which a token is shown one step warmer

export class Card {
  /** host: a positioned element that the card is put into. canvas: the pane, whose {state, running} it shows and whose take,
   *  lock and refill it calls. */
  constructor(host, canvas) {
    this.host = host;
    this.canvas = canvas;
    this.index = null; // of the blank that it shows; null while it is closed
    this.node = null;
    // One listener for all: the card closes on a click elsewhere.
    document.addEventListener("pointerdown", (event) => {
      if (this.node && !this.node.contains(event.target) && !this.owner()?.contains(event.target)) this.close();
    });
  }

  owner() {
    return document.getElementById(`glm-fill-${this.index}`);
  }

  /** Opens the card of a blank; of the one that is open already, closes it. */
  open(index) {
    const reopened = this.index === index;
    this.close();
    if (reopened) return;
    this.index = index;
    this.draft = this.canvas.state.filled.blanks[index].own.at(-1) ?? "";
    this.scoring = false;
    this.problem = null; // a sentence
    const number = index + 1;
    this.node = element("div", { class: "glm-card", id: "glm-card", role: "dialog", "aria-label": text("blanks.choices", { number }) });
    this.node.addEventListener("keydown", (event) => this.key(event));
    this.content = element("div", { class: "glm-card-content" });
    this.node.append(this.content, this.own());
    this.host.append(this.node);
    this.draw();
    this.place();
    (this.node.querySelector(".glm-choice[aria-pressed=true]") ?? this.node.querySelector("button")).focus({ preventScroll: true });
    this.node.scrollIntoView({ block: "nearest" });
  }

  close() {
    if (!this.node) return;
    const [owner, inside] = [this.owner(), this.node.contains(document.activeElement)];
    this.node.remove();
    this.node = this.index = null;
    owner?.setAttribute("aria-expanded", "false");
    if (inside) owner?.focus({ preventScroll: true });
  }

  /** Shows what is now; what had the focus keeps it. */
  draw() {
    if (!this.node) return;
    const { filled } = this.canvas.state;
    const blank = filled?.blanks[this.index];
    const owner = this.owner();
    if (!blank || !owner) return this.close();
    owner.setAttribute("aria-expanded", "true");
    const focused = this.content.contains(document.activeElement) ? document.activeElement.id : null;
    const context = refilling(filled, [this.index]).text;
    const rows = choices(blank, context);
    const scored = blank.scored?.context === context;
    const chosen = rows.find((row) => blank.begun && row.text.trim() === blank.text.trim());
    this.content.replaceChildren(
      this.head(blank),
      element("p", { class: "glm-detail" }, text(scored ? "blanks.context.now" : "blanks.context.fill")),
      ...rows.map((row, at) => this.row(row, at, row === chosen)),
      element("div", { class: "glm-verdict", role: "status" }, ...this.said(blank, rows, scored)),
      ...this.remarks(filled, blank, rows, scored),
      ...(chosen ? this.heat(chosen) : []),
    );
    this.allow();
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  }

  head(blank) {
    const locked = blank.locked;
    const lock = button("lock", locked ? "blanks.unlock" : "blanks.lock", () => this.canvas.lock(this.index), {
      class: "glm-quiet glm-lock",
      id: "glm-card-lock",
      "aria-pressed": String(locked),
      disabled: Boolean(this.canvas.running) || !blank.begun,
    });
    const again = button("again", "blanks.refill.one", () => this.canvas.refill([this.index]), {
      id: "glm-card-refill",
      disabled: Boolean(this.canvas.running) || locked,
    });
    const close = button("close", "close", () => this.close(), { id: "glm-card-close" });
    const title = element("span", { class: "glm-card-name" }, text("blanks.choices", { number: this.index + 1 }));
    return element("div", { class: "glm-card-title" }, title, lock, again, close);
  }

  row(row, at, pressed) {
    const attributes = { type: "button", class: "glm-choice", id: `glm-choice-${at}`, "aria-pressed": String(pressed) };
    const words = element("span", { class: "glm-choice-text" }, row.text.trim() || text("blanks.nothing"));
    const busy = Boolean(this.canvas.running);
    const take = element("button", { ...attributes, disabled: busy, click: () => this.canvas.take(this.index, row.text) }, words);
    if (row.own) take.append(element("span", { class: "glm-mine" }, text("blanks.mine")));
    const chance = percent(row.logprob);
    if (chance) {
      take.append(element("span", { class: "glm-choice-chance" }, text("blanks.probability", { percent: chance })));
      take.append(element("span", { class: "glm-bar", style: `--share: ${Math.exp(row.logprob)}` }));
    } else if (row.own) take.append(element("span", { class: "glm-choice-chance" }, text("blanks.unscored")));
    return take;
  }

  /** What is to be said about the visitor's own words. */
  said(blank, rows, scored) {
    if (this.problem) return [element("p", { class: "glm-refused" }, this.problem)];
    if (this.scoring) return [element("p", { class: "glm-waiting" }, text("blanks.scoring"))];
    const found = scored ? verdict(blank, rows) : null;
    return found ? [element("p", {}, text(found.key, found.values))] : [];
  }

  remarks(filled, blank, rows, scored) {
    const offered = rows.filter((row) => row.model).length;
    let remark = null;
    if (blank.done && offered < 2) remark = blank.alternatives.length < 2 ? "blanks.no.choices" : "blanks.same";
    else if (!scored && offered > 1 && this.index < filled.blanks.length - 1) remark = "blanks.later";
    return remark ? [element("p", { class: "glm-detail" }, text(remark, { count: blank.alternatives.length }))] : [];
  }

  /** The tokens of the chosen words with their probabilities, as far as they are known. */
  heat(row) {
    if (!row.tokens) return [element("p", { class: "glm-detail", id: "glm-heat" }, text("blanks.heat.unknown"))];
    const tokens = row.tokens.map((token) => {
      const step = HEAT.filter((share) => Math.exp(token.logprob) >= share).length;
      const name = token.text === null ? text("blanks.heat.end") : token.text.trim() || "␣";
      const attributes = { class: `glm-token glm-heat-${step}${token.text === null ? " glm-end" : ""}` };
      return element("li", attributes, element("span", { class: "glm-token-text" }, name), element("span", {}, percent(token.logprob)));
    });
    const title = element("p", { class: "glm-detail", id: "glm-heat-title" }, text("blanks.heat"));
    return [title, element("ol", { class: "glm-heat", id: "glm-heat", "aria-labelledby": "glm-heat-title" }, ...tokens)];
  }

  /** The field for own words. It is made once, so that nothing disturbs who writes in it. */
  own() {
    const id = "glm-own";
    const input = element("input", { id, type: "text", class: "glm-own-input", autocomplete: "off", maxlength: String(WORDS) });
    input.value = this.draft;
    input.addEventListener("input", () => {
      this.draft = input.value;
      this.allow();
    });
    const ask = () => !this.scoring && this.allowed() && compare(this.canvas, this.index, this.draft.trim());
    this.use = element("button", { type: "submit", class: "glm-button", id: "glm-own-use" }, text("blanks.own.use"));
    const attributes = { type: "button", class: "glm-button", id: "glm-own-score", click: ask };
    this.scoreButton = element("button", attributes, text("blanks.own.score"));
    const label = element("label", { for: id }, text("blanks.own"));
    const form = element("form", { class: "glm-own" }, label, input, this.use, this.scoreButton);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.use.disabled && this.allowed()) this.canvas.take(this.index, this.draft.trim(), true);
    });
    return form;
  }

  allow() {
    // Not while words are scored: a button that is switched off loses the focus, and the card its keys with it.
    this.use.disabled = this.scoreButton.disabled = Boolean(this.canvas.running) || !this.draft.trim();
  }

  /** Own words that look like a blank would be one. */
  allowed() {
    this.problem = hasMask(this.draft) ? text("blanks.own.mask") : null;
    if (this.problem) this.draw();
    return !this.problem;
  }

  /** Says that words are being scored, that they were (null), or why they could not be. */
  tell(state) {
    this.scoring = state === "scoring";
    this.problem = state && state !== "scoring" ? errorText(state) : null;
    this.draw();
    this.node?.scrollIntoView({ block: "nearest" });
  }

  key(event) {
    const all = [...this.node.querySelectorAll(".glm-choice:enabled")];
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") this.close();
    else if (step && event.target.id !== "glm-own" && all.length) {
      const at = all.indexOf(document.activeElement);
      all[(at + step + all.length) % all.length].focus();
    } else return;
    event.preventDefault();
  }

  place() {
    const owner = this.owner();
    const [box, spot] = [this.host.getBoundingClientRect(), owner.getClientRects()[0]];
    this.node.style.left = `${Math.max(0, Math.min(spot.left - box.left, box.width - this.node.offsetWidth))}px`;
    this.node.style.top = `${owner.getBoundingClientRect().bottom - box.top + 6}px`;
  }
}
