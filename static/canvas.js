// The blanks pane: a text with [MASK], [sMASK] and [gMASK] blanks, and below it the same text with the blanks filling in place.
// Blanks can be locked, so that only the others are filled again, take other choices or the visitor's own words, and be undone.
// Its state survives a reload: {text, words, order, filled}: `words` see canvas_editor.js; `filled` null or {source, blanks, result,
// map, runs, conversation, ...answer}, see fills.js; `map[k]` is the blank that the newest run knows as k.

import { book, button, exampleButton, newAnswer, notice } from "./answer.js";
import { Card } from "./canvas_card.js";
import { Editor } from "./canvas_editor.js";
import { History } from "./canvas_history.js";
import { Result } from "./canvas_result.js";
import { readConversation, readRun } from "./canvas_stored.js";
import { element, memory, newId, onceAFrame } from "./dom.js";
import { emptied, emptyBlanks, fillBlank, keepOwn, plain, refilling } from "./fills.js";
import { marked } from "./keeping.js";
import { bind, errorText, examples, onLanguage, text } from "./language.js";
import { Meter } from "./meter.js";
import { openShare } from "./share_dialog.js";

const MEMORY = "glm.blanks";
const TITLE = 80; // characters of a shared text's title
const ORDERS = { left: "blanks.order.left", confident: "blanks.order.confident" };

export class Canvas {
  /** connection: socket.Connection; parameters(kind): the sampling settings. The pane is `section`, to be put anywhere;
   *  it works before that too, since Gradio draws a tab only when it is first opened. */
  constructor(connection, parameters) {
    this.connection = connection;
    this.parameters = parameters;
    this.state = { text: "", words: [], order: "left", filled: null, ...memory.read(MEMORY) };
    this.history = new History();
    this.running = null; // {run, filled} while blanks are being filled
    this.paint = onceAFrame(() => this.result.draw());
    this.build();
    this.draw();
    onLanguage(() => {
      this.drawExamples();
      this.card.close();
      this.draw();
    });
    if (this.state.filled?.status === "running") this.takeUp();
  }

  build() {
    const { text: written, words } = this.state;
    const submit = () => this.fill();
    this.editor = new Editor({ text: written, words, changed: () => this.written(), submit });
    this.fillButton = button("fill", "blanks.fill", submit, { class: "glm-primary", id: "glm-blanks-fill" }, true);
    this.stopButton = button("stop", "stop", () => this.stop(), { class: "glm-primary glm-stop", id: "glm-blanks-stop" }, true);
    this.clearButton = button("close", "blanks.clear", () => this.clear(), { class: "glm-button", id: "glm-blanks-clear" }, true);
    const order = element("select", { id: "glm-blanks-order", class: "glm-order" });
    for (const [value, key] of Object.entries(ORDERS)) order.append(bind(element("option", { value }), key));
    order.value = this.state.order;
    order.addEventListener("change", () => {
      this.state.order = order.value;
      this.keep();
      this.meter.changed();
    });
    const ordering = element("label", { class: "glm-ordering" }, bind(element("span"), "blanks.order"), order);
    const keys = bind(element("span", { class: "glm-keys", id: "glm-blanks-keys" }), "blanks.keys");
    this.result = new Result(this);
    this.card = new Card(this.result.node, this);
    this.live = element("p", { class: "glm-hidden", id: "glm-blanks-live", "aria-live": "polite" });
    this.exampleList = element("div", { class: "glm-examples", id: "glm-blanks-examples" });
    this.meter = new Meter("glm-blanks-meter", () => this.next(), "meter.rule");
    this.section = element(
      "section",
      { class: "glm-canvas", id: "glm-blanks" },
      bind(element("p", { class: "glm-intro" }), "blanks.intro"),
      this.editor.node,
      element("div", { class: "glm-below" }, this.fillButton, this.stopButton, this.clearButton, ordering, keys),
      this.meter.node,
      this.result.node,
      this.exampleList,
      this.live,
    );
    this.drawExamples();
  }

  // Texts

  written() {
    this.meter?.changed(); // the editor is there before it
    Object.assign(this.state, { text: this.editor.text, words: this.editor.words });
    this.keep();
    this.showControls();
  }

  /** Puts a text into the editor, as for another pane or a template. */
  load({ text: wanted }) {
    this.editor.load(wanted);
    this.editor.focus();
  }

  /** Shows a conversation of the server's record: the answer of GET /api/conversations/ID. */
  async open(conversation) {
    this.opening = conversation.id;
    let states = [];
    try {
      states = await readConversation(conversation);
    } catch (problem) {
      notice(errorText(problem.kind ?? "internal"));
    }
    const filled = states.at(-1);
    if (!filled || this.opening !== conversation.id) return; // another one was opened meanwhile
    this.leave();
    this.history.reset(states.slice(0, -1));
    this.state.filled = filled;
    this.editor.load(filled.source, filled.blanks.map((blank) => blank.own.at(-1) ?? null));
    if (filled.status === "running") this.takeUp();
    this.keep();
    this.draw();
  }

  clear() {
    this.running?.run.cancel();
    this.leave();
    this.history.reset();
    this.state.filled = null;
    this.editor.load("");
    this.draw();
    this.editor.focus();
  }

  leave() {
    this.running = null;
    this.card.close();
  }

  // Filling

  /** Fills the editor's text; where only its own unlocked blanks are to be filled anew, those. */
  fill() {
    const source = this.editor.text;
    if (!source.trim() || this.running) return;
    const { filled } = this.state;
    const same = filled?.source === source;
    const open = same ? this.openBlanks() : [];
    if (same && open.length && open.length < filled.blanks.length) return this.refill(open);
    if (filled) this.history.note(filled);
    const blanks = emptyBlanks(source, this.editor.words);
    const former = same ? filled : { runs: [], conversation: null };
    this.begin({ source, blanks, map: blanks.map((_, at) => at), runs: former.runs, conversation: former.conversation }, source);
    this.result.node.scrollIntoView({ block: "nearest" });
  }

  /** Fills the blanks `open` (indexes) again, all others keep their words. */
  refill(open) {
    const { filled } = this.state;
    if (this.running || !filled || !open.length) return;
    const locked = open.find((at) => filled.blanks[at].locked);
    if (locked !== undefined) return (this.live.textContent = text("blanks.locked", { number: locked + 1 }));
    this.history.note(filled);
    const { text: sent, map } = refilling(filled, open);
    const blanks = filled.blanks.map((blank, at) => (map.includes(at) ? emptied(blank, blank) : blank));
    const { source, runs, conversation } = filled;
    this.card.close();
    this.begin({ source, blanks, map, runs, conversation }, sent);
  }

  /** What would be sent for the text, for the meter. */
  next() {
    const { text: written, order } = this.state;
    if (!written.trim()) return null;
    const request = { type: "fill", text: written, parameters: this.parameters("fill") };
    return order === "confident" ? { ...request, order } : request;
  }

  begin(filled, sent) {
    const request = marked({ type: "fill", id: newId(), text: sent, parameters: this.parameters("fill") });
    if (this.state.order === "confident") request.order = "confident";
    if (filled.conversation) request.conversation = filled.conversation;
    this.state.filled = { ...filled, result: null, ...newAnswer(request) };
    this.follow((listener) => this.connection.start(request, listener));
    this.live.textContent = text("blanks.filling");
    this.draw();
  }

  /** After a reload: all events of the run come again from the first. */
  takeUp() {
    const { filled } = this.state;
    for (const at of filled.map) {
      const blank = filled.blanks[at];
      if (blank) filled.blanks[at] = emptied(blank, blank.former);
    }
    this.follow((listener) => this.connection.take(filled.request, filled.run, listener));
  }

  /** Once more after an error: what failed, or the text as it is now if nothing of it had come. */
  retry() {
    const { filled } = this.state;
    if (!filled || this.running) return;
    if (filled.blanks.some((blank) => blank.begun)) {
      return this.refill(filled.map.filter((at) => filled.blanks[at] && !filled.blanks[at].locked));
    }
    if (!this.editor.text.trim()) this.editor.load(filled.source);
    this.fill();
  }

  stop() {
    this.running?.run.cancel();
    this.showControls();
  }

  follow(start) {
    const mine = { run: null, filled: this.state.filled };
    this.running = mine;
    mine.run = start((event) => {
      if (this.running === mine) this.handle(mine.filled, event);
    });
    this.keep();
    this.showControls();
  }

  handle(filled, event) {
    book(filled, event);
    const at = filled.map[event.type === "blank" ? event.index : event.blank];
    const blank = filled.blanks[at];
    if (event.type === "accepted") {
      filled.conversation = event.conversation ?? filled.conversation;
      if (!filled.unlogged && !filled.runs.includes(event.run)) filled.runs = [...filled.runs, event.run];
    } else if (event.type === "delta" && !event.alternative && blank) {
      blank.text += event.text;
      blank.begun = true;
    } else if (event.type === "blank" && blank) {
      fillBlank(blank, event);
      this.live.textContent = text("blanks.blank", { number: at + 1, text: blank.text.trim() || text("blanks.nothing") });
    } else if (event.type === "done") filled.result = event.text;
    if (filled.status !== "running") this.ended(filled, event);
    this.paint();
    if (event.type === "delta") return;
    this.keep();
    this.card.draw();
  }

  ended(filled, event) {
    this.running = null;
    delete filled.request; // only needed to take an unfinished run up again
    if (event.type === "error" && event.kind === "not_found") filled.conversation = null; // it was deleted meanwhile
    const recalled = event.type === "done" && event.recalled;
    for (const at of filled.map) {
      const blank = filled.blanks[at];
      if (!blank) continue;
      // A blank that was not reached keeps what it had.
      if (!blank.begun && blank.former && !recalled) filled.blanks[at] = blank.former;
      delete blank.former;
    }
    if (recalled) this.recall(filled);
    this.live.textContent = filled.status === "error" ? "" : `${text("answered")} ${plain(filled)}`;
    this.showControls();
  }

  /** An answer from the server's records comes without its blanks: they are asked for. */
  async recall(filled) {
    try {
      const { blanks } = await readRun(filled.run);
      for (const one of blanks) if (filled.blanks[filled.map[one.index]]) fillBlank(filled.blanks[filled.map[one.index]], one);
    } catch (problem) {
      console.warn("Can't read the blanks of a run:", problem.message);
    }
    this.keep();
    this.draw();
  }

  // Changing the result

  /** The indexes of the blanks that are not locked. */
  openBlanks() {
    return this.state.filled.blanks.flatMap((blank, at) => (blank.locked ? [] : [at]));
  }

  /** Changes one blank by work(blank), so that it can be undone. */
  change(index, work) {
    const { filled } = this.state;
    if (this.running || !filled?.blanks[index]) return;
    this.history.note(filled);
    work(filled.blanks[index], filled);
    this.keep();
    this.draw();
  }

  /** Takes a choice for a blank, or with `own` the visitor's own words. */
  take(index, words, own = false) {
    if (words === this.state.filled?.blanks[index]?.text) return this.card.close();
    this.change(index, (blank, filled) => {
      // Words stand where fills stand, and those may bring the space before them along.
      const space = /^\s/.test(blank.alternatives[0]?.text ?? "") && !/^\s/.test(words) ? " " : "";
      Object.assign(blank, { text: own ? space + words : words, begun: true, done: true });
      if (own) keepOwn(blank, words);
      filled.result = null; // the page's own composition from here on
      this.card.close();
    });
    this.result.focus(index);
  }

  /** Locks a blank, or unlocks it. */
  lock(index) {
    if (!this.state.filled?.blanks[index]?.begun) return;
    this.change(index, (blank) => {
      blank.locked = !blank.locked;
      this.live.textContent = text(blank.locked ? "blanks.locked" : "blanks.unlocked", { number: index + 1 });
    });
  }

  undo() {
    this.restore("undo", "undone");
  }

  redo() {
    this.restore("redo", "redone");
  }

  restore(way, said) {
    if (this.running || !this.state.filled) return;
    const found = this.history[way](this.state.filled);
    if (!found) return;
    // The visitor's own words are no part of what is undone: they stay among the choices.
    const now = this.state.filled;
    if (now.source === found.source) found.blanks.forEach((blank, at) => (blank.own = now.blanks[at].own));
    this.state.filled = found;
    this.keep();
    this.draw();
    this.live.textContent = `${text(said)} ${plain(found)}`;
  }

  share() {
    const { source, runs } = this.state.filled;
    const title = source.split(/\s+/).join(" ").trim().slice(0, TITLE);
    return openShare({ kind: "blanks", runs, text: plain(this.state.filled), title });
  }

  // Showing

  keep() {
    memory.write(MEMORY, this.state);
  }

  draw() {
    this.result.draw();
    this.card.draw();
    this.showControls();
  }

  drawExamples() {
    const buttons = examples("blanks").map((example, at) => {
      const use = () => {
        this.editor.load(example.text);
        this.fill();
      };
      return exampleButton(example, { id: `glm-blanks-example-${at}`, click: use });
    });
    this.exampleList.replaceChildren(bind(element("span", { class: "glm-examples-title" }), "examples"), ...buttons);
  }

  showControls() {
    const running = Boolean(this.running);
    const focused = [this.fillButton, this.stopButton].includes(document.activeElement);
    this.fillButton.hidden = running;
    this.fillButton.disabled = !this.editor.text.trim();
    this.stopButton.hidden = !running;
    this.stopButton.disabled = Boolean(this.running?.run?.cancelled);
    this.clearButton.disabled = !this.editor.text && !this.state.filled;
    if (focused) (running ? this.stopButton : this.fillButton).focus({ preventScroll: true });
  }
}
