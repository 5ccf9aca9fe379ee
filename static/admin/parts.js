// Pieces that all tabs are built from: buttons, dialogs, fields, tables, moments, errors. Styles are in admin.css.

import { copy, element, icon } from "../dom.js";
import { currentLanguage, text } from "../language.js";

export { element, icon };

/** A button with a text. kind: "" | "primary" | "danger" | "quiet" (an icon only, the text is its label). */
export function button(words, click, { kind = "", drawing = null, ...attributes } = {}) {
  const style = { primary: "glm-primary", danger: "glm-button glm-danger", quiet: "glm-quiet" }[kind] ?? "glm-button";
  const node = element("button", { type: "button", class: style, click, ...attributes });
  if (drawing) node.append(icon(drawing));
  if (kind === "quiet") {
    node.setAttribute("aria-label", words);
    node.title = words;
  } else node.append(words);
  return node;
}

/** A labelled input, with a sentence below it if there is one. input: an <input>, <select> or <textarea> with an id. */
export function field(words, input, help = null) {
  const node = element("div", { class: "glm-field" }, element("label", { for: input.id }, words), input);
  if (help) {
    const id = `${input.id}-help`;
    input.setAttribute("aria-describedby", id);
    node.append(element("p", { class: "glm-detail", id }, help));
  }
  return node;
}

/** A <select>. choices: [[value, words], …]. */
export function select(id, choices, value = null, attributes = {}) {
  const options = choices.map(([one, words]) => element("option", { value: one, selected: one === value }, words));
  return element("select", { id, ...attributes }, ...options);
}

/** A table; where the window is narrow, each row becomes a block with its heads beside the cells. rows: [[cell, …], …], a cell a
 *  node or a string. */
export function table(caption, heads, rows, attributes = {}) {
  const cell = (one, at) => element("td", { "data-head": heads[at] }, one ?? "");
  const head = element("thead", {}, element("tr", {}, ...heads.map((words) => element("th", { scope: "col" }, words))));
  const body = element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map(cell))));
  const whole = element("table", { class: "glm-table", ...attributes }, element("caption", { class: "glm-hidden" }, caption), head, body);
  return element("div", { class: "glm-scroll", tabindex: "0", role: "region", "aria-label": caption }, whole);
}

/** A small word with a border. tone: "" | "good" | "busy" | "bad". */
export const badge = (words, tone = "") => element("span", { class: `glm-badge ${tone && `glm-badge-${tone}`}` }, words);

/** What stands where there is nothing to show. */
export const empty = (words, ...more) => element("div", { class: "glm-empty" }, element("p", {}, words), ...more);

/** "Loading …", said to screen readers, too. */
export const loading = () => element("p", { class: "glm-loading", role: "status" }, text("shell.loading"));

/** A moment as <time>, in the page's language; its title has the second. iso: with a time zone. null gives a dash. */
export function moment(iso) {
  if (!iso) return element("span", {}, "–");
  const when = new Date(iso);
  const short = new Intl.DateTimeFormat(currentLanguage(), { dateStyle: "medium", timeStyle: "short" }).format(when);
  const long = new Intl.DateTimeFormat(currentLanguage(), { dateStyle: "full", timeStyle: "long" }).format(when);
  return element("time", { datetime: iso, title: long }, short);
}

/** A number in the page's language. */
export function number(value, digits = 0) {
  return new Intl.NumberFormat(currentLanguage(), { maximumFractionDigits: digits }).format(value);
}

/** The box for what was thrown: what it means, what to do, the server's words, and a button that tries again if `again` is given.
 *  What is no Refusal is a fault of the page's and thrown on. */
export function errorBox(problem, again = null) {
  if (!problem.kind) throw problem;
  const box = element("div", { class: "glm-error", role: "alert" }, element("p", {}, problem.message));
  if (problem.step) box.append(element("p", {}, problem.step));
  if (problem.detail && !problem.message.startsWith(problem.detail.slice(0, -1))) {
    box.append(element("p", { class: "glm-detail", lang: "en" }, problem.detail));
  }
  if (problem.retryAfter) box.append(element("p", { class: "glm-detail" }, text("shell.retry_after", { seconds: Math.ceil(problem.retryAfter) })));
  if (again) box.append(button(text("shell.retry"), again, { drawing: "again" }));
  return box;
}

/** Opens a modal dialog. Returns {node, body, close(), closed: a promise}. Esc and the cross close it unless `fixed`. */
export function dialog(title, body, { id = "glm-dialog", fixed = false, wide = false } = {}) {
  const before = document.activeElement;
  const head = element("div", { class: "glm-dialog-head" }, element("h2", { id: `${id}-title` }, title));
  const node = element("dialog", { class: `glm-dialog${wide ? " glm-wide" : ""}`, id, "aria-labelledby": `${id}-title` }, head, body);
  if (fixed) node.addEventListener("cancel", (event) => event.preventDefault());
  else head.append(button(text("shell.close"), () => node.close(), { kind: "quiet", drawing: "close" }));
  const closed = new Promise((resolve) => node.addEventListener("close", resolve, { once: true })).then(() => {
    node.remove();
    if (before?.isConnected) before.focus({ preventScroll: true });
  });
  document.body.append(node);
  node.showModal();
  return { node, body, closed, close: () => node.close() };
}

/** Asks before something that can't be undone. Resolves to true for yes. */
export async function confirmed(title, sentence, verb, { danger = true } = {}) {
  let answer = false;
  const yes = button(verb, () => ((answer = true), asked.close()), { kind: danger ? "danger" : "primary", id: "glm-confirm" });
  const no = button(text("shell.cancel"), () => asked.close());
  const asked = dialog(title, element("div", { class: "glm-stack" }, element("p", {}, sentence), element("div", { class: "glm-bar" }, yes, no)));
  await asked.closed;
  return answer;
}

/** A text in a field with a button that copies it: for links and keys that are shown once. */
export function copyable(id, words, value, say) {
  const input = element("input", { id, readonly: true, class: "glm-mono", value, focus: (event) => event.target.select() });
  const taken = async () => say(text((await copy(value)) ? "shell.copied" : "shell.copy.failed"));
  const row = element("div", { class: "glm-bar glm-copyable" }, input, button(text("shell.copy"), taken, { drawing: "copy" }));
  return element("div", { class: "glm-field" }, element("label", { for: id }, words), row);
}
