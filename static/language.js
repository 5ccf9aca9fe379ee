// The page's language: follows the browser, can be switched, and is remembered in localStorage. Texts come with the
// page from app/ui/texts.py as JSON in <script id="glm-texts">. `bind` ties an element to a text, so that a
// switch only has to walk over the bound elements.

const CHOICE = "glm.language";
const data = JSON.parse(document.getElementById("glm-texts").textContent);
const listeners = new Set();
let language = remembered() ?? preferred();

function remembered() {
  try {
    const choice = localStorage.getItem(CHOICE);
    return choice in data.texts ? choice : null;
  } catch {
    return null; // storage is forbidden: the browser's own language is the best guess
  }
}

function preferred() {
  for (const wanted of navigator.languages ?? [navigator.language]) {
    const short = wanted.toLowerCase().split("-")[0];
    if (short in data.texts) return short;
  }
  return "en";
}

export const languages = data.languages;

/** The sampling presets by name: {temperature, top_k, ...}. */
export const presets = data.presets;

export const currentLanguage = () => language;

/** The text of `key` in the page's language, with {name}s replaced. */
export function text(key, values = {}) {
  const found = data.texts[language][key];
  if (found === undefined) throw new Error(`no text ${key}`);
  return found.replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all);
}

/** Whether there is such a text: for words that the server sends and a newer one may have more of. */
export const isText = (key) => key in data.texts[language];

/** The sentence for an error kind; a kind that this page does not know yet is an internal error to a person. */
export function errorText(kind) {
  return (data.errors[kind] ?? data.errors.internal)[language];
}

/** What a visitor can do about an error of this kind. */
export function errorStep(kind) {
  return (data.errors[kind] ?? data.errors.internal).step[language];
}

/** Examples of a pane in every language, the page's own first: [{language, text}]. */
export function examples(pane) {
  const order = [language, ...Object.keys(data.texts).filter((other) => other !== language)];
  return order.flatMap((one) => data.examples[pane][one].map((example) => ({ language: one, text: example })));
}

/** Ties a text to an element: as its content, or with `attribute` as that attribute. Returns the element. */
export function bind(node, key, values = {}, attribute = "content") {
  node.dataset[`text${attribute === "content" ? "" : "-" + attribute}`.replace(/-./g, (two) => two[1].toUpperCase())] =
    JSON.stringify([key, values]);
  node.classList.add("glm-text");
  apply(node);
  return node;
}

const ATTRIBUTES = { textLabel: "aria-label", textTitle: "title", textPlaceholder: "placeholder" };

function apply(node) {
  for (const [name, value] of Object.entries(node.dataset)) {
    if (name !== "text" && !(name in ATTRIBUTES)) continue;
    const [key, values] = JSON.parse(value);
    if (name === "text") node.textContent = text(key, values);
    else node.setAttribute(ATTRIBUTES[name], text(key, values));
  }
}

/** Calls `listener()` after each change of the language. */
export function onLanguage(listener) {
  listeners.add(listener);
}

export function setLanguage(choice) {
  if (!(choice in data.texts)) throw new Error(`no language ${choice}`);
  language = choice;
  try {
    localStorage.setItem(CHOICE, choice);
  } catch (problem) {
    console.warn("Can't remember the language:", problem.message);
  }
  show();
}

/** Puts the bound elements below `root` into the current language, for what was outside of the page at a change. */
export function translate(root) {
  root.querySelectorAll(".glm-text").forEach(apply);
}

/** Puts the page into the current language. */
export function show() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : language;
  document.title = text("title");
  translate(document);
  listeners.forEach((listener) => listener());
}
