// What a shared page shows, drawn from its content (app/shared_content.py); used by the page itself and by the preview before
// publishing. Everything is text or sanitised Markdown, nothing here asks the server.

import { element } from "./dom.js";
import { bind, text } from "./language.js";
import { render as markdown } from "./markdown.js";

const MASK = /(\[MASK\]|\[sMASK\]|\[gMASK\])/;
const COLOURS = 6; // classes glm-fill-0 ... in shared_view.css

/** The content as one node. below(item): what to put below one run's answer, a node or null. */
export function view(content, below = () => null) {
  const root = element("div", { class: "glm-shared" });
  if (content.items.some((item) => item.redacted)) root.append(remark("shared.hidden"));
  if (content.kind === "chat") root.append(...chat(content.items, below));
  else root.append(...texts(content, below));
  return root;
}

const remark = (key, values) => bind(element("p", { class: "glm-shared-remark" }), key, values);

// Chats

function chat(items, below) {
  const nodes = [];
  let told = []; // the messages that are shown so far
  for (const item of items) {
    const messages = Array.isArray(item.prompt) ? item.prompt : [{ role: "user", content: item.prompt }];
    let same = 0;
    while (same < told.length && same < messages.length && equal(told[same], messages[same])) same += 1;
    // An answer to an earlier question: what stands above it isn't what led to it.
    if (same < told.length) nodes.push(remark("shared.branch"));
    nodes.push(...messages.slice(Math.min(same, messages.length - 1)).map((one) => message(one.role, one.content)));
    const node = message("assistant", item.output ?? "");
    const more = below(item);
    if (more) node.append(more);
    nodes.push(node);
    told = [...messages, { role: "assistant", content: item.output }];
  }
  return nodes;
}

const equal = (one, other) => one.role === other.role && one.content === other.content;

function message(role, content) {
  const node = element("article", { class: `glm-shared-message glm-shared-${role}` });
  bind(node, role === "user" ? "shared.question" : "shared.answer", {}, "label");
  node.append(body(role === "user" ? "plain" : "markdown", content));
  return node;
}

// Texts with blanks, and texts that go on

function texts(content, below) {
  const { items } = content;
  const nodes = [];
  if (content.edited) {
    nodes.push(element("article", { class: "glm-shared-card" }, body("plain", content.text)), remark("shared.edited"));
  }
  items.forEach((item, at) => {
    if (items.length > 1) nodes.push(bind(element("h2", { class: "glm-shared-part" }), "shared.part", { number: at + 1, count: items.length }));
    else if (content.edited) nodes.push(bind(element("h2", { class: "glm-shared-part" }), "shared.original"));
    const node = element("article", { class: "glm-shared-card" }, answer(item), others(item));
    const more = below(item);
    if (more) node.append(more);
    nodes.push(node);
  });
  return nodes;
}

/** A run's text: Markdown for a chat, else the whole text with what the model wrote in colour. */
export function answer(item) {
  if (item.mode === "chat") return body("markdown", item.output ?? "");
  const words = fills(item);
  const node = body("plain", "");
  node.replaceChildren(...colour(item.prompt, words));
  // Where the composition isn't what the server made of it, the server's stands, without colours.
  const whole = item.mode !== "generate" && item.output !== null ? item.output : null;
  if (whole !== null && !item.redacted && node.textContent !== whole) node.textContent = whole;
  return node;
}

/** What stands in each blank of a run, by its index; a text without one has one at its end. */
function fills(item) {
  const words = new Map(item.blanks.map((blank) => [blank.index, blank.text]));
  if (item.mode === "generate") words.set(0, item.output ?? "");
  return words;
}

/** Nodes of a text with words (a Map: index -> text) in its blanks; a blank without words stays a mask. */
export function colour(prompt, words) {
  const parts = prompt.split(MASK);
  if (parts.length === 1) parts.push("", "");
  let before = "";
  return parts.map((part, at) => {
    if (at % 2 === 0) {
      before += part;
      return part;
    }
    const index = (at - 1) / 2;
    const fill = words.get(index);
    if (fill === undefined) {
      before += part;
      return part ? element("span", { class: "glm-shared-blank" }, part) : "";
    }
    // A fill's leading space goes where one stands already, or where the text begins.
    const shown = fill.startsWith(" ") && (!before || /\s$/.test(before)) ? fill.slice(1) : fill;
    before += shown;
    return element("mark", { class: `glm-shared-fill glm-shared-fill-${index % COLOURS}` }, shown);
  });
}

/** The choices that the model had for each blank, folded; null if there are none. */
function others(item) {
  const rows = item.blanks
    .map((blank) => ({ index: blank.index, words: [...new Set((blank.alternatives ?? []).map((one) => one.text.trim()))] }))
    .filter((row) => row.words.length > 1);
  if (!rows.length) return null;
  const list = element("ol", { class: "glm-shared-choices" });
  for (const { index, words } of rows) {
    const choices = words.map((one) => element("li", { dir: "auto" }, one || text("blanks.nothing")));
    const title = bind(element("span", { class: "glm-shared-label" }), "shared.blank", { number: index + 1 });
    list.append(element("li", {}, title, element("ul", {}, ...choices)));
  }
  return element("details", { class: "glm-shared-others" }, bind(element("summary"), "shared.choices"), list);
}

/** A block of text: "plain" as it is, "markdown" with its marks. */
export function body(kind, content) {
  const node = element("div", { class: `glm-shared-body glm-shared-${kind}`, dir: "auto" });
  if (!content) return node;
  if (kind === "markdown") markdown(node, content);
  else node.textContent = content;
  return node;
}
