// Whether the server keeps what this browser sends: the visitor's choice, where the host leaves it to them (/api/info says so),
// remembered in localStorage. The document hears `glm-keeping` when it changes.

import { memory } from "./dom.js";

const CHOICE = "glm.unlogged";
let chosen = remembered();
let told = null; // `privacy` of /api/info: {log_optional, kept_seconds, failed_seconds, reviewed_seconds}

function remembered() {
  try {
    return localStorage.getItem(CHOICE) === "true";
  } catch {
    return false; // storage is forbidden: the switch then lasts as long as the page
  }
}

/** What the server says of keeping; null before it did. */
export const privacy = () => told;

/** Whether what is sent now is not to be kept. Before the server says whether that may be chosen, the former choice holds: it would
 *  refuse, and not keep in secret. */
export const unkept = () => chosen && told?.log_optional !== false;

export function setUnkept(choice) {
  chosen = choice;
  try {
    localStorage.setItem(CHOICE, String(choice));
  } catch (problem) {
    console.warn("Can't remember the choice:", problem.message);
  }
  document.dispatchEvent(new CustomEvent("glm-keeping"));
}

/** Takes what /api/info says. Returns false if the visitor's choice isn't allowed any more, which they must be told. */
export function learn(found) {
  const changed = JSON.stringify(found) !== JSON.stringify(told);
  told = found;
  const refused = chosen && !told.log_optional;
  if (refused) setUnkept(false);
  else if (changed) document.dispatchEvent(new CustomEvent("glm-keeping"));
  return !refused;
}

/** A request as the choice wants it. `always`: not to be kept, whatever is chosen now. */
export function marked(request, always = false) {
  return always || unkept() ? { ...request, log: false } : request;
}

/** Forgets what the panes remember for a reload of this tab. */
export function forgetPanes() {
  for (const key of ["glm.chat", "glm.blanks", "glm.blanks.history", "glm.complete", "glm.compare"]) memory.write(key, null);
}
