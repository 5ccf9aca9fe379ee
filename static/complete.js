// The pane that goes on with a text in two ways at once: sampled token by token, and by beam search with every beam shown.
// Its state survives a reload, as the chat's does: {text, conversation, answers: {sample, beam}}; an answer is {kind, source,
// ...} with the fields of answer.js and sides.js.

import { button, copyButton, errorBox, exampleButton, facts, newAnswer, opinion, storedAnswer, waitingText } from "./answer.js";
import { element, memory, newId, onceAFrame } from "./dom.js";
import { percent } from "./fills.js";
import { marked } from "./keeping.js";
import { bind, currentLanguage, examples, onLanguage, text } from "./language.js";
import { Meter } from "./meter.js";
import { openShare } from "./share_dialog.js";
import { behind, emptyText, prompt, Sides } from "./sides.js";

const MEMORY = "glm.complete";
const KINDS = { sample: "complete.sample", beam: "complete.beam" }; // the sides, with their titles
const HELP = { sample: "complete.sample.help", beam: "complete.beam.help" };

export class Complete {
  /** connection: socket.Connection; parameters(kind): the sampling settings for "sample" or "beam". The pane is `section`. */
  constructor(connection, parameters) {
    this.parameters = parameters;
    this.state = memory.read(MEMORY) ?? newState();
    this.sides = new Sides(connection, (answer, event) => this.heard(answer, event));
    this.sides.conversation = this.state.conversation;
    this.paints = {};
    for (const kind of Object.keys(KINDS)) this.paints[kind] = onceAFrame(() => this.drawSide(kind));
    this.build();
    this.draw();
    onLanguage(() => this.draw());
    this.sides.begin(this.answers().filter((answer) => answer.status === "running"));
    this.showControls();
  }

  answers() {
    return Object.keys(KINDS).map((kind) => this.state.answers[kind]).filter(Boolean);
  }

  build() {
    this.input = element("textarea", { id: "glm-complete-input", class: "glm-long", rows: "7", autocomplete: "off", dir: "auto" });
    this.input.value = this.state.text;
    bind(this.input, "complete.placeholder", {}, "placeholder");
    this.input.addEventListener("input", () => this.changed());
    this.input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing) return;
      event.preventDefault();
      this.start();
    });
    this.startButton = button("fill", "complete.start", () => this.start(), { class: "glm-primary", id: "glm-complete-start" }, true);
    this.stopButton = button("stop", "stop", () => this.stop(), { class: "glm-primary glm-stop", id: "glm-complete-stop" }, true);
    this.clearButton = button("close", "clear", () => this.clear(), { class: "glm-button", id: "glm-complete-clear" }, true);
    this.exampleList = element("div", { class: "glm-examples", id: "glm-complete-examples" });
    this.columns = {};
    this.given = element("span", { class: "glm-given" });
    this.added = element("mark", { class: "glm-added" });
    // A long text scrolls in its place, with keys too.
    const scrolls = { class: "glm-continued", id: "glm-complete-text", dir: "auto", tabindex: "0", role: "group" };
    this.continued = bind(element("div", scrolls, this.given, this.added), KINDS.sample, {}, "label");
    this.beams = element("ol", { class: "glm-beams", id: "glm-complete-beams" });
    const bodies = { sample: this.continued, beam: this.beams };
    for (const [kind, title] of Object.entries(KINDS)) {
      const heading = bind(element("h3", { class: "glm-result-title", id: `glm-complete-${kind}-title` }), title);
      const below = element("div", { class: "glm-foot" });
      const attributes = { class: "glm-column", id: `glm-complete-${kind}`, "aria-labelledby": heading.id };
      const help = bind(element("p", { class: "glm-detail" }), HELP[kind]);
      this.columns[kind] = { node: element("section", attributes, heading, help, bodies[kind], below), below };
    }
    this.columnRow = element("div", { class: "glm-columns" }, ...Object.values(this.columns).map((column) => column.node));
    this.live = element("p", { class: "glm-hidden", id: "glm-complete-live", "aria-live": "polite" });
    const keys = bind(element("span", { class: "glm-keys" }), "complete.keys");
    this.meter = new Meter("glm-complete-meter", () => this.next(), "meter.rule");
    this.section = element(
      "section",
      { class: "glm-complete", id: "glm-complete" },
      bind(element("p", { class: "glm-intro" }), "complete.intro"),
      bind(element("label", { class: "glm-hidden", for: "glm-complete-input" }), "complete.text"),
      this.input,
      element("div", { class: "glm-below" }, this.startButton, this.stopButton, this.clearButton, keys),
      this.meter.node,
      this.columnRow,
      this.exampleList,
      this.live,
    );
  }

  // Doing

  changed() {
    this.state.text = this.input.value;
    this.remember();
    this.showControls();
    this.meter.changed();
  }

  /** What would be sent for the sampled side, for the meter. */
  next() {
    const { text: written } = this.state;
    return written.trim() ? { type: "generate", text: written, parameters: this.parameters("sample") } : null;
  }

  start() {
    const source = this.input.value;
    if (!source.trim() || this.sides.running) return;
    // Whoever goes on with what was written stays in the same conversation of the record; another text opens another.
    const before = this.answers()[0]?.source;
    if (!before || !source.startsWith(prompt(before))) this.sides.conversation = this.state.conversation = null;
    for (const kind of Object.keys(KINDS)) this.state.answers[kind] = this.ask(kind, source);
    this.go(this.answers());
    this.columnRow.scrollIntoView({ block: "nearest" });
  }

  ask(kind, source) {
    const request = marked({ type: "generate", id: newId(), text: source, parameters: this.parameters(kind) });
    return { kind, source, ...emptyText(), ...newAnswer(request) };
  }

  go(answers) {
    const moved = this.section.contains(document.activeElement) && document.activeElement !== this.input;
    this.sides.begin(answers);
    this.remember();
    this.draw();
    // The button that was pressed is gone.
    if (moved) this.stopButton.focus({ preventScroll: true });
  }

  /** Makes one side anew, from the text that it went on with. */
  again(kind) {
    const old = this.state.answers[kind];
    if (!old || old.status === "running") return;
    this.state.answers[kind] = this.ask(kind, old.source);
    this.go([this.state.answers[kind]]);
  }

  stop() {
    this.sides.stop();
    this.showControls();
  }

  clear() {
    this.sides.stop();
    this.sides.leave();
    this.state = newState();
    this.input.value = "";
    this.remember();
    this.draw();
    this.input.focus({ preventScroll: true });
  }

  /** Shows a conversation of the server's record: the answer of GET /api/conversations/ID. */
  open(conversation) {
    this.sides.leave();
    this.state = { ...newState(), conversation: conversation.id };
    this.sides.conversation = conversation.id;
    for (const run of conversation.runs) {
      if (run.mode !== "generate" || typeof run.prompt !== "string") continue;
      const kind = run.parameters.num_beams ? "beam" : "sample";
      const answer = { kind, source: run.prompt, ...emptyText(), ...storedAnswer(run), text: run.output ?? "" };
      this.state.text = run.prompt;
      this.state.answers[kind] = answer;
    }
    this.input.value = this.state.text;
    this.sides.begin(this.answers().filter((answer) => answer.status === "running"));
    this.remember();
    this.draw();
    const { beam } = this.state.answers;
    if (beam && beam.status !== "running") this.recall(beam);
  }

  /** The beams of a finished run, from the server's record; their scores are not kept there. */
  async recall(answer) {
    try {
      const reply = await fetch(new URL(`api/runs/${encodeURIComponent(answer.run)}`, document.baseURI));
      const run = await reply.json();
      const kept = reply.ok ? (run.blanks[0]?.alternatives ?? []) : [];
      answer.beams = kept.map((one) => ({ text: one.text, logprob: one.logprob, ended: one.finish_reason === "stop" }));
    } catch (problem) {
      console.warn("Can't ask for a run's beams:", problem.message);
    }
    this.remember();
    this.drawSide(answer.kind);
  }

  /** Goes on from a text that was shared by somebody. */
  load({ text: shared }) {
    this.clear();
    this.input.value = shared;
    this.changed();
  }

  /** Puts a continuation behind its text, to go on from there. */
  use(answer, words) {
    this.input.value = prompt(answer.source) + behind(answer.source, words);
    this.changed();
    this.input.focus();
    this.input.setSelectionRange(this.input.value.length, this.input.value.length);
    this.input.scrollTop = this.input.scrollHeight;
  }

  heard(answer, event) {
    this.state.conversation = this.sides.conversation;
    if (answer.status !== "running") {
      const words = found(answer)[0]?.text ?? "";
      const title = text(KINDS[answer.kind]);
      this.live.textContent = answer.status === "error" ? "" : text("complete.finished", { side: title, text: words });
    }
    if (event.type !== "delta" && event.type !== "beams") this.remember();
    this.showControls();
    this.paints[answer.kind]();
  }

  remember() {
    memory.write(MEMORY, this.state);
  }

  // Showing

  draw() {
    this.drawExamples();
    for (const kind of Object.keys(KINDS)) this.drawSide(kind);
    this.showControls();
  }

  drawExamples() {
    const buttons = examples("complete").map((example, at) => {
      const use = () => {
        this.input.value = example.text;
        this.changed();
        this.start();
      };
      return exampleButton(example, { id: `glm-complete-example-${at}`, click: use });
    });
    this.exampleList.replaceChildren(bind(element("span", { class: "glm-examples-title" }), "examples"), ...buttons);
  }

  drawSide(kind) {
    const answer = this.state.answers[kind];
    const { node, below } = this.columns[kind];
    this.columnRow.hidden = !this.answers().length;
    node.hidden = !answer;
    if (!answer) return;
    const running = answer.status === "running";
    node.dataset.status = answer.status;
    node.setAttribute("aria-busy", String(running));
    if (kind === "beam") this.drawBeams(answer);
    else this.drawContinued(answer);
    below.replaceChildren();
    if (!running) this.drawFoot(kind, answer, below);
    else if (kind === "beam" && answer.beams.length) below.append(bind(element("p", { class: "glm-waiting" }), "complete.searching"));
    else if (!answer.text) below.append(element("p", { class: "glm-waiting" }, waitingText(answer)));
  }

  /** The text, dimmed, with what was added highlighted. It follows the end unless the visitor has scrolled away from it. */
  drawContinued(answer) {
    const box = this.continued;
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    const given = prompt(answer.source);
    if (this.given.textContent !== given) this.given.textContent = given;
    this.added.textContent = behind(answer.source, answer.text);
    this.added.classList.toggle("glm-growing", answer.status === "running" && answer.text !== "");
    if (atEnd) box.scrollTop = box.scrollHeight;
  }

  /** Every beam, best first; while the search runs they may all still change. */
  drawBeams(answer) {
    const ended = answer.status !== "running";
    this.beams.replaceChildren(
      ...found(answer).map((beam, at) => {
        const shown = beam.text.trim() ? beam.text.trimStart() : text("blanks.nothing");
        const about = element("div", { class: "glm-actions" });
        if (ended) {
          const attributes = { class: "glm-button glm-use", id: `glm-complete-use-beam-${at}` };
          const use = button("check", "complete.use", () => this.use(answer, beam.text), attributes, true);
          about.append(bind(use, "complete.use.beam", { number: at + 1 }, "label"));
          about.append(bind(copyButton("copy", () => beam.text.trim()), "complete.copy.beam", { number: at + 1 }, "label"));
        }
        const words = element("p", { class: "glm-beam-text", dir: "auto" }, shown);
        const good = element("p", { class: "glm-detail glm-measures" }, measures(beam));
        const row = element("div", { class: "glm-beam-row" }, good, about);
        return element("li", { class: `glm-beam${beam.ended ? " glm-ended" : ""}` }, words, row);
      }),
    );
  }

  drawFoot(kind, answer, foot) {
    if (answer.status === "error") foot.append(errorBox(answer, () => this.again(kind)));
    const actions = element("div", { class: "glm-actions" });
    if (kind === "sample" && answer.text.trim()) {
      const attributes = { class: "glm-button glm-use", id: "glm-complete-use-sample" };
      actions.append(button("check", "complete.use", () => this.use(answer, answer.text), attributes, true));
      actions.append(copyButton("copy", () => prompt(answer.source) + behind(answer.source, answer.text)));
    }
    if (answer.status !== "error") {
      actions.append(button("again", "regenerate", () => this.again(kind), { id: `glm-complete-again-${kind}` }));
    }
    if (answer.run && found(answer).length) {
      actions.append(...opinion(answer, foot, () => this.remember()));
      const title = answer.source.slice(0, 80);
      const share = () => openShare({ kind: "complete", runs: [answer.run], text: null, title });
      if (!answer.unlogged) actions.append(button("share", "share", share, { id: `glm-complete-share-${kind}` }));
    }
    actions.append(facts(answer));
    foot.append(actions);
  }

  showControls() {
    const { running } = this.sides;
    const focused = [this.startButton, this.stopButton].includes(document.activeElement);
    this.startButton.hidden = running;
    this.startButton.disabled = !this.input.value.trim();
    this.stopButton.hidden = !running;
    // Not `disabled`: the button would lose the keyboard's focus in the middle.
    this.stopButton.setAttribute("aria-disabled", String(this.sides.stopping));
    bind(this.stopButton.lastChild, this.sides.stopping ? "stopping" : "stop");
    this.clearButton.hidden = !this.input.value && !this.answers().length;
    this.exampleList.hidden = this.answers().length > 0;
    if (focused) (running ? this.stopButton : this.startButton).focus({ preventScroll: true });
  }
}

/** The beams that can be shown. An answer of the server's records comes without its other beams. */
function found({ beams, text: words }) {
  return beams.length || !words ? beams : [{ text: words, logprob: null, score: null }];
}

function newState() {
  return { text: "", conversation: null, answers: { sample: null, beam: null } };
}

/** How good a beam is: its probability, its score, and whether it ended by itself. */
function measures({ logprob, score, ended }) {
  const parts = [];
  const share = percent(logprob);
  const number = new Intl.NumberFormat(currentLanguage(), { maximumFractionDigits: 2, minimumFractionDigits: 2 });
  if (share) parts.push(text("blanks.probability", { percent: share }));
  if (Number.isFinite(score)) parts.push(text("complete.score", { score: number.format(score) }));
  if (ended !== undefined) parts.push(text(ended ? "complete.ended" : "complete.unended"));
  return parts.join(" · ");
}
