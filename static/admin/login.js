// What lets a member in: the login, the login again when a session has ended, an invitation's or a new password's form, and the
// account's dialog with password and logout.

import { element } from "../dom.js";
import { text } from "../language.js";
import { ask } from "./ask.js";
import { button, dialog, errorBox, field, loading } from "./parts.js";

const input = (id, attributes = {}) => element("input", { id, required: true, ...attributes });
const password = (id, { most, ...attributes }) => input(id, { type: "password", maxlength: most, ...attributes });

/** A form. submit(): does it; what it throws is shown below the fields by `tell(problem)` as a sentence or, if that gives null, as
 *  a box. Its button is off while it works. */
function form(id, fields, verb, submit, tell = () => null) {
  const said = element("div", { class: "glm-said", role: "alert" });
  const send = element("button", { type: "submit", class: "glm-primary" }, verb);
  const node = element("form", { class: "glm-form", id }, ...fields, said, send);
  node.addEventListener("submit", async (event) => {
    event.preventDefault();
    said.replaceChildren();
    send.disabled = true;
    try {
      await submit();
    } catch (problem) {
      const words = tell(problem);
      said.replaceChildren(words ? element("p", { class: "glm-wrong" }, words) : errorBox(problem));
      node.querySelector("input[type=password]")?.select();
    } finally {
      send.disabled = false;
    }
  });
  return node;
}

const slow = (problem) =>
  problem.kind === "rate_limited" ? text("shell.login.slow", { seconds: Math.ceil(problem.retryAfter ?? 60) }) : null;

function loginForm(name, done) {
  const who = input("glm-login-name", { autocomplete: "username", value: name, autocapitalize: "none", spellcheck: "false", maxlength: 100 });
  const word = password("glm-login-password", { autocomplete: "current-password", most: 1000 });
  const submit = async () => done(await ask("login", { body: { name: who.value, password: word.value }, again: false }));
  const tell = (problem) => (problem.kind === "login_needed" ? text("shell.login.wrong") : slow(problem));
  const fields = [field(text("shell.login.name"), who), field(text("shell.login.password"), word)];
  return form("glm-login", fields, text("shell.login"), submit, tell);
}

/** The login as the page's content; done(member) after it. */
export function logIn(root, done) {
  const help = ["shell.login.first", "shell.login.lost"].map((key) => element("p", { class: "glm-detail" }, text(key)));
  root.replaceChildren(element("div", { class: "glm-front" }, element("h1", {}, text("shell.login")), loginForm("", done), ...help));
  root.querySelector("input").focus();
}

/** The login in a dialog above the page, whose content stays; resolves to the member. */
export function logInAgain(name) {
  return new Promise((resolve) => {
    const done = (member) => {
      opened.close();
      resolve(member);
    };
    const body = element("div", { class: "glm-stack" }, element("p", {}, text("shell.login.again")), loginForm(name, done));
    const opened = dialog(text("shell.login"), body, { fixed: true });
    body.querySelector(name ? "#glm-login-password" : "#glm-login-name").focus();
  });
}

/** What an invitation's link opens, or the link to a new password. entered(member) after it. */
export async function welcome(root, token, limits, { entered }) {
  const front = element("div", { class: "glm-front" }, element("h1", {}, text("shell.welcome")), loading());
  root.replaceChildren(front);
  const leave = element("a", { href: "#" }, text("shell.welcome.login"));
  const over = () => {
    const words = ["shell.welcome.over", "shell.welcome.over.step"].map((key) => element("p", {}, text(key)));
    front.replaceChildren(front.firstChild, ...words, leave);
  };
  let found;
  try {
    found = await ask("invitations/look", { body: { token }, again: false });
  } catch (problem) {
    if (problem.kind === "not_found" || problem.kind === "bad_request") return over();
    return front.replaceChildren(front.firstChild, errorBox(problem, () => welcome(root, token, limits, { entered })));
  }
  const name = input("glm-welcome-name", { autocomplete: "username", maxlength: limits.name, autocapitalize: "none", spellcheck: "false" });
  const [first, second] = ["glm-welcome-password", "glm-welcome-again"].map((id) => password(id, { autocomplete: "new-password", most: limits.most }));
  const fields = [
    field(text("shell.password.new"), first, text("shell.password.rule", { least: limits.least })),
    field(text("shell.password.again"), second),
  ];
  if (found.name === null) fields.unshift(field(text("shell.welcome.name"), name, text("shell.welcome.name.rule")));
  // Password managers want to know whose password it is.
  else fields.unshift(element("input", { type: "hidden", autocomplete: "username", value: found.name }));
  const submit = async () => {
    check(first, second, limits);
    entered(await ask("invitations/accept", { body: { token, name: found.name ?? name.value, password: first.value }, again: false }));
  };
  const tell = (problem) => {
    if (problem.kind === "not_found") over();
    return problem.own ?? (problem.kind === "conflict" ? text("shell.welcome.taken") : slow(problem));
  };
  const words = found.name === null ? text("shell.welcome.new", { role: text(`shell.role.${found.role}`) }) : text("shell.welcome.reset", { name: found.name });
  const verb = text(found.name === null ? "shell.welcome.join" : "shell.welcome.set");
  front.replaceChildren(front.firstChild, element("p", {}, words), form("glm-welcome", fields, verb, submit, tell));
  front.querySelector("input:not([type=hidden])").focus();
}

/** Throws what is wrong with two new passwords, in `own`. */
function check(first, second, { least }) {
  const own =
    [...first.value].length < least ? text("shell.password.short", { least }) : first.value !== second.value ? text("shell.password.differ") : null;
  if (own) throw Object.assign(new Error(own), { own });
}

/** The account's dialog. left(): after a logout. */
export function account(staff, limits, { say, left }) {
  const old = password("glm-password-old", { autocomplete: "current-password", most: 1000 });
  const [first, second] = ["glm-password-new", "glm-password-again"].map((id) => password(id, { autocomplete: "new-password", most: limits.most }));
  const submit = async () => {
    check(first, second, limits);
    await ask("password", { body: { old: old.value, new: first.value } });
    opened.close();
    say(text("shell.password.changed"));
  };
  const wrong = (problem) => (problem.kind === "bad_request" && problem.field === "old" ? text("shell.password.wrong") : null);
  const tell = (problem) => problem.own ?? wrong(problem) ?? slow(problem);
  const fields = [
    field(text("shell.password.old"), old),
    field(text("shell.password.new"), first, text("shell.password.rule", { least: limits.least })),
    field(text("shell.password.again"), second),
  ];
  const out = async (everywhere) => {
    await ask("logout", { body: { everywhere } });
    opened.close();
    left();
  };
  const buttons = [
    button(text("shell.logout"), () => out(false), { id: "glm-logout" }),
    button(text("shell.logout.all"), () => out(true), { id: "glm-logout-all" }),
  ];
  const who = element("p", {}, text("shell.account.role", { name: staff.name, role: text(`shell.role.${staff.role}`) }));
  const change = element("details", { class: "glm-fold" }, element("summary", {}, text("shell.password")), form("glm-password", fields, text("shell.password"), submit, tell));
  const opened = dialog(text("shell.account"), element("div", { class: "glm-stack" }, who, element("div", { class: "glm-bar" }, ...buttons), change), { id: "glm-account-dialog" });
}
