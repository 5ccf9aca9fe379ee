// The pane that puts one prompt to two settings, A and B, side by side, blind if wanted, and stores which answer is better.
// Its state survives a reload, as the chat's does, and a blind comparison stays blind: {mode, text, settings: {first, second},
// seed, blind, round}. A round is one comparison: {order, blind, vote, conversation, answers: {first, second}}; `order` says
// which of "first" (A) and "second" (B) stands left. A vote names the runs of A and B, wherever they stood.

import { button, copyButton, errorBox, facts, newAnswer, notice, waitingText } from "./answer.js";
import { element, memory, newId, onceAFrame } from "./dom.js";
import { emptyBlanks, sequence } from "./fills.js";
import { marked } from "./keeping.js";
import { bind, onLanguage, text } from "./language.js";
import { render as markdown } from "./markdown.js";
import { Choices, newSettings, said } from "./compare_settings.js";
import { behind, emptyText, prompt, Sides } from "./sides.js";

const MEMORY = "glm.compare";
const MODES = { chat: "compare.chat", generate: "compare.generate", fill: "compare.fill" }; // types of message, with texts
const PLACES = ["left", "right"];
const VOTES = { left: "compare.vote.left", right: "compare.vote.right", tie: "compare.vote.tie", neither: "compare.vote.neither" };

export class Compare {
  /** connection: socket.Connection; parameters(kind): the page's sampling settings. The pane is `section`. */
  constructor(connection, parameters) {
    this.parameters = parameters;
    this.state = memory.read(MEMORY) ?? { mode: "chat", text: "", ...newSettings(), blind: false, round: null };
    this.sides = new Sides(connection, (answer, event) => this.heard(answer, event));
    this.sides.conversation = this.state.round?.conversation ?? null;
    this.paints = Object.fromEntries(PLACES.map((place, at) => [place, onceAFrame(() => this.drawColumn(at))]));
    this.build();
    this.draw();
    onLanguage(() => this.draw());
    this.sides.begin(this.answers().filter((answer) => answer.status === "running"));
    this.showControls();
  }

  /** The answers in the order in which they stand. */
  answers() {
    const { round } = this.state;
    return round ? round.order.map((name) => round.answers[name]) : [];
  }

  build() {
    const modes = Object.entries(MODES).map(([mode, key]) => {
      const choice = element("input", { type: "radio", name: "glm-compare-mode", value: mode, id: `glm-compare-mode-${mode}` });
      choice.checked = this.state.mode === mode;
      choice.addEventListener("change", () => this.change({ mode }));
      return element("label", { class: "glm-radio", for: choice.id }, choice, bind(element("span"), key));
    });
    const legend = bind(element("legend", { class: "glm-hidden" }), "compare.mode");
    this.input = element("textarea", { id: "glm-compare-input", class: "glm-long", rows: "4", autocomplete: "off", dir: "auto" });
    this.input.value = this.state.text;
    this.input.addEventListener("input", () => this.change({ text: this.input.value }));
    this.input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing) return;
      event.preventDefault();
      this.start();
    });
    const masks = ["[MASK]", "[sMASK]", "[gMASK]"].map((mask) =>
      element("button", { type: "button", class: "glm-insert", click: () => this.insert(mask) }, element("span", { class: "glm-chip" }, mask)),
    );
    this.masks = bind(element("div", { class: "glm-inserts", id: "glm-compare-masks", role: "group" }, ...masks), "blanks.insert", {}, "label");
    this.choices = new Choices(this.state, () => this.remember());
    const blind = element("input", { type: "checkbox", id: "glm-compare-blind" });
    blind.checked = this.state.blind;
    blind.addEventListener("change", () => this.change({ blind: blind.checked }));
    const blindLabel = element("label", { class: "glm-check", for: blind.id }, blind, bind(element("span"), "compare.blind"));
    this.startButton = button("fill", "compare.start", () => this.start(), { class: "glm-primary", id: "glm-compare-start" }, true);
    this.stopButton = button("stop", "stop", () => this.stop(), { class: "glm-primary glm-stop", id: "glm-compare-stop" }, true);
    this.clearButton = button("close", "clear", () => this.clear(), { class: "glm-button", id: "glm-compare-clear" }, true);
    this.columns = PLACES.map((place) => {
      const title = element("h3", { class: "glm-result-title", id: `glm-compare-${place}-title` });
      const settings = element("p", { class: "glm-detail glm-said" });
      const body = element("div", { class: "glm-compared", dir: "auto" });
      const below = element("div", { class: "glm-foot" });
      const attributes = { class: "glm-column", id: `glm-compare-${place}`, "aria-labelledby": title.id };
      return { node: element("section", attributes, title, settings, body, below), title, settings, body, below };
    });
    this.columnRow = element("div", { class: "glm-columns" }, ...this.columns.map((column) => column.node));
    this.votes = this.buildVotes();
    this.live = element("p", { class: "glm-hidden", id: "glm-compare-live", "aria-live": "polite" });
    const keys = bind(element("span", { class: "glm-keys" }), "compare.keys");
    this.section = element(
      "section",
      { class: "glm-compare", id: "glm-compare" },
      bind(element("p", { class: "glm-intro" }), "compare.intro"),
      element("fieldset", { class: "glm-radios" }, legend, ...modes),
      bind(element("label", { class: "glm-hidden", for: "glm-compare-input" }), "compare.prompt"),
      this.masks,
      this.input,
      this.choices.node,
      blindLabel,
      element("div", { class: "glm-below" }, this.startButton, this.stopButton, this.clearButton, keys),
      this.columnRow,
      this.votes,
      this.live,
    );
  }

  buildVotes() {
    this.voteButtons = {};
    for (const [which, key] of Object.entries(VOTES)) {
      const attributes = { type: "button", class: "glm-button glm-vote", id: `glm-compare-vote-${which}`, click: () => this.vote(which) };
      const labels = [bind(element("span", { class: PLACES.includes(which) ? "glm-wide" : null }), key)];
      // On a phone the columns stand one below the other.
      if (PLACES.includes(which)) labels.push(bind(element("span", { class: "glm-narrow" }), `${key}.narrow`));
      this.voteButtons[which] = element("button", attributes, ...labels);
    }
    this.voted = element("p", { class: "glm-detail", id: "glm-compare-voted", role: "status" });
    const title = bind(element("span", { class: "glm-result-title", id: "glm-compare-question" }), "compare.question");
    const group = element("div", { class: "glm-vote-buttons", role: "group", "aria-labelledby": title.id });
    group.append(...Object.values(this.voteButtons));
    return element("div", { class: "glm-votes", id: "glm-compare-votes" }, title, group, this.voted);
  }

  // Doing

  change(some) {
    Object.assign(this.state, some);
    this.remember();
    this.showControls();
  }

  /** Puts a mask at the cursor. execCommand is the only way that keeps the browser's own undo. */
  insert(mask) {
    this.input.focus();
    if (document.execCommand("insertText", false, mask)) return;
    this.input.setRangeText(mask, this.input.selectionStart, this.input.selectionEnd, "end");
    this.change({ text: this.input.value });
  }

  start() {
    const source = this.input.value;
    if (!source.trim() || this.sides.running) return;
    const { mode, blind } = this.state;
    const seed = this.choices.seed();
    const answers = {};
    for (const name of ["first", "second"]) answers[name] = this.ask(mode, source, this.choices.of(name, this.parameters, seed));
    // Blind, chance decides which stands left; the left one is started first, so that its start doesn't give away which it is.
    const swapped = blind && crypto.getRandomValues(new Uint8Array(1))[0] % 2 === 1;
    const order = swapped ? ["second", "first"] : ["first", "second"];
    this.state.round = { order, blind, vote: null, conversation: null, answers };
    this.sides.conversation = null;
    this.go(this.answers());
    this.columnRow.scrollIntoView({ block: "nearest" });
  }

  ask(mode, source, settings) {
    const content = mode === "chat" ? { messages: [{ role: "user", content: source }] } : { text: source };
    const request = marked({ type: mode, id: newId(), ...content, parameters: settings.parameters });
    const blanks = mode === "fill" ? emptyBlanks(source) : null;
    return { mode, source, settings, ...emptyText(blanks), ...newAnswer(request) };
  }

  go(answers) {
    const moved = this.section.contains(document.activeElement) && document.activeElement !== this.input;
    this.sides.begin(answers);
    this.remember();
    this.draw();
    if (moved) this.stopButton.focus({ preventScroll: true });
  }

  /** Tries a side again that ended in an error, with the same settings. */
  again(at) {
    const { round } = this.state;
    const old = round.answers[round.order[at]];
    if (old.status === "running") return;
    round.vote = null;
    round.answers[round.order[at]] = this.ask(old.mode, old.source, old.settings);
    this.go([round.answers[round.order[at]]]);
  }

  stop() {
    this.sides.stop();
    this.showControls();
  }

  clear() {
    this.sides.stop();
    this.sides.leave();
    this.input.value = "";
    this.change({ text: "", round: null });
    this.draw();
    this.input.focus({ preventScroll: true });
  }

  /** which: left, right, tie or neither. */
  async vote(which) {
    const { round } = this.state;
    if (!this.votable()) return;
    const place = PLACES.indexOf(which);
    const choice = place < 0 ? which : round.order[place];
    const [first, second] = [round.answers.first.run, round.answers.second.run];
    // A vote that is changed after the settings were shown is not blind any more.
    const blind = round.blind && round.vote === null;
    let stored = null;
    try {
      const reply = await fetch(new URL("api/votes", document.baseURI), {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ first, second, choice, blind }),
      });
      // Read to its end even when it isn't needed: an unread answer keeps its connection busy.
      const body = await reply.json();
      if (reply.ok) stored = body.choice;
    } catch (problem) {
      console.warn("Can't send a vote:", problem.message);
    }
    if (stored === null) return notice(text("compare.vote.failed"));
    round.vote = stored;
    this.remember();
    this.draw();
  }

  /** Both answers are there. */
  votable() {
    const all = this.answers();
    return all.length === 2 && all.every((answer) => answer.run && !answer.unlogged && (answer.status === "done" || answer.status === "cancelled"));
  }

  heard(answer, event) {
    const { round } = this.state;
    const at = this.answers().indexOf(answer);
    if (at < 0) return;
    round.conversation = this.sides.conversation;
    if (answer.status !== "running") {
      const words = { side: text(`compare.${PLACES[at]}`), text: answer.text };
      this.live.textContent = answer.status === "error" ? "" : text("compare.finished", words);
    }
    if (event.type !== "delta" && event.type !== "beams") this.remember();
    this.showControls();
    this.paints[PLACES[at]]();
  }

  remember() {
    memory.write(MEMORY, this.state);
  }

  // Showing

  draw() {
    this.columns.forEach((_, at) => this.drawColumn(at));
    this.showControls();
  }

  drawColumn(at) {
    const { round } = this.state;
    this.columnRow.hidden = !round;
    if (!round) return;
    const name = round.order[at];
    const answer = round.answers[name];
    const { node, title, settings, body, below } = this.columns[at];
    const running = answer.status === "running";
    const shown = !round.blind || round.vote !== null; // which settings this side has
    node.dataset.status = answer.status;
    node.setAttribute("aria-busy", String(running));
    const place = element("span", { class: "glm-wide" }, text(`compare.${PLACES[at]}`));
    const narrow = element("span", { class: "glm-narrow" }, text(`compare.${PLACES[at]}.narrow`));
    title.replaceChildren(place, narrow);
    if (shown) title.append(" · ", text(`compare.${name}`));
    settings.hidden = !shown;
    settings.textContent = shown ? said(answer.settings) : "";
    const words = answer.text || (answer.beams[0]?.text ?? "");
    this.drawBody(body, answer, words);
    below.replaceChildren();
    if (running && !words) below.append(element("p", { class: "glm-waiting" }, waitingText(answer)));
    if (running) return;
    if (answer.status === "error") below.append(errorBox(answer, () => this.again(at)));
    const actions = element("div", { class: "glm-actions" });
    if (words.trim()) actions.append(copyButton("copy", () => (answer.mode === "generate" ? prompt(answer.source) + behind(answer.source, words) : words)));
    // The seed stands among the settings; the speed could give a side away.
    if (shown) actions.append(facts({ ...answer, meta: { ...answer.meta, seed: null } }));
    below.append(actions);
  }

  drawBody(body, answer, words) {
    const growing = answer.status === "running" && words ? " glm-growing" : "";
    body.classList.toggle("glm-body", answer.mode === "chat");
    if (answer.mode === "chat") {
      if (words) return markdown(body, words);
      body.glmBlocks = null;
      const empty = answer.status === "done" ? element("p", { class: "glm-detail" }, text("chat.empty.answer")) : "";
      return body.replaceChildren(empty);
    }
    body.glmBlocks = null;
    const given = (part) => element("span", { class: "glm-given" }, part);
    const added = (part, more = "") => element("mark", { class: `glm-added${more}` }, part);
    if (answer.mode === "generate") {
      return body.replaceChildren(given(prompt(answer.source)), added(behind(answer.source, words), growing));
    }
    // An answer from the server's records comes as a whole, without its blanks one by one.
    if (answer.status === "done" && answer.blanks.some((blank) => !blank.begun)) return body.replaceChildren(answer.text);
    const pieces = sequence(answer).map((part) => {
      if (!part.blank) return given(part.text);
      if (!part.blank.begun) return element("span", { class: "glm-blank" }, part.blank.mask);
      return added(part.text, part.blank.done ? "" : growing);
    });
    return body.replaceChildren(...pieces);
  }

  showControls() {
    const { running } = this.sides;
    const { round } = this.state;
    const focused = [this.startButton, this.stopButton].includes(document.activeElement);
    this.startButton.hidden = running;
    this.startButton.disabled = !this.input.value.trim();
    this.stopButton.hidden = !running;
    // Not `disabled`: the button would lose the keyboard's focus in the middle.
    this.stopButton.setAttribute("aria-disabled", String(this.sides.stopping));
    bind(this.stopButton.lastChild, this.sides.stopping ? "stopping" : "stop");
    this.clearButton.hidden = !this.input.value && !round;
    this.masks.hidden = this.state.mode !== "fill";
    bind(this.input, `compare.placeholder.${this.state.mode}`, {}, "placeholder");
    this.votes.hidden = !this.votable();
    for (const [which, node] of Object.entries(this.voteButtons)) {
      const place = PLACES.indexOf(which);
      const choice = place < 0 ? which : round?.order[place];
      node.setAttribute("aria-pressed", String(Boolean(round?.vote) && round.vote === choice));
    }
    this.voted.textContent = !round?.vote ? "" : text(round.blind ? "compare.voted.blind" : "compare.voted");
    if (focused) (running ? this.stopButton : this.startButton).focus({ preventScroll: true });
  }
}
