// The page behind a share link: light, without Gradio, read-only. Its content comes with it (app/ui/shared_page.py); the server is
// asked only for what a visitor presses: run again (over /ws) and report.

import { button, notice } from "./answer.js";
import { element } from "./dom.js";
import { bind, currentLanguage, errorText, languages, onLanguage, setLanguage, show, text } from "./language.js";
import { rerun } from "./rerun.js";
import { view } from "./shared_view.js";
import { Connection } from "./socket.js";

const REASON = 2000; // characters, as the server allows
const data = JSON.parse(document.getElementById("glm-shared-data").textContent);
const root = new URL(data.root, document.baseURI); // of the site, which may lie behind a path of a proxy
let connection = null;

/** Opened at the first run: who only reads opens no socket. */
function connect() {
  const address = new URL("ws", root);
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  connection ??= new Connection(address.href);
  return connection;
}

function header() {
  const choices = Object.entries(languages).map(([code, name]) =>
    element("button", { type: "button", class: "glm-language", id: `glm-language-${code}`, lang: code, click: () => setLanguage(code) }, name),
  );
  const mark = () => choices.forEach((choice) => choice.setAttribute("aria-pressed", String(choice.lang === currentLanguage())));
  onLanguage(mark);
  mark();
  const group = bind(element("div", { class: "glm-languages", role: "group" }, ...choices), "language", {}, "label");
  const home = bind(element("a", { class: "glm-shared-home", href: root.pathname }), "title");
  return element("header", { class: "glm-shared-header" }, home, group);
}

function open() {
  const { content, title, token } = data;
  const meta = element("p", { class: "glm-shared-detail", id: "glm-shared-meta" });
  const tell = () => {
    const day = (iso) => new Intl.DateTimeFormat(currentLanguage(), { dateStyle: "long" }).format(new Date(iso));
    const parts = [text("shared.when", { when: day(data.created) })];
    if (data.expires) parts.push(text("shared.until", { when: day(data.expires) }));
    if (content.model) parts.push(text("model", { model: content.model }));
    meta.textContent = parts.join(" · ");
    document.title = title;
  };
  onLanguage(tell);
  tell();
  const on = new URL(root);
  on.searchParams.set("from", token);
  return [
    element("h1", { dir: "auto" }, title),
    meta,
    bind(element("p", { class: "glm-shared-notice" }), "shared.notice"),
    view(content, below),
    element(
      "div",
      { class: "glm-shared-foot" },
      bind(element("a", { class: "glm-primary", id: "glm-shared-continue", href: on.pathname + on.search }), "shared.continue"),
      bind(element("p", { class: "glm-shared-detail" }), "shared.continue.help"),
      report(token),
    ),
  ];
}

const below = (item) => rerun(item, connect, data.parameters);

function report(token) {
  const node = element("div", { class: "glm-report" });
  const area = element("textarea", { id: "glm-report-reason", rows: "3", maxlength: REASON, required: true, dir: "auto" });
  const label = bind(element("label", { for: "glm-report-reason" }), "shared.report.reason");
  const send = bind(element("button", { type: "submit", class: "glm-button" }), "shared.report.send");
  const leave = bind(element("button", { type: "button", class: "glm-button", click: () => toggle() }), "cancel");
  const said = element("p", { role: "status", id: "glm-report-status" });
  const form = element("form", { class: "glm-report-form", hidden: true }, label, area, element("div", { class: "glm-rerun-bar" }, send, leave));
  const toggle = () => {
    form.hidden = !form.hidden;
    opener.setAttribute("aria-expanded", String(!form.hidden));
    (form.hidden ? opener : area).focus();
  };
  const opener = button("comment", "shared.report", toggle, { class: "glm-button", id: "glm-report", "aria-expanded": "false" }, true);
  form.addEventListener("keydown", (event) => event.key === "Escape" && toggle());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!area.value.trim()) return area.focus();
    send.disabled = true;
    const refused = await tell(token, area.value.trim());
    send.disabled = false;
    if (refused) return notice(refused);
    form.remove();
    opener.remove();
    bind(said, "shared.report.thanks");
  });
  node.append(opener, form, said);
  return node;
}

/** Sends a report; null, or why it could not be sent. */
async function tell(token, reason) {
  try {
    const answer = await fetch(new URL(`api/shares/${token}/report`, root), {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ reason }),
    });
    if (answer.ok) return null;
    return errorText((await answer.json()).error.kind);
  } catch (problem) {
    console.warn("Can't send the report:", problem.message);
    return text("shared.report.failed");
  }
}

function closed() {
  const state = data.state === "over" ? "over" : "missing";
  return [
    bind(element("h1"), `shared.${state}`),
    bind(element("p"), `shared.${state}.help`),
    bind(element("a", { class: "glm-primary", href: root.pathname }), "shared.home"),
  ];
}

const main = element("main", { id: "glm-shared-main", "data-state": data.state });
document.getElementById("glm-shared-page").replaceChildren(header(), main);
main.append(...(data.state === "open" ? open() : closed()));
show();
