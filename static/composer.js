// The field of the chat with its button to send and the one to stop, which takes its place while an answer is made.

import { button } from "./answer.js";
import { element } from "./dom.js";
import { bind } from "./language.js";

const HIGHEST = 220; // px that the field grows to before it scrolls

export class Composer {
  /** submit(text): Enter or the button, never while an answer is made; stop(); written(text): after each change by the visitor. */
  constructor({ text, submit, stop, written }) {
    this.running = false;
    this.input = element("textarea", { id: "glm-chat-input", rows: "1", autocomplete: "off", enterkeyhint: "send" });
    this.input.value = text;
    bind(this.input, "chat.placeholder", {}, "placeholder");
    this.input.addEventListener("input", () => {
      this.grow();
      written(this.input.value);
    });
    const send = (event) => {
      event.preventDefault();
      if (!this.running) submit(this.input.value);
    };
    this.input.addEventListener("keydown", (event) => {
      // While an input method composes, Enter chooses characters. Safari reports that Enter as key code 229.
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) send(event);
    });
    this.sendButton = button("send", "send", () => {}, { type: "submit", class: "glm-send", id: "glm-chat-send" });
    this.stopButton = button("stop", "stop", stop, { class: "glm-send glm-stop", id: "glm-chat-stop" });
    const label = bind(element("label", { class: "glm-hidden", for: "glm-chat-input" }), "chat.message");
    const attributes = { class: "glm-composer", id: "glm-chat-form", submit: send };
    this.node = element("form", attributes, label, this.input, this.sendButton, this.stopButton);
  }

  get text() {
    return this.input.value;
  }

  set text(text) {
    this.input.value = text;
    this.grow();
  }

  focus() {
    this.input.focus({ preventScroll: true });
  }

  grow() {
    this.input.style.height = "auto";
    this.input.style.height = `${Math.min(this.input.scrollHeight + 2, HIGHEST)}px`;
  }

  /** Shows the button to send, or while `running` the one to stop; `stopping`: that was pressed. */
  show(running, stopping) {
    this.running = running;
    const focused = [this.sendButton, this.stopButton].includes(document.activeElement);
    this.sendButton.hidden = running;
    this.stopButton.hidden = !running;
    this.stopButton.disabled = stopping;
    bind(this.stopButton, stopping ? "stopping" : "stop", {}, "label");
    if (focused) (running ? this.stopButton : this.sendButton).focus({ preventScroll: true });
  }
}
