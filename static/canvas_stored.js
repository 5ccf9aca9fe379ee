// A stored conversation of the blanks pane, read from the server's record and made into states of the pane: the first fill of a
// text and what was filled again later, each with the choices that the record has.

import { storedAnswer } from "./answer.js";
import { aligned, emptied, emptyBlanks, fillBlank } from "./fills.js";

const READ = 12; // runs of a conversation, the newest

/** The states of a conversation (the answer of GET /api/conversations/ID) in order of time, the newest last; [] if it has no fills.
 *  Rejects with {kind} if a run can't be read. */
export async function readConversation({ id, runs }) {
  const fills = runs.filter((run) => run.mode === "fill" && run.prompt).slice(-READ);
  const whole = await Promise.all(fills.map((run) => readRun(run.id)));
  const states = [];
  whole.forEach((run, at) => states.push(stateOf({ ...fills[at], ...run }, states.at(-1), id)));
  return states;
}

/** One run of the record with its blanks. Rejects as above. */
export async function readRun(run) {
  const answer = await fetch(new URL(`api/runs/${encodeURIComponent(run)}`, document.baseURI));
  const body = await answer.json();
  if (!answer.ok) throw body.error;
  return body;
}

function stateOf(run, former, conversation) {
  let words = former && aligned(former.source, run.prompt);
  const source = words ? former.source : run.prompt;
  words ??= emptyBlanks(source).map(() => null);
  const map = [];
  const blanks = emptyBlanks(source).map((blank, at) => {
    const earlier = words === null || !former || source !== former.source ? null : former.blanks[at];
    if (words[at] === null) {
      map.push(at);
      return emptied({ ...blank, own: earlier?.own ?? [] });
    }
    // The words that were sent may be another choice than the one that was shown first, or the visitor's own.
    return { ...(earlier ?? blank), text: words[at], begun: true, done: true, locked: true };
  });
  for (const one of run.blanks) if (blanks[map[one.index]]) fillBlank(blanks[map[one.index]], one);
  const runs = [...(former && source === former.source ? former.runs : []), run.id];
  const answer = storedAnswer(run);
  return { ...answer, source, blanks, map, runs, conversation, result: run.status === "done" ? run.output : null };
}
