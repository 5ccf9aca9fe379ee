// Parts of the chat that know nothing of its state: the switch between branches, the form to edit a question, the prompt format.

import { button } from "./answer.js";
import { element } from "./dom.js";
import { bind, onLanguage, text } from "./language.js";

/** "2 / 3" with buttons that turn to the other versions of the message `at`; null where there is one only. all: the indices of
 *  the versions; turn(step) shows the one before (-1) or behind (1). */
export function branchTurner(all, at, turn) {
  if (all.length < 2) return null;
  const place = all.indexOf(at);
  const back = button("back", "chat.branch.back", () => turn(-1), { class: "glm-quiet glm-turn" });
  const on = button("on", "chat.branch.on", () => turn(1), { class: "glm-quiet glm-turn" });
  back.disabled = place === 0;
  on.disabled = place === all.length - 1;
  const count = element("span", { class: "glm-turn-count" }, `${place + 1} / ${all.length}`);
  const group = element("span", { class: "glm-turner", role: "group" }, back, count, on);
  return bind(group, "chat.branch", { place: place + 1, count: all.length }, "label");
}

/** A question as a form: send(content) for the changed one, leave() for none. The old question and its answer stay. */
export function questionEditor(content, send, leave) {
  const area = element("textarea", { id: "glm-chat-edit", class: "glm-edit-text", rows: "3", dir: "auto" });
  area.value = content;
  bind(area, "chat.edit", {}, "label");
  area.addEventListener("keydown", (event) => {
    if (event.isComposing || event.keyCode === 229) return; // as in the chat's own field
    if (event.key === "Escape") leave();
    else if (event.key === "Enter" && !event.shiftKey) send(area.value);
    else return;
    event.preventDefault();
  });
  const done = button("send", "send", () => send(area.value), { class: "glm-button", id: "glm-chat-edit-send" }, true);
  const cancel = button("close", "cancel", leave, { class: "glm-button", id: "glm-chat-edit-cancel" }, true);
  const hint = bind(element("p", { class: "glm-detail" }), "chat.edit.help");
  return element("div", { class: "glm-editing" }, area, hint, element("div", { class: "glm-actions" }, done, cancel));
}

/** How the loaded model's config.json writes a conversation as one text, folded up until somebody asks. */
export class PromptFormat {
  constructor() {
    this.format = null; // {name, user, assistant, answer}
    this.said = element("p", { class: "glm-detail" });
    this.shown = element("pre", { class: "glm-format-text", tabindex: "0" });
    const attributes = { class: "glm-format", id: "glm-chat-format", hidden: true };
    this.node = element("details", attributes, bind(element("summary"), "chat.format"), this.said, this.shown);
    onLanguage(() => this.show(this.format));
  }

  /** format: the loaded model's own; null, which hides it, for a model without one. */
  show(format) {
    this.format = format;
    this.node.hidden = !format;
    if (!format) return;
    const { name, user, assistant, answer } = format;
    const written = [
      user.replace("{content}", text("chat.format.question")),
      assistant.replace("{content}", text("chat.format.answer")),
      user.replace("{content}", text("chat.format.next")),
    ];
    this.said.textContent = text("chat.format.help", { name });
    this.shown.textContent = `${written.join("")}${answer}[gMASK]`;
  }
}
