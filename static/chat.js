// The chat pane. Its state is plain data in sessionStorage: {conversation, messages, leaf, draft}, a tree of messages
// (branches.js); a message is {role: "user", content} or {role: "assistant", content, ...answer}. After a reload the pane
// draws that state and takes up the answer that was still running, so nothing is lost and nothing comes twice.

import { book, button, copyButton, errorBox, exampleButton, facts, newAnswer, storedAnswer, opinion, waitingText } from "./answer.js";
import { add, branch, choose, emptyTree, fromRuns, history, siblings } from "./branches.js";
import { Composer } from "./composer.js";
import { branchTurner, PromptFormat, questionEditor } from "./chat_parts.js";
import { element, memory, newId, onceAFrame } from "./dom.js";
import { marked } from "./keeping.js";
import { bind, examples, onLanguage, text } from "./language.js";
import { render as markdown } from "./markdown.js";
import { Meter } from "./meter.js";
import { openShare } from "./share_dialog.js";

const MEMORY = "glm.chat";

export class Chat {
  /** connection: socket.Connection; parameters(kind): the sampling settings. The pane is `section`, to be put anywhere;
   *  it works before that too, since Gradio draws a tab only when it is first opened. */
  constructor(connection, parameters) {
    this.connection = connection;
    this.parameters = parameters;
    const kept = memory.read(MEMORY);
    this.state = kept && "leaf" in kept ? kept : newState();
    this.running = null; // {run, message, at} while an answer is being made
    this.editing = null; // index of the question that is being edited
    this.frames = new Map(); // index of a shown message -> its nodes
    this.paint = onceAFrame(() => this.running && this.drawAnswer(this.running.at));
    this.build();
    this.draw();
    onLanguage(() => this.draw());
    document.addEventListener("glm-deleted", ({ detail }) => detail === this.state.conversation && this.clear());
    this.takeUp();
  }

  /** Follows the answer that was still running, after a reload or when a conversation is opened. */
  takeUp() {
    const at = this.state.messages.findLastIndex((message) => message.status === "running");
    if (at < 0) return;
    const message = this.state.messages[at];
    // With the server's id every event comes again from the first; the text is built anew, not appended to.
    message.content = "";
    this.follow(at, (listener) => this.connection.take(message.request ?? null, message.run, listener));
  }

  build() {
    this.log = element("div", { class: "glm-log", id: "glm-chat-log", role: "log", "aria-live": "off", tabindex: "0" });
    bind(this.log, "chat.label", {}, "label");
    this.live = element("p", { class: "glm-hidden", id: "glm-chat-live", "aria-live": "polite" });
    this.composer = new Composer({
      text: this.state.draft,
      submit: (content) => this.ask(content),
      stop: () => this.stop(),
      written: (draft) => {
        this.state.draft = draft;
        memory.write(MEMORY, this.state);
        this.meter.changed();
      },
    });
    this.meter = new Meter("glm-chat-meter", () => this.next(), "chat.rule");
    this.newButton = button("plus", "chat.new", () => this.clear(), { class: "glm-button", id: "glm-chat-new" }, true);
    this.shareButton = button("share", "share", () => this.share(), { class: "glm-button", id: "glm-chat-share" }, true);
    this.format = new PromptFormat();
    const keys = bind(element("span", { class: "glm-keys" }), "chat.keys");
    const below = element("div", { class: "glm-below" }, keys, this.format.node, this.shareButton, this.newButton);
    this.section = element("section", { class: "glm-chat", id: "glm-chat" }, this.log, this.live, this.composer.node, this.meter.node, below);
  }

  /** The loaded model's own chat format, {name, user, assistant, answer} of its config.json; null: it has none. */
  showFormat(format) {
    this.format.show(format);
  }

  /** To be called when the section has its place in the page. */
  attached() {
    // The pane ends where the window ends: its height depends on how much stands above it.
    const fit = () => {
      const top = this.section.getBoundingClientRect().top + scrollY;
      if (this.section.offsetParent) this.section.style.setProperty("--glm-top", `${Math.round(top)}px`);
    };
    new ResizeObserver(fit).observe(document.body);
    fit();
    this.composer.grow();
    this.log.scrollTop = this.log.scrollHeight;
  }

  // Doing

  ask(content) {
    if (!content.trim() || this.running) return;
    this.composer.text = this.state.draft = "";
    this.editing = null;
    this.answer(add(this.state, this.state.leaf, { role: "user", content: content.trim() }));
    this.composer.focus();
  }

  /** What would be sent for the draft, for the meter; null while there is none. */
  next() {
    const draft = this.composer.text.trim();
    if (!draft) return null;
    const messages = history(this.state, this.state.leaf);
    if (messages.at(-1)?.role === "user") messages.pop(); // its answer failed
    messages.push({ role: "user", content: draft });
    return { type: "chat", messages, parameters: this.parameters("chat") };
  }

  /** Asks for an answer to the question at `at`, whose branch is shown; it comes into the place of the answer at `failed`, if
   *  that is given, of which nothing had come. */
  answer(at, failed = null) {
    // The earlier rounds are sent along: what was not kept of them must not be kept with this one.
    const unlogged = branch(this.state).some((one) => this.state.messages[one].unlogged);
    const asked = { type: "chat", id: newId(), messages: history(this.state, at), parameters: this.parameters("chat") };
    const request = marked(asked, unlogged);
    if (this.state.conversation) request.conversation = this.state.conversation;
    const message = { role: "assistant", content: "", ...newAnswer(request) };
    const mine = failed ?? add(this.state, at, message);
    if (failed !== null) this.state.messages[mine] = { parent: at, ...message };
    this.follow(mine, (listener) => this.connection.start(request, listener));
    this.draw();
    this.log.scrollTop = this.log.scrollHeight;
  }

  /** Another answer to the question before the answer at `at`, beside it. */
  again(at) {
    const { parent, status, content } = this.state.messages[at];
    if (!this.running) this.answer(parent, status === "error" && !content ? at : null);
  }

  /** Puts another question into the place of the one at `at`: a branch of its own. */
  edit(at, content) {
    if (!content.trim() || this.running) return;
    this.editing = null;
    this.answer(add(this.state, this.state.messages[at].parent, { role: "user", content: content.trim() }));
    this.composer.focus();
  }

  /** Shows the branch `step` before or behind that of the message at `at`. */
  turn(at, step) {
    const all = siblings(this.state, at);
    const other = all[all.indexOf(at) + step];
    if (other === undefined) return;
    choose(this.state, other);
    this.editing = null;
    memory.write(MEMORY, this.state);
    this.draw();
    // The same button of the other version, or at an end the one that leads back.
    const [back, on] = this.frames.get(other).node.querySelectorAll(".glm-turn");
    const [same, opposite] = step < 0 ? [back, on] : [on, back];
    (same.disabled ? opposite : same).focus({ preventScroll: true });
  }

  stop() {
    this.running?.run.cancel();
    this.showControls();
  }

  share() {
    const shown = branch(this.state).map((at) => this.state.messages[at]);
    const runs = shown.filter((message) => message.run && !message.unlogged).map((message) => message.run);
    const first = this.state.messages[branch(this.state)[0]];
    openShare({ kind: "chat", runs, text: null, title: first?.content.slice(0, 80) ?? "" });
  }

  clear() {
    this.running?.run.cancel();
    this.show(newState());
    this.composer.focus();
  }

  /** Shows a conversation of the server's record: the answer of GET /api/conversations/ID. */
  open(conversation) {
    const tree = fromRuns(conversation.runs, storedAnswer);
    this.show({ ...newState(), ...tree, conversation: conversation.id });
    this.takeUp();
  }

  /** Goes on from messages that were shared by somebody: [{role, content}]. */
  load({ messages }) {
    const tree = emptyTree();
    for (const { role, content } of messages) {
      add(tree, tree.leaf, role === "user" ? { role, content } : { role, content, ...newAnswer(null), status: "done" });
    }
    this.show({ ...newState(), ...tree });
  }

  show(state) {
    this.running = null;
    this.editing = null;
    this.state = state;
    this.composer.text = state.draft;
    memory.write(MEMORY, this.state);
    this.draw();
    this.meter.changed();
  }

  follow(at, begin) {
    const mine = { run: null, message: this.state.messages[at], at };
    this.running = mine;
    mine.run = begin((event) => {
      if (this.running === mine) this.handle(mine, event);
    });
    memory.write(MEMORY, this.state);
    this.showControls();
  }

  handle(mine, event) {
    const { message } = mine;
    book(message, event);
    if (event.type === "accepted") this.state.conversation = event.conversation ?? this.state.conversation;
    // A worker that died before the first token was shown starts the same answer again.
    else if (event.type === "started") message.content = "";
    else if (event.type === "delta" && !event.alternative) message.content += event.text;
    else if (event.type === "done") message.content = event.text;
    else if (event.type === "cancelled") message.content = event.text || message.content;
    else if (event.type === "error") message.content ||= event.text ?? "";
    if (message.status !== "running") {
      this.running = null;
      delete message.request; // only needed to take an unfinished run up again
      this.live.textContent = message.status === "error" ? "" : `${text("answered")} ${message.content}`;
      // Every branch's buttons depend on whether something runs.
      this.draw(false);
      this.meter.changed();
    }
    if (event.type !== "delta" || !message.content) memory.write(MEMORY, this.state);
    this.paint();
  }

  // Showing

  draw(toEnd = true) {
    const { scrollTop } = this.log;
    const atBottom = this.atBottom();
    const focused = this.log.contains(document.activeElement) ? document.activeElement.id : null;
    this.log.replaceChildren();
    this.frames.clear();
    const shown = branch(this.state);
    if (!shown.length) this.log.append(this.emptyState());
    for (const at of shown) {
      this.log.append(this.frame(at));
      if (this.state.messages[at].role === "assistant") this.drawAnswer(at);
    }
    this.showControls();
    this.log.scrollTop = toEnd || atBottom ? this.log.scrollHeight : scrollTop;
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  }

  atBottom() {
    return this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 60;
  }

  emptyState() {
    const list = element("div", { class: "glm-examples", id: "glm-chat-examples" });
    examples("chat").forEach((example, at) => {
      const attributes = { id: `glm-chat-example-${at}`, click: () => this.ask(example.text) };
      list.append(exampleButton(example, attributes));
    });
    return element("div", { class: "glm-empty" }, bind(element("p"), "chat.empty"), list);
  }

  frame(at) {
    const message = this.state.messages[at];
    const body = element("div", { class: "glm-body", dir: "auto" });
    const node = element("article", { class: `glm-message glm-${message.role}` }, body);
    this.frames.set(at, { body, node });
    if (message.role === "user") {
      bind(node, "chat.you", {}, "label");
      if (this.editing === at) {
        const leave = () => this.stopEditing(at);
        node.replaceChildren(questionEditor(message.content, (content) => this.edit(at, content), leave));
      } else {
        body.textContent = message.content;
        node.append(this.userFoot(at));
      }
    }
    return node;
  }

  userFoot(at) {
    const change = button("edit", "chat.edit", () => this.startEditing(at), { class: "glm-quiet glm-edit", id: `glm-edit-${at}` });
    change.disabled = Boolean(this.running);
    return element("div", { class: "glm-foot glm-actions" }, this.turner(at), change);
  }

  startEditing(at) {
    this.editing = at;
    this.draw(false);
    const area = document.getElementById("glm-chat-edit");
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }

  /** Leaves the question as it was. */
  stopEditing(at) {
    this.editing = null;
    this.draw(false);
    document.getElementById(`glm-edit-${at}`)?.focus({ preventScroll: true });
  }

  turner(at) {
    return branchTurner(siblings(this.state, at), at, (step) => this.turn(at, step));
  }

  drawAnswer(at) {
    const message = this.state.messages[at];
    const frame = this.frames.get(at);
    if (!frame || message?.role !== "assistant") return;
    const atBottom = this.atBottom();
    const { body, node } = frame;
    node.setAttribute("aria-busy", String(message.status === "running"));
    node.dataset.status = message.status;
    if (message.content) markdown(body, message.content);
    else {
      body.glmBlocks = null;
      const waits = message.status === "running";
      const empty = waits ? waitingText(message) : message.status === "done" ? text("chat.empty.answer") : "";
      body.replaceChildren(...(empty ? [element("p", { class: waits ? "glm-waiting" : "glm-detail" }, empty)] : []));
    }
    if (message.status === "running") node.querySelector(".glm-foot")?.remove();
    else if (!node.querySelector(".glm-foot")) node.append(this.foot(at));
    if (atBottom) this.log.scrollTop = this.log.scrollHeight;
  }

  foot(at) {
    const message = this.state.messages[at];
    const last = at === this.state.leaf;
    const foot = element("div", { class: "glm-foot" });
    if (message.status === "error") foot.append(errorBox(message, last ? () => this.again(at) : null));
    const actions = element("div", { class: "glm-actions" });
    const turner = this.turner(at);
    if (turner) actions.append(turner);
    if (message.content) actions.append(copyButton("copy", () => message.content, { class: "glm-quiet glm-copy" }));
    if (last && message.status !== "error") {
      const more = button("again", "regenerate", () => this.again(at), { id: "glm-chat-again" });
      more.disabled = Boolean(this.running);
      actions.append(more);
    }
    if (message.run && message.content) {
      actions.append(...opinion(message, foot, () => memory.write(MEMORY, this.state)));
    }
    actions.append(facts(message));
    foot.prepend(...foot.querySelectorAll(".glm-error"), actions);
    return foot;
  }

  showControls() {
    const running = Boolean(this.running);
    this.composer.show(running, Boolean(this.running?.run?.cancelled));
    this.newButton.hidden = !this.state.messages.length;
    this.shareButton.hidden = running || !this.state.messages.some((message) => message.run && !message.unlogged && message.status !== "running");
  }
}

const newState = () => ({ conversation: null, ...emptyTree(), draft: "" });
