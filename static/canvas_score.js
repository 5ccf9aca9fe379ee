// "Score my own words": what the model gives somebody's words for one blank, by teacher forcing on the server. Each of the
// words is scored in the same text, so that they can be compared; nothing is generated.

import { newId } from "./dom.js";
import { choices, keepOwn, refilling, withEnd } from "./fills.js";
import { marked } from "./keeping.js";

/** Scores words of the visitor's for a blank of the pane's result, and all its choices, with the other blanks as they are now. The
 *  card, if it still shows that blank, tells. */
export async function compare(canvas, index, words) {
  const { filled } = canvas.state;
  const blank = filled.blanks[index];
  keepOwn(blank, words);
  const context = refilling(filled, [index]).text;
  const known = blank.scored?.context === context ? blank.scored.values : {};
  const asked = choices(blank, context).filter((row) => !known[row.text.trim()]);
  canvas.card.tell("scoring");
  let failed = null;
  try {
    const scores = await score(canvas.connection, context, asked.map((row) => row.text), filled.conversation);
    blank.scored = { context, values: { ...known } };
    asked.forEach((row, at) => (blank.scored.values[row.text.trim()] = scores[at]));
  } catch (event) {
    failed = event.kind ?? "internal";
    if (failed === "not_found") filled.conversation = null; // it was deleted meanwhile
  }
  canvas.keep();
  if (canvas.card.index === index) canvas.card.tell(failed);
}

/** Scores `words` (a list) for the only blank of `text`; conversation: whose record it joins, or null.
 *  Resolves to [{logprob, tokens}] in their order; rejects with the server's error event. */
function score(connection, text, words, conversation) {
  return Promise.all(words.map((one) => scoreOne(connection, text, one, conversation)));
}

function scoreOne(connection, text, words, conversation) {
  const request = marked({ type: "score", id: newId(), text, answers: [words] });
  if (conversation) request.conversation = conversation;
  return new Promise((resolve, reject) => {
    let found = null;
    connection.start(request, (event) => {
      if (event.type === "blank") {
        const { logprob, finish_reason: reason } = event.alternatives[0];
        found = { logprob, tokens: withEnd(event.tokens, logprob, reason) };
      } else if (event.type === "done" && found) resolve(found);
      else if (event.type === "error") reject(event);
      // Without its numbers an end is of no use: it came from the records, or the run was cancelled.
      else if (event.type === "done" || event.type === "cancelled") reject({ kind: "interrupted", message: "" });
    });
  });
}
