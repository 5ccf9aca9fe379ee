// Undo and redo of the result of the blanks: its former and its undone states, as text, in bounds, kept over a reload.

import { memory } from "./dom.js";

const MEMORY = "glm.blanks.history";
const STEPS = 40;
const CHARACTERS = 400000; // of all states together: the page's memory holds some millions

export class History {
  constructor() {
    const kept = memory.read(MEMORY);
    this.past = kept?.past ?? [];
    this.future = kept?.future ?? [];
  }

  get canUndo() {
    return this.past.length > 0;
  }

  get canRedo() {
    return this.future.length > 0;
  }

  /** Keeps a state that is about to change. What was undone before can't be done again after that. */
  note(filled) {
    // What a failed run left is what was there before it, and that is kept already.
    if (filled.status !== "error") this.past.push(packed(filled));
    this.future = [];
    this.keep();
  }

  /** The state before `filled`, or null. */
  undo(filled) {
    return this.move(this.past, this.future, filled);
  }

  /** The state that `undo` left, or null. */
  redo(filled) {
    return this.move(this.future, this.past, filled);
  }

  /** Begins anew, with former states if there are any. */
  reset(past = []) {
    this.past = past.map(packed);
    this.future = [];
    this.keep();
  }

  move(from, to, filled) {
    if (!from.length) return null;
    const state = JSON.parse(from.pop());
    to.push(packed(filled));
    this.keep();
    return state;
  }

  keep() {
    const size = () => [...this.past, ...this.future].reduce((sum, state) => sum + state.length, 0);
    while (this.past.length > STEPS || (this.past.length && size() > CHARACTERS)) this.past.shift();
    memory.write(MEMORY, { past: this.past, future: this.future });
  }
}

/** A state as text. A state that is still being filled is kept with what there is of it. */
function packed(filled) {
  const { request, ...rest } = filled;
  return JSON.stringify(rest);
}
