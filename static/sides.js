// Two answers side by side, made by two runs at the same time on the one connection: what Complete and Compare share.
// An answer is the plain data of answer.js with {text, beams, final}; a pane keeps its answers in its own state, so that
// they survive a reload, and hears of every event.

import { book } from "./answer.js";

/** The fields of an answer's text before anything came. beams: [{text, logprob, score, ended}], best first, of a beam
 *  search; blanks: what fills.js calls so, where a text with blanks is filled. */
export function emptyText(blanks = null) {
  return { text: "", beams: [], final: false, blanks };
}

/** The text that was continued as it is shown: the server takes a [gMASK] at its end for the place to go on at. */
export const prompt = (source) => source.replace(/\[gMASK\]$/, "");

/** What is added behind a text; a continuation's leading space goes where one stands already. */
export function behind(source, words) {
  return /\s$/.test(prompt(source)) && words.startsWith(" ") ? words.slice(1) : words;
}

export class Sides {
  /** changed(answer, event) is called after each event, when the answer has it. */
  constructor(connection, changed) {
    this.connection = connection;
    this.changed = changed;
    this.runs = new Map(); // answer -> socket.Run, of answers under way
    this.held = []; // answers that wait until the one before them has opened the conversation
    this.conversation = null; // of the server's record, for the answers of one text
    this.stopping = false;
  }

  get running() {
    return this.runs.size > 0;
  }

  /** Sets answers going, or takes them up after a reload. The first one opens a conversation in the server's record unless
   *  there is one, and the others join it as soon as it is accepted: so they are found, and deleted, together. */
  begin(answers) {
    this.stopping = false;
    let opening = null;
    for (const answer of answers) {
      if (answer.run || this.conversation) this.follow(answer);
      else if (!opening) this.follow((opening = answer));
      else this.held.push(answer);
    }
  }

  follow(answer) {
    if (!answer.run && this.conversation) answer.request.conversation = this.conversation;
    const listener = (event) => {
      if (this.runs.has(answer)) this.handle(answer, event);
    };
    this.runs.set(answer, this.connection.take(answer.request, answer.run, listener));
  }

  stop() {
    this.stopping = true;
    for (const run of this.runs.values()) run.cancel();
    this.held.splice(0).forEach((answer) => this.settle(answer, { type: "cancelled" }));
  }

  /** Hears no more of these runs; on the server they go on. */
  leave() {
    this.runs.clear();
    this.held = [];
    this.conversation = null;
  }

  handle(answer, event) {
    take(answer, event);
    if (event.type === "accepted") this.conversation = event.conversation ?? this.conversation;
    // A conversation that was deleted meanwhile takes no more: what comes next opens another.
    if (event.type === "error" && event.kind === "not_found") this.conversation = null;
    if (answer.status !== "running") {
      this.runs.delete(answer);
      delete answer.request; // only needed to take an unfinished run up again
    }
    if (event.type === "accepted" || answer.status !== "running") this.held.splice(0).forEach((one) => this.follow(one));
    this.changed(answer, event);
  }

  settle(answer, event) {
    book(answer, event);
    delete answer.request;
    this.changed(answer, event);
  }
}

/** Books an event in an answer, with its text. */
function take(answer, event) {
  book(answer, event);
  // A run that is taken up, or begun anew after a worker died, tells everything from its start.
  if (event.type === "started") {
    Object.assign(answer, { text: "", beams: [], final: false });
    answer.blanks?.forEach((blank) => Object.assign(blank, { text: "", begun: false, done: false }));
  } else if (event.type === "delta" && !event.alternative) {
    answer.text += event.text;
    const blank = answer.blanks?.[event.blank];
    if (blank) Object.assign(blank, { text: blank.text + event.text, begun: true });
  } else if (event.type === "blank" && answer.blanks?.[event.index]) {
    Object.assign(answer.blanks[event.index], { text: event.text, begun: true, done: true });
  } else if (event.type === "beams") Object.assign(answer, { beams: event.beams, final: event.final });
  else if (event.type === "done" || event.type === "cancelled" || event.type === "error") answer.text = event.text || answer.text;
}
