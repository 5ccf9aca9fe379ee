// The audit tab: who read, exported, deleted or changed what; the newest first, filtered, page by page. For administrators.

import { element } from "../dom.js";
import { isText } from "../language.js";
import { button, empty, errorBox, field, moment, number, table } from "./parts.js";

const FILTERS = ["actor", "action", "subject", "subject_id"];
const PAGE = 100;

export async function show(root, context) {
  const { api, texts: t, argument, remember } = context;
  const inputs = FILTERS.map((name) => element("input", { id: `glm-audit-${name}`, type: "search", value: argument.get(name) ?? "", autocomplete: "off", spellcheck: "false" }));
  const list = element("div", { class: "glm-stack" });
  const chosen = () => new URLSearchParams(FILTERS.map((name, at) => [name, inputs[at].value.trim()]).filter(([, value]) => value));

  const heads = ["moment", "actor", "action", "subject", "details"].map((key) => t(`audit.${key}`));

  async function load(after = null) {
    const words = chosen();
    remember(words);
    words.set("limit", PAGE);
    if (after) words.set("after", after);
    try {
      const found = await api(`audit?${words}`);
      const rows = found.entries.map((one) => [moment(one.moment), called("by", one.actor), action(one), subject(one), details(one.details)]);
      if (after) body().append(...table("", heads, rows).querySelectorAll("tbody > tr"));
      else if (rows.length) list.replaceChildren(table(t("audit.title"), heads, rows, { id: "glm-audit" }));
      else list.replaceChildren(empty(t("audit.none")));
      list.querySelector(".glm-more")?.remove();
      if (found.next) list.append(button(t("shell.more"), () => load(found.next), { class: "glm-button glm-more" }));
    } catch (problem) {
      list.replaceChildren(errorBox(problem, () => load()));
    }
  }
  const body = () => list.querySelector("tbody");
  const narrow = (name, value) => {
    inputs[FILTERS.indexOf(name)].value = value;
    load();
  };
  const called = (kind, word) => {
    const key = `audit.${kind}.${word.replaceAll(" ", "_")}`;
    return isText(key) ? t(key) : word;
  };
  const action = (one) => element("button", { type: "button", class: "glm-link", title: t("audit.only"), click: () => narrow("action", one.action) }, called("action", one.action));

  function subject(one) {
    const kind = called("of", one.subject);
    const words = one.subject_id ? `${kind} ${one.subject_id}` : kind;
    if (one.subject === "run" && one.subject_id) return element("a", { href: `#review?run=${encodeURIComponent(one.subject_id)}`, class: "glm-mono" }, words);
    return element("span", { class: "glm-mono" }, words);
  }

  function details(value) {
    if (value === null) return "";
    const parts = Object.entries(value).map(([name, one]) => `${name}: ${typeof one === "number" ? number(one, 3) : typeof one === "object" ? JSON.stringify(one) : one}`);
    return element("span", { class: "glm-detail", dir: "auto" }, parts.join(" · "));
  }

  const form = element("form", { class: "glm-audit-filters", role: "search" }, ...FILTERS.map((name, at) => field(t(`audit.${name}`), inputs[at])), element("button", { type: "submit", class: "glm-primary" }, t("audit.filter")));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    load();
  });
  root.replaceChildren(element("h1", {}, t("audit.title")), element("p", { class: "glm-detail" }, t("audit.help")), form, list);
  await load();
}
