// The staff's page: header, tabs, account, login. A tab is a file of its own beside this one:
//
//   export async function show(root, context)      draws the tab into `root`; may return a function that is called when it is left
//   context = {api(path, {method, body, signal}), texts(key, values), language, staff: {id, name, role},
//              argument: URLSearchParams behind the "?" of the address's hash, remember(argument), open(tab, argument),
//              say(message, kind)}
//
// The hash says which tab is open and what in it: #review?order=time. `remember` writes it without drawing anew; a change from
// outside (back, a link) draws the tab again, and so does a change of the language.

import { element, icon } from "../dom.js";
import { currentLanguage, languages, onLanguage, setLanguage, show as showLanguage, text } from "../language.js";
import { ask, onLoginNeeded, Refusal } from "./ask.js";
import { account, logIn, logInAgain, welcome } from "./login.js";
import { button, errorBox, loading } from "./parts.js";

const NOTICE = 4000; // ms that a message stays
const page = document.getElementById("glm-admin");
const data = JSON.parse(document.getElementById("glm-texts").textContent);
let staff = data.staff;
let leave = null; // of the open tab
let drawn = 0; // number of the newest drawing, so that a late one doesn't replace it
let opened = null; // hash that the page shows

/** A short message at the edge of the page, read aloud by screen readers. kind: "" | "error". */
export function say(message, kind = "") {
  const node = document.getElementById("glm-notice");
  node.className = `glm-notice glm-shown ${kind === "error" ? "glm-notice-error" : ""}`;
  node.textContent = message;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => node.classList.remove("glm-shown"), NOTICE);
}

const hashOf = (tab, argument) => {
  const words = new URLSearchParams(argument ?? "").toString();
  return `#${tab}${words ? `?${words}` : ""}`;
};

function place() {
  const [tab, words = ""] = location.hash.slice(1).split(/\?(.*)/s);
  return { tab, argument: new URLSearchParams(words) };
}

const shown = () => data.tabs.filter((tab) => tab.role === "reviewer" || staff.role === "admin");

/** For the tab of this drawing; `name` is what the address calls it. */
function context(argument, name, number) {
  const texts = (key, values) => text(key, values);
  texts.t = texts;
  const remember = (next) => {
    // A tab that loads late must not write over the address of the one that was asked for meanwhile.
    if (number !== drawn || place().tab !== name) return;
    opened = hashOf(place().tab, next);
    history.replaceState(null, "", opened);
  };
  const open = (tab, next) => {
    location.hash = hashOf(tab, next);
  };
  return { api: ask, texts, t: texts, language: currentLanguage(), staff, argument, remember, open, say };
}

async function draw() {
  const number = (drawn += 1);
  const { tab: name, argument } = place();
  const tab = shown().find((one) => one.name === name) ?? shown()[0];
  opened = location.hash;
  leave?.();
  leave = null;
  const root = element("section", { class: "glm-tab", id: `glm-tab-${tab?.name}`, "data-tab": tab?.name }, loading());
  document.getElementById("glm-main").replaceChildren(root);
  for (const link of document.querySelectorAll(".glm-tabs a")) {
    if (link.dataset.tab === tab?.name) {
      link.setAttribute("aria-current", "page");
      link.scrollIntoView({ block: "nearest", inline: "nearest" });
    } else link.removeAttribute("aria-current");
  }
  if (!tab) return;
  root.setAttribute("aria-label", text(`shell.tab.${tab.name}`));
  document.title = `${text(`shell.tab.${tab.name}`)} · ${text("shell.title")}`;
  try {
    const [module] = await Promise.all([import(`./${tab.name}.js`), tab.styled ? style(tab.name) : null]);
    if (number !== drawn) return;
    root.replaceChildren();
    const left = await module.show(root, context(tab.name === name ? argument : new URLSearchParams(), name, number));
    if (number === drawn) leave = left ?? null;
    else left?.();
  } catch (problem) {
    if (number !== drawn || problem.name === "AbortError") return;
    if (problem instanceof Refusal) return root.replaceChildren(errorBox(problem, draw));
    root.replaceChildren(element("div", { class: "glm-error", role: "alert" }, element("p", {}, text("shell.tab.failed")), button(text("shell.retry"), draw)));
    throw problem;
  } finally {
    if (number === drawn) root.dataset.shown = "true";
  }
}

const styles = new Map();

function style(name) {
  if (!styles.has(name)) {
    const link = element("link", { rel: "stylesheet", href: `static/admin/${name}.css` });
    styles.set(name, new Promise((resolve) => ["load", "error"].forEach((end) => link.addEventListener(end, resolve))));
    document.head.append(link);
  }
  return styles.get(name);
}

function languageChoice() {
  const choices = Object.entries(languages).map(([code, name]) =>
    element(
      "button",
      { type: "button", class: "glm-language", id: `glm-language-${code}`, lang: code, "aria-pressed": String(code === currentLanguage()), click: () => setLanguage(code) },
      name,
    ),
  );
  return element("div", { class: "glm-languages", role: "group", "aria-label": text("language") }, ...choices);
}

function header() {
  const skip = element("button", { type: "button", class: "glm-skip", click: () => document.getElementById("glm-main").focus() }, text("shell.skip"));
  const home = element("a", { class: "glm-home", href: "./", title: text("shell.home") }, icon("back"), element("span", {}, text("shell.name")));
  const right = element("div", { class: "glm-side" }, languageChoice());
  const node = element("header", { class: "glm-head" }, skip, home);
  if (staff) {
    const links = shown().map((tab) => element("a", { href: `#${tab.name}`, "data-tab": tab.name, id: `glm-open-${tab.name}` }, text(`shell.tab.${tab.name}`)));
    node.append(element("nav", { class: "glm-tabs", "aria-label": text("shell.tabs") }, ...links));
    const who = text("shell.account.role", { name: staff.name, role: text(`shell.role.${staff.role}`) });
    const open = () => account(staff, data.limits, { say, left });
    right.prepend(element("button", { type: "button", class: "glm-button glm-account", id: "glm-account", title: who, click: open }, icon("person"), element("span", {}, staff.name)));
  }
  node.append(right);
  return node;
}

/** After a logout: nothing of what was open stays in the page. */
function left() {
  location.replace(location.pathname + location.search);
}

/** After a login: the tab that the address names. */
function entered(member) {
  staff = member;
  if (place().tab === "welcome") history.replaceState(null, "", location.pathname);
  build();
}

function build() {
  leave?.();
  leave = null;
  drawn += 1;
  const main = element("main", { id: "glm-main", tabindex: "-1" });
  page.replaceChildren(header(), main, element("div", { id: "glm-notice", class: "glm-notice", role: "status", "aria-live": "polite" }));
  document.title = text("shell.title");
  const { tab, argument } = place();
  if (tab === "welcome") welcome(main, argument.get("token") ?? "", data.limits, { entered });
  else if (staff) draw();
  else logIn(main, entered);
}

onLoginNeeded(async () => {
  const member = await logInAgain(staff?.name ?? "");
  // Another member sees another page: what the first one was doing isn't theirs.
  if (member.id !== staff?.id) location.reload();
});
onLanguage(build);
window.addEventListener("hashchange", () => {
  if (location.hash === opened) return;
  if (staff && place().tab !== "welcome" && document.querySelector(".glm-tabs")) draw();
  else build();
});
showLanguage();
