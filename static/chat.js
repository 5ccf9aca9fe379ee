// The chat pane. Its state is plain data in sessionStorage: {conversation, messages, draft}; a message is
// {role: "user", content} or {role: "assistant", content, ...answer}. After a reload the pane draws that state and
// takes up the answer that was still running, so nothing is lost and nothing comes twice.

import { book, button, copyButton, errorBox, exampleButton, facts, newAnswer, thumbs, waitingText } from "./answer.js";
import { element, icon, memory, newId, onceAFrame } from "./dom.js";
import { bind, examples, onLanguage, text } from "./language.js";
import { render as markdown } from "./markdown.js";

const MEMORY = "glm.chat";

export class Chat {
  /** connection: socket.Connection; parameters(kind): the sampling settings. The pane is `section`, to be put anywhere;
   *  it works before that too, since Gradio draws a tab only when it is first opened. */
  constructor(connection, parameters) {
    this.connection = connection;
    this.parameters = parameters;
    this.state = memory.read(MEMORY) ?? { conversation: null, messages: [], draft: "" };
    this.running = null; // {run, message} while an answer is being made
    this.paint = onceAFrame(() => this.drawAnswer(this.state.messages.length - 1));
    this.build();
    this.draw();
    onLanguage(() => this.draw());
    const last = this.state.messages.at(-1);
    if (last?.status === "running") {
      // With the server's id every event comes again from the first; the text is built anew, not appended to.
      last.content = "";
      this.follow(last, (listener) => connection.take(last.request, last.run, listener));
    }
  }

  build() {
    this.log = element("div", { class: "glm-log", id: "glm-chat-log", role: "log", "aria-live": "off", tabindex: "0" });
    bind(this.log, "chat.label", {}, "label");
    this.live = element("p", { class: "glm-hidden", id: "glm-chat-live", "aria-live": "polite" });
    this.input = element("textarea", { id: "glm-chat-input", rows: "1", autocomplete: "off", enterkeyhint: "send" });
    this.input.value = this.state.draft ?? "";
    bind(this.input, "chat.placeholder", {}, "placeholder");
    this.input.addEventListener("input", () => {
      this.grow();
      this.state.draft = this.input.value;
      memory.write(MEMORY, this.state);
    });
    this.input.addEventListener("keydown", (event) => {
      // While an input method composes, Enter chooses characters. Safari reports that Enter as key code 229.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
      event.preventDefault();
      if (!this.running) this.ask(this.input.value);
    });
    this.sendButton = button("send", "send", () => {}, { type: "submit", class: "glm-send", id: "glm-chat-send" });
    this.stopButton = button("stop", "stop", () => this.stop(), { class: "glm-send glm-stop", id: "glm-chat-stop" });
    this.form = element(
      "form",
      { class: "glm-composer", id: "glm-chat-form" },
      bind(element("label", { class: "glm-hidden", for: "glm-chat-input" }), "chat.message"),
      this.input,
      this.sendButton,
      this.stopButton,
    );
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.running) this.ask(this.input.value);
    });
    this.newButton = button("plus", "chat.new", () => this.clear(), { class: "glm-button", id: "glm-chat-new" }, true);
    const below = element("div", { class: "glm-below" }, bind(element("span", { class: "glm-keys" }), "chat.keys"), this.newButton);
    this.section = element("section", { class: "glm-chat", id: "glm-chat" }, this.log, this.live, this.form, below);
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
    this.grow();
    this.log.scrollTop = this.log.scrollHeight;
  }

  grow() {
    this.input.style.height = "auto";
    this.input.style.height = `${Math.min(this.input.scrollHeight + 2, 220)}px`;
  }

  // Doing

  ask(content) {
    if (!content.trim() || this.running) return;
    this.input.value = this.state.draft = "";
    this.grow();
    this.state.messages.push({ role: "user", content: content.trim() });
    this.answer();
    this.input.focus({ preventScroll: true });
  }

  /** Asks for an answer to the messages so far. */
  answer() {
    const request = { type: "chat", id: newId(), messages: history(this.state.messages), parameters: this.parameters("chat") };
    if (this.state.conversation) request.conversation = this.state.conversation;
    const message = { role: "assistant", content: "", ...newAnswer(request) };
    this.state.messages.push(message);
    this.follow(message, (listener) => this.connection.start(request, listener));
    this.draw();
    this.log.scrollTop = this.log.scrollHeight;
  }

  again() {
    if (this.running || this.state.messages.at(-1)?.role !== "assistant") return;
    this.state.messages.pop();
    this.answer();
  }

  stop() {
    this.running?.run.cancel();
    this.showControls();
  }

  clear() {
    this.running?.run.cancel();
    this.running = null;
    this.state = { conversation: null, messages: [], draft: "" };
    this.input.value = "";
    this.grow();
    memory.write(MEMORY, this.state);
    this.draw();
    this.input.focus({ preventScroll: true });
  }

  follow(message, begin) {
    const mine = { run: null, message };
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
      this.showControls();
    }
    if (event.type !== "delta" || !message.content) memory.write(MEMORY, this.state);
    this.paint();
  }

  // Showing

  draw() {
    this.log.replaceChildren();
    this.bodies = [];
    if (!this.state.messages.length) this.log.append(this.emptyState());
    this.state.messages.forEach((message, at) => {
      this.log.append(this.frame(message));
      if (message.role === "assistant") this.drawAnswer(at);
    });
    this.showControls();
    this.log.scrollTop = this.log.scrollHeight;
  }

  emptyState() {
    const list = element("div", { class: "glm-examples", id: "glm-chat-examples" });
    examples("chat").forEach((example, at) => {
      const attributes = { id: `glm-chat-example-${at}`, click: () => this.ask(example.text) };
      list.append(exampleButton(example, attributes));
    });
    return element("div", { class: "glm-empty" }, bind(element("p"), "chat.empty"), list);
  }

  frame(message) {
    const body = element("div", { class: "glm-body", dir: "auto" });
    const node = element("article", { class: `glm-message glm-${message.role}` }, body);
    this.bodies.push({ body, node });
    if (message.role === "user") {
      bind(node, "chat.you", {}, "label");
      body.textContent = message.content;
    }
    return node;
  }

  drawAnswer(at) {
    const message = this.state.messages[at];
    const frame = this.bodies[at];
    if (!frame || message?.role !== "assistant") return;
    const atBottom = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 60;
    const { body, node } = frame;
    const last = at === this.state.messages.length - 1;
    node.setAttribute("aria-busy", String(message.status === "running"));
    node.dataset.status = message.status;
    if (message.content) markdown(body, message.content);
    else {
      body.glmBlocks = null;
      const waits = message.status === "running";
      const empty = waits ? waitingText(message) : message.status === "done" ? text("chat.empty.answer") : "";
      body.replaceChildren(...(empty ? [element("p", { class: waits ? "glm-waiting" : "glm-detail" }, empty)] : []));
    }
    node.querySelector(".glm-foot")?.remove();
    if (message.status !== "running") node.append(this.foot(message, last));
    if (atBottom) this.log.scrollTop = this.log.scrollHeight;
  }

  foot(message, last) {
    const foot = element("div", { class: "glm-foot" });
    if (message.status === "error") foot.append(errorBox(message, last ? () => this.again() : null));
    const actions = element("div", { class: "glm-actions" });
    if (message.content) actions.append(copyButton("copy", () => message.content, { class: "glm-quiet glm-copy" }));
    if (last && message.status !== "error") {
      actions.append(button("again", "regenerate", () => this.again(), { id: "glm-chat-again" }));
    }
    if (message.run && message.content) {
      actions.append(...thumbs(message, () => memory.write(MEMORY, this.state)));
    }
    actions.append(element("span", { class: "glm-facts" }, facts(message)));
    foot.append(actions);
    return foot;
  }

  showControls() {
    const running = Boolean(this.running);
    const focused = [this.sendButton, this.stopButton].includes(document.activeElement);
    this.sendButton.hidden = running;
    this.stopButton.hidden = !running;
    this.stopButton.disabled = Boolean(this.running?.run?.cancelled);
    bind(this.stopButton, this.stopButton.disabled ? "stopping" : "stop", {}, "label");
    this.newButton.hidden = !this.state.messages.length;
    if (focused) (running ? this.stopButton : this.sendButton).focus({ preventScroll: true });
  }
}

/** The messages to send: rounds whose answer failed or is empty are left out, the last question stays. */
function history(messages) {
  const sent = [];
  messages.forEach((message, at) => {
    const { role, content } = message;
    const next = messages[at + 1];
    if (role === "user" && (!next || (next.role === "assistant" && next.content))) sent.push({ role, content });
    if (role === "assistant" && content && sent.at(-1)?.role === "user") sent.push({ role, content });
  });
  return sent;
}
