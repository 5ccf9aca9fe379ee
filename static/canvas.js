// The blanks pane: a text with [MASK], [sMASK] and [gMASK] blanks, and below it the same text with the blanks filling
// in place. The text is written in a real <textarea> (input methods, undo, paste and screen readers work as
// everywhere); a copy behind it paints a chip under each mask. Its state survives a reload, as the chat's does:
// {text, filled: {source, blanks: [{text, alternatives, chosen, done}], result, ...answer} | null}.

import { book, button, copyButton, errorBox, exampleButton, facts, newAnswer, thumbs, waitingText } from "./answer.js";
import { element, memory, newId, onceAFrame } from "./dom.js";
import { choices, emptyBlanks, percent, plain, sequence, split } from "./fills.js";
import { bind, examples, onLanguage, text } from "./language.js";

const MEMORY = "glm.blanks";
const MASKS = { "[MASK]": "blanks.mask", "[sMASK]": "blanks.smask", "[gMASK]": "blanks.gmask" }; // with their explanations
const COLOURS = 6; // classes glm-fill-0 ... in style.css

export class Canvas {
  /** connection: socket.Connection; parameters(kind): the sampling settings. The pane is `section`, to be put anywhere;
   *  it works before that too, since Gradio draws a tab only when it is first opened. */
  constructor(connection, parameters) {
    this.connection = connection;
    this.parameters = parameters;
    this.state = memory.read(MEMORY) ?? { text: "", filled: null };
    this.running = null; // {run, filled} while blanks are being filled
    this.card = null; // the open list of choices
    this.stale = false; // something came while the card was open
    this.paint = onceAFrame(() => {
      // Drawing anew would take the card away under the visitor's finger: it waits until the card closes.
      if (this.card) this.stale = true;
      else this.drawResult();
    });
    this.build();
    this.drawText();
    this.drawResult();
    onLanguage(() => {
      this.drawExamples();
      this.drawResult();
    });
    const { filled } = this.state;
    if (filled?.status === "running") {
      filled.blanks = emptyBlanks(filled.source);
      this.follow(filled, (listener) => connection.take(filled.request, filled.run, listener));
    }
  }

  build() {
    this.input = element("textarea", { id: "glm-blanks-input", rows: "3", spellcheck: "false", autocomplete: "off" });
    this.input.value = this.state.text;
    bind(this.input, "blanks.placeholder", {}, "placeholder");
    this.input.addEventListener("input", () => this.drawText());
    this.input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing) return;
      event.preventDefault();
      if (!this.running) this.fill();
    });
    this.mirror = element("div", { class: "glm-mirror", "aria-hidden": "true" });
    const inserts = Object.entries(MASKS).map(([mask, explanation]) =>
      element(
        "button",
        { type: "button", class: "glm-insert", id: `glm-insert-${mask.slice(1, -1)}`, click: () => this.insert(mask) },
        element("span", { class: "glm-chip" }, mask),
        bind(element("span", { class: "glm-explain" }), explanation),
      ),
    );
    const insertBar = element("div", { class: "glm-inserts", role: "group" }, ...inserts);
    bind(insertBar, "blanks.insert", {}, "label");
    this.fillButton = button("fill", "blanks.fill", () => this.fill(), { class: "glm-primary", id: "glm-blanks-fill" }, true);
    this.stopButton = button("stop", "stop", () => this.stop(), { class: "glm-primary glm-stop", id: "glm-blanks-stop" }, true);
    this.clearButton = button("close", "blanks.clear", () => this.clear(), { class: "glm-button", id: "glm-blanks-clear" }, true);
    this.exampleList = element("div", { class: "glm-examples", id: "glm-blanks-examples" });
    this.result = element("div", { class: "glm-result", id: "glm-blanks-result" });
    this.live = element("p", { class: "glm-hidden", id: "glm-blanks-live", "aria-live": "polite" });
    const keys = bind(element("span", { class: "glm-keys" }), "blanks.keys");
    this.section = element(
      "section",
      { class: "glm-canvas", id: "glm-blanks" },
      bind(element("p", { class: "glm-intro" }), "blanks.intro"),
      insertBar,
      bind(element("label", { class: "glm-hidden", for: "glm-blanks-input" }), "blanks.text"),
      element("div", { class: "glm-editor" }, this.mirror, this.input),
      element("div", { class: "glm-below" }, this.fillButton, this.stopButton, this.clearButton, keys),
      this.result,
      this.exampleList,
      this.live,
    );
    // One listener for all: the card closes on a click elsewhere and on Escape.
    document.addEventListener("pointerdown", (event) => {
      if (this.card && !this.card.node.contains(event.target) && event.target !== this.card.owner) this.closeCard();
    });
    this.drawExamples();
  }

  // Doing

  /** Puts a mask at the cursor. execCommand is the only way that keeps the browser's own undo. */
  insert(mask) {
    this.input.focus();
    if (!document.execCommand("insertText", false, mask)) {
      this.input.setRangeText(mask, this.input.selectionStart, this.input.selectionEnd, "end");
    }
    this.drawText();
  }

  fill() {
    const source = this.input.value;
    if (!source.trim() || this.running) return;
    const request = { type: "fill", id: newId(), text: source, parameters: this.parameters("fill") };
    const filled = { source, blanks: emptyBlanks(source), result: null, ...newAnswer(request) };
    this.state.filled = filled;
    this.follow(filled, (listener) => this.connection.start(request, listener));
    this.drawResult();
    this.result.scrollIntoView({ block: "nearest" });
  }

  again() {
    if (this.running || !this.state.filled) return;
    this.input.value = this.state.filled.source;
    this.drawText();
    this.fill();
  }

  stop() {
    this.running?.run.cancel();
    this.showControls();
  }

  clear() {
    this.running?.run.cancel();
    this.running = null;
    this.state = { text: "", filled: null };
    this.input.value = "";
    this.drawText();
    this.drawResult();
    this.input.focus({ preventScroll: true });
  }

  follow(filled, begin) {
    const mine = { run: null, filled };
    this.running = mine;
    mine.run = begin((event) => {
      if (this.running === mine) this.handle(mine, event);
    });
    memory.write(MEMORY, this.state);
    this.showControls();
  }

  handle(mine, event) {
    const { filled } = mine;
    book(filled, event);
    if (event.type === "delta" && !event.alternative && filled.blanks[event.blank]) {
      const blank = filled.blanks[event.blank];
      blank.text += event.text;
      blank.begun = true;
    } else if (event.type === "blank" && filled.blanks[event.index]) {
      const alternatives = (event.alternatives ?? []).map(({ text: words, logprob }) => ({ text: words, logprob }));
      Object.assign(filled.blanks[event.index], { text: event.text, alternatives, done: true, begun: true });
    } else if (event.type === "done" && !filled.changed) filled.result = event.text;
    if (filled.status !== "running") {
      this.running = null;
      delete filled.request;
      this.live.textContent = filled.status === "error" ? "" : `${text("answered")} ${plain(filled)}`;
      this.showControls();
    }
    if (event.type !== "delta") memory.write(MEMORY, this.state);
    this.paint();
  }

  // Showing

  drawText() {
    this.state.text = this.input.value;
    const parts = split(this.input.value).map((part, at) => (at % 2 ? element("mark", {}, part) : part));
    // The space keeps a last empty line as high as the textarea's.
    this.mirror.replaceChildren(...parts, "\u200b");
    memory.write(MEMORY, this.state);
    this.showControls();
  }

  drawExamples() {
    const buttons = examples("blanks").map((example, at) => {
      const use = () => {
        this.input.value = example.text;
        this.drawText();
        if (!this.running) this.fill();
      };
      return exampleButton(example, { id: `glm-blanks-example-${at}`, click: use });
    });
    this.exampleList.replaceChildren(bind(element("span", { class: "glm-examples-title" }), "examples"), ...buttons);
  }

  drawResult() {
    this.stale = false;
    this.closeCard(false);
    const { filled } = this.state;
    this.result.hidden = !filled;
    if (!filled) return this.result.replaceChildren();
    const running = filled.status === "running";
    const body = element("div", { class: "glm-filled", id: "glm-blanks-filled", dir: "auto" }, ...this.pieces(filled));
    body.setAttribute("aria-busy", String(running));
    const nodes = [bind(element("h3", { class: "glm-result-title" }), "blanks.result"), body];
    if (running && !filled.blanks.some((blank) => blank.begun)) {
      nodes.push(element("p", { class: "glm-waiting" }, waitingText(filled)));
    }
    if (filled.status === "error") nodes.push(errorBox(filled, () => this.again()));
    if (!running) {
      const actions = element("div", { class: "glm-actions" });
      if (filled.status !== "error") {
        const attributes = { class: "glm-button", id: "glm-blanks-copy" };
        actions.append(copyButton("blanks.copy", () => plain(filled), attributes, true));
        actions.append(button("again", "regenerate", () => this.again(), { class: "glm-button", id: "glm-blanks-again" }, true));
        actions.append(...thumbs(filled, () => memory.write(MEMORY, this.state)));
      }
      actions.append(element("span", { class: "glm-facts" }, facts(filled)));
      nodes.push(actions);
      if (filled.status === "done") nodes.push(bind(element("p", { class: "glm-keys" }), "blanks.result.hint"));
    }
    this.result.replaceChildren(...nodes);
    this.result.dataset.status = filled.status;
  }

  /** The text with its blanks as nodes: a mask that waits, words that stream in, or a button that offers choices. */
  pieces(filled) {
    // An answer from the server's records comes without its blanks one by one.
    if (filled.result !== null && filled.blanks.some((blank) => !blank.begun)) return [filled.result];
    if (filled.status === "error" && !filled.blanks.some((blank) => blank.begun)) return [filled.source];
    return sequence(filled).map((part) => {
      if (part.index === undefined) return part.text;
      const { index, blank } = part;
      const colour = `glm-fill glm-fill-${index % COLOURS}`;
      if (!blank.begun) return element("span", { class: "glm-blank" }, blank.mask);
      if (!blank.done) {
        const growing = filled.status === "running" ? " glm-growing" : "";
        return element("span", { class: colour + growing, id: `glm-fill-${index}` }, part.text);
      }
      const shown = part.text || text("blanks.nothing");
      // A <span> in the role of a button, since a <button> can't break over lines as the words of a text do.
      const attributes = { role: "button", tabindex: "0", class: `${colour} glm-filled-in`, id: `glm-fill-${index}` };
      const node = element("span", { ...attributes, "aria-haspopup": "dialog", "aria-expanded": "false" }, shown);
      node.setAttribute("aria-label", text("blanks.blank", { number: index + 1, text: shown.trim() }));
      node.addEventListener("click", () => this.openCard(node, index));
      node.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        this.openCard(node, index);
      });
      return node;
    });
  }

  openCard(owner, index) {
    const reopened = this.card?.owner === owner;
    this.closeCard();
    if (reopened) return;
    const { filled } = this.state;
    const blank = filled.blanks[index];
    const title = text("blanks.choices", { number: index + 1 });
    const node = element("div", { class: "glm-card", id: "glm-card", role: "dialog", "aria-label": title });
    node.append(element("div", { class: "glm-card-title" }, title, button("close", "close", () => this.closeCard())));
    const offered = choices(blank);
    for (const choice of offered) {
      const attributes = { type: "button", class: "glm-choice", "aria-pressed": String(choice.text === blank.text) };
      const words = element("span", { class: "glm-choice-text" }, choice.text.trim() || text("blanks.nothing"));
      const take = element("button", { ...attributes, click: () => this.take(index, choice) }, words);
      const chance = percent(choice.logprob);
      if (chance) {
        take.append(element("span", { class: "glm-choice-chance" }, text("blanks.probability", { percent: chance })));
        take.append(element("span", { class: "glm-bar", style: `--share: ${Math.exp(choice.logprob)}` }));
      }
      node.append(take);
    }
    let remark = null;
    if (offered.length < 2) remark = blank.alternatives.length < 2 ? "blanks.no.choices" : "blanks.same";
    else if (index < filled.blanks.length - 1) remark = "blanks.later";
    if (remark) node.append(element("p", { class: "glm-detail" }, text(remark, { count: blank.alternatives.length })));
    node.addEventListener("keydown", (event) => {
      const all = [...node.querySelectorAll("button")];
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") this.closeCard();
      else if (step) all[(all.indexOf(document.activeElement) + step + all.length) % all.length].focus();
      else return;
      event.preventDefault();
    });
    owner.setAttribute("aria-expanded", "true");
    this.result.append(node);
    const [box, spot] = [this.result.getBoundingClientRect(), owner.getClientRects()[0]];
    node.style.left = `${Math.max(0, Math.min(spot.left - box.left, box.width - node.offsetWidth))}px`;
    node.style.top = `${owner.getBoundingClientRect().bottom - box.top + 6}px`;
    this.card = { node, owner };
    (node.querySelector(".glm-choice[aria-pressed=true]") ?? node.querySelector("button")).focus({ preventScroll: true });
    node.scrollIntoView({ block: "nearest" });
  }

  closeCard(refocus = true) {
    if (!this.card) return;
    const { node, owner } = this.card;
    this.card = null;
    const inside = node.contains(document.activeElement);
    node.remove();
    owner.setAttribute("aria-expanded", "false");
    if (refocus && inside) owner.focus({ preventScroll: true });
    if (this.stale) this.drawResult();
  }

  take(index, choice) {
    const { filled } = this.state;
    filled.blanks[index].text = choice.text;
    filled.changed = true; // the page's own composition from here on
    filled.result = null;
    memory.write(MEMORY, this.state);
    this.drawResult();
    document.getElementById(`glm-fill-${index}`)?.focus({ preventScroll: true });
  }

  showControls() {
    const running = Boolean(this.running);
    const focused = [this.fillButton, this.stopButton].includes(document.activeElement);
    this.fillButton.hidden = running;
    this.fillButton.disabled = !this.input.value.trim();
    this.stopButton.hidden = !running;
    this.stopButton.disabled = Boolean(this.running?.run?.cancelled);
    this.clearButton.disabled = !this.input.value && !this.state.filled;
    if (focused) (running ? this.stopButton : this.fillButton).focus({ preventScroll: true });
  }
}
