// The page's own part inside the Gradio shell. Gradio lays out the page, its tabs and its settings; it imports this
// module from each gr.HTML's js_on_load and from the client-side (`js=`) listeners of its components
// (app/ui/playground.py), so the module is loaded once and everything below happens in the browser.

import { Canvas } from "./canvas.js";
import { Chat } from "./chat.js";
import { Compare } from "./compare.js";
import { Complete } from "./complete.js";
import { button, notice } from "./answer.js";
import { element, memory } from "./dom.js";
import { History } from "./history.js";
import { learn } from "./keeping.js";
import { bind, currentLanguage, errorText, languages, onLanguage, setLanguage, show, text, translate } from "./language.js";
import { privacyLine } from "./privacy.js";
import { parameters as chosenParameters, reasons } from "./settings.js";
import { Connection } from "./socket.js";

const SETTINGS = "glm.settings";
const TAB = "glm.tab";
const POLL = 2000; // ms between looks while the model is not ready
const POLL_RECORD = 10000; // the same while the record of runs is not written
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
let off = {}; // components that can't have an effect now: {name: key of the reason}
let wanted = {}; // values that the page wants to put into components: {name: value}

/** The panes by their names in app/ui/playground.py. */
function startPanes() {
  panes ??= {
    chat: new Chat(connected(), parameters),
    blanks: new Canvas(connected(), parameters),
    complete: new Complete(connected(), parameters),
    compare: new Compare(connected(), parameters),
  };
  return panes;
}

function connected() {
  connection ??= new Connection(address.href);
  return connection;
}

/** The sampling parameters of a request; kinds as in settings.js. */
const parameters = (kind) => chosenParameters(settings, kind);

// Mounting, called from js_on_load

/** trigger() makes Gradio ask for `updates`: the language or the model's limits changed. */
export function mountHeader(root, trigger) {
  refresh = trigger;
  pill = element("span", { class: "glm-pill", id: "glm-status", role: "status", "aria-live": "polite" });
  const model = element("span", { class: "glm-model", id: "glm-model" });
  const choices = Object.entries(languages).map(([code, name]) =>
    element("button", { type: "button", class: "glm-language", id: `glm-language-${code}`, lang: code, click: () => setLanguage(code) }, name),
  );
  const past = new History(openConversation);
  const open = button("history", "history", () => past.show(), { class: "glm-button", id: "glm-history-open" }, true);
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
      element("div", { class: "glm-side" }, model, pill, open, group),
      element("p", { class: "glm-record", id: "glm-record", role: "status", hidden: true }),
      privacyLine(),
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
  takeShared();
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

// Conversations that come from elsewhere: the list of one's own, or a shared page

function openConversation(conversation) {
  const panes = startPanes();
  const name = conversation.kind in panes ? conversation.kind : "chat"; // a kind is named as its pane is
  panes[name].open(conversation);
  showTab(name);
}

/** Opens a tab as a click does: the tabs are Gradio's. */
function showTab(name) {
  document.getElementById(`glm-tab-${name}-button`)?.click();
}

/** `?from=TOKEN` goes on from a shared page, in a conversation of one's own. */
async function takeShared() {
  const here = new URL(location.href);
  const token = here.searchParams.get("from");
  if (!token) return;
  here.searchParams.delete("from"); // a reload goes on from what is then there, not from the shared text again
  history.replaceState(null, "", here);
  let content = null;
  try {
    const answer = await fetch(new URL(`api/shares/${encodeURIComponent(token)}`, base), { cache: "no-store" });
    const found = await answer.json();
    if (!answer.ok) return notice(errorText(found.error?.kind ?? "internal"));
    content = found.content;
  } catch (problem) {
    console.warn("Can't read the shared page:", problem.message);
    return notice(text("status.reconnecting"));
  }
  const last = content.items.at(-1);
  const panes = startPanes();
  if (content.kind === "chat") panes.chat.load({ messages: [...last.prompt, { role: "assistant", content: last.output ?? "" }] });
  else if (content.kind === "complete") panes.complete.load({ text: last.prompt + (last.output ?? "") });
  else panes.blanks.load({ text: last.prompt });
  showTab(content.kind);
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
  if (info && !learn(info.privacy)) notice(text("privacy.refused"));
  if (info?.ready) startPanes().chat.showFormat(info.chat_format);
  if (info?.max_new_tokens && info.max_new_tokens !== longest) {
    longest = info.max_new_tokens;
    refresh();
  }
  if (!info?.ready) polling = setTimeout(look, POLL);
  else if (recordState(info) !== "writing") polling = setTimeout(look, POLL_RECORD);
}

// "writing", or what a page should say of a server that can't write its record now.
function recordState(known) {
  return known?.record?.state ?? "writing";
}

function showStatus() {
  if (!pill) return;
  let state = { connecting: "connecting", reconnecting: "reconnecting", open: "ready" }[connected().state];
  if (state === "ready" && info && !info.ready) state = info.state === "failed" ? "down" : "loading";
  pill.dataset.state = state;
  bind(pill, `status.${state}`);
  const model = document.getElementById("glm-model");
  if (info?.model) bind(model, "model", { model: info.model });
  const record = document.getElementById("glm-record");
  const written = recordState(info);
  record.hidden = written === "writing";
  if (!record.hidden) bind(record, `record.${written}`);
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
  if (info?.ready) document.dispatchEvent(new CustomEvent("glm-settings"));
  const now = reasons(settings);
  if (JSON.stringify(now) !== JSON.stringify(off)) {
    off = now;
    refresh();
  }
}

document.addEventListener("glm-seed", ({ detail }) => {
  wanted.seed = String(detail);
  refresh();
  notice(text("seed.set", { seed: detail }));
});

/** Remembers the open tab, for a reload. */
export function takeTab(name) {
  memory.write(TAB, name);
}

/** Updates for the components with texts, in the order of `parts`: [{name, label, info, choices}] with text keys.
 *  With `first`, the remembered values of the settings and the open tab too. */
export function updates(parts, first) {
  const made = parts.map(({ name, label, info: help, choices }) => {
    const update = { __type__: "update" };
    if (label) update.label = text(label);
    if (help) update.info = text(off[name] ?? help);
    if (help && name in settings) update.interactive = !(name in off);
    if (choices) update.choices = choices.map(([key, value]) => [text(key), value]);
    if (name === "max_new_tokens" && longest) {
      update.maximum = longest;
      if (settings.max_new_tokens > longest) update.value = longest;
    }
    if (name in wanted) update.value = wanted[name];
    if (first && name in remembered.settings) update.value = remembered.settings[name];
    if (first && name === "tabs" && remembered.tab) update.selected = remembered.tab;
    return update;
  });
  wanted = {};
  return made;
}

function readSettings() {
  try {
    return JSON.parse(localStorage.getItem(SETTINGS)) ?? {};
  } catch (problem) {
    console.warn("Can't read the remembered settings:", problem.message);
    return {};
  }
}
