// Asking the server's /api/admin. An answer is JSON; a refusal is thrown as a Refusal with what a person should read. Where the
// session has ended, the page asks for the password again (`onLoginNeeded`) and then repeats what was asked: nothing is lost.

import { errorStep, errorText, text } from "../language.js";

/** kind: of app/errors.py, or "offline". message, step: for a person, in the page's language. detail: the server's own words,
 *  which name the field or the limit (English). body: the whole answer, which may tell more than the error. */
export class Refusal extends Error {
  constructor(kind, { message: detail = "", field = null, limit = null, retry_after_s: retryAfter = null } = {}, body = null) {
    super(kind === "offline" ? text("shell.offline") : errorText(kind));
    this.name = "Refusal";
    Object.assign(this, { kind, detail, field, limit, retryAfter, body });
    this.step = kind === "offline" ? text("shell.offline.step") : errorStep(kind);
  }
}

let logIn = null;
let loggingIn = null; // the login under way that all questions wait for

/** ask(): asks a person to log in again; resolves when they did. */
export function onLoginNeeded(ask) {
  logIn = ask;
}

/** path: below api/admin/, or from api/ on. body: sent as JSON. Resolves to the answer, null for one without content.
 *  Throws Refusal, and AbortError where `signal` was used. */
export async function ask(path, { method, body, signal, again = true } = {}) {
  const short = path.replace(/^\/+/, "");
  const address = new URL(short.startsWith("api/") ? short : `api/admin/${short}`, document.baseURI);
  const request = { method: method ?? (body === undefined ? "GET" : "POST"), signal, headers: { Accept: "application/json" } };
  if (body !== undefined) {
    request.headers["Content-Type"] = "application/json";
    request.body = JSON.stringify(body);
  }
  const refusal = new Refusal("offline");
  let answer;
  let found;
  try {
    answer = await fetch(address, request);
    found = answer.status === 204 ? null : await answer.json();
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    // No answer, or one that something between the server and here has written.
    console.warn(`No answer from ${address.pathname}: ${problem.message}`);
    throw refusal;
  }
  if (answer.ok) return found;
  const { kind = "internal", ...rest } = found?.error ?? {};
  if (kind !== "login_needed" || !again || !logIn) throw new Refusal(kind, rest, found);
  loggingIn ??= logIn().finally(() => (loggingIn = null));
  await loggingIn;
  return ask(path, { method, body, signal, again: false });
}
