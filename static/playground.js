// The page's own part inside the Gradio shell. Gradio lays out the page, its tabs and its settings; it imports this
// module from each gr.HTML's js_on_load and from the client-side (`js=`) listeners of its components
// (app/ui/playground.py), so the module is loaded once and everything below happens in the browser.

import { Canvas } from "./canvas.js";
import { Chat } from "./chat.js";
import { element, memory } from "./dom.js";
import { bind, currentLanguage, languages, onLanguage, setLanguage, show, text, translate } from "./language.js";
import { Connection } from "./socket.js";

const SETTINGS = "glm.settings";
const TAB = "glm.tab";
const POLL = 2000; // ms between looks while the model is not ready
const base = new URL("./", document.baseURI);
const address = new URL("ws", base);
address.protocol = address.protocol === "https:" ? "wss:" : "ws:";

// Read before anything is written: the components report their first values before they take up the remembered ones.
const remembered = { settings: readSettings(), tab: memory.read(TAB) };

let connection = null;
let panes = null;
let settings = {}; // what the Gradio components show: {temperature, top_k, ...}
let info = null; // the answer of /api/info
let longest = null; // tokens the loaded model allows an answer
let refresh = () => {}; // makes Gradio ask for `updates` again
let pill = null;
let polling = null;

/** The panes by their names in app/ui/playground.py. */
function startPanes() {
  panes ??= { chat: new Chat(connected(), parameters), blanks: new Canvas(connected(), parameters) };
  return panes;
}

function connected() {
  connection ??= new Connection(address.href);
  return connection;
}

/** The sampling parameters of a request; kind is "chat" or "fill". */
function parameters(kind) {
  const { alternatives, seed, max_new_tokens: longestAnswer, ...chosen } = settings;
  if (longestAnswer > 0) chosen.max_new_tokens = longestAnswer; // else as suits the kind of blank
  // What is no number goes as it is: the server then says what is wrong with it.
  if (seed?.trim()) chosen.seed = /^\d{1,15}$/.test(seed.trim()) ? Number(seed) : seed;
  if (kind === "fill" && alternatives > 1) chosen.alternatives = alternatives;
  return chosen;
}

// Mounting, called from js_on_load

/** trigger() makes Gradio ask for `updates`: the language or the model's limits changed. */
export function mountHeader(root, trigger) {
  refresh = trigger;
  pill = element("span", { class: "glm-pill", id: "glm-status", role: "status", "aria-live": "polite" });
  const model = element("span", { class: "glm-model", id: "glm-model" });
  const choices = Object.entries(languages).map(([code, name]) =>
    element("button", { type: "button", class: "glm-language", id: `glm-language-${code}`, lang: code, click: () => setLanguage(code) }, name),
  );
  const group = bind(element("div", { class: "glm-languages", id: "glm-language", role: "group" }, ...choices), "language", {}, "label");
  root.replaceChildren(
    element(
      "header",
      { class: "glm-header", id: "glm-header" },
      element(
        "div",
        { class: "glm-heading" },
        bind(element("h1", { id: "glm-title" }), "title"),
        bind(element("p", { class: "glm-tagline" }), "tagline"),
      ),
      element("div", { class: "glm-side" }, model, pill, group),
      bind(element("p", { class: "glm-review", id: "glm-review-notice" }), "notice"),
    ),
  );
  const mark = () => {
    for (const [at, code] of Object.keys(languages).entries()) choices[at].setAttribute("aria-pressed", String(code === currentLanguage()));
  };
  show();
  mark();
  onLanguage(() => {
    mark();
    showStatus();
    refresh();
  });
  startPanes();
  connected().onError(look); // the model may be gone, or back
  connected().onState(() => {
    showStatus();
    look();
  });
}

/** name: of one of PANES. Each pane lives from the start, so that its unfinished run is taken up at once. */
export function mountPane(name, root) {
  const pane = startPanes()[name];
  root.replaceChildren(pane.section);
  translate(pane.section);
  pane.attached?.();
}

// The state of connection and model

async function look() {
  clearTimeout(polling);
  try {
    const answer = await fetch(new URL("api/info", base), { cache: "no-store" });
    info = answer.ok ? await answer.json() : null;
  } catch (problem) {
    info = null; // no connection: the pill says so already
    console.warn("Can't ask for the server's state:", problem.message);
  }
  showStatus();
  if (info?.max_new_tokens && info.max_new_tokens !== longest) {
    longest = info.max_new_tokens;
    refresh();
  }
  if (!info?.ready) polling = setTimeout(look, POLL);
}

function showStatus() {
  if (!pill) return;
  let state = { connecting: "connecting", reconnecting: "reconnecting", open: "ready" }[connected().state];
  if (state === "ready" && info && !info.ready) state = info.state === "failed" ? "down" : "loading";
  pill.dataset.state = state;
  bind(pill, `status.${state}`);
  const model = document.getElementById("glm-model");
  if (info?.model) bind(model, "model", { model: info.model });
}

// The settings: Gradio components, listened to in the browser

/** Takes the values of the settings components, in the order of `names`, and remembers them. */
export function takeSettings(names, values) {
  settings = Object.fromEntries(names.map((name, at) => [name, values[at]]));
  try {
    localStorage.setItem(SETTINGS, JSON.stringify(settings));
  } catch (problem) {
    console.warn("Can't remember the settings:", problem.message);
  }
}

/** Remembers the open tab, for a reload. */
export function takeTab(name) {
  memory.write(TAB, name);
}

/** Updates for the components with texts, in the order of `parts`: [{name, label, info, choices}] with text keys.
 *  With `first`, the remembered values of the settings and the open tab too. */
export function updates(parts, first) {
  return parts.map(({ name, label, info: help, choices }) => {
    const update = { __type__: "update" };
    if (label) update.label = text(label);
    if (help) update.info = text(help);
    if (choices) update.choices = choices.map(([key, value]) => [text(key), value]);
    if (name === "max_new_tokens" && longest) {
      update.maximum = longest;
      if (settings.max_new_tokens > longest) update.value = longest;
    }
    if (first && name in remembered.settings) update.value = remembered.settings[name];
    if (first && name === "tabs" && remembered.tab) update.selected = remembered.tab;
    return update;
  });
}

function readSettings() {
  try {
    return JSON.parse(localStorage.getItem(SETTINGS)) ?? {};
  } catch (problem) {
    console.warn("Can't read the remembered settings:", problem.message);
    return {};
  }
}
