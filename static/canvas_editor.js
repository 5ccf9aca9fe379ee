// Where the text with blanks is written: a real <textarea> (input methods, undo, paste and screen readers work as everywhere)
// over a copy of its text that paints a chip under each mask; buttons and keys that insert a blank; and a small bar that
// appears while words are selected and turns them into a blank. The words that a blank took the place of are kept.

import { element } from "./dom.js";
import { carried, hasMask, places, split } from "./fills.js";
import { bind } from "./language.js";

// The masks with their explanations and the letter that inserts them together with Alt. M, L and G are free in the browsers:
// digits with Alt change tabs on Linux, and D, E, F and the letters of menus are theirs, too.
const MASKS = [
  { mask: "[MASK]", explanation: "blanks.mask", letter: "M" },
  { mask: "[sMASK]", explanation: "blanks.smask", letter: "L" },
  { mask: "[gMASK]", explanation: "blanks.gmask", letter: "G" },
];
const FINGER = 30; // px that a phone's handles take below a selection

export class Editor {
  /** text and words: as they were before a reload. changed(): the text or the words changed; submit(): Ctrl+Enter. */
  constructor({ text, words, changed, submit }) {
    this.words = words; // for each blank of the text the words that it took the place of, or null
    this.text = text;
    this.changed = changed;
    this.build(submit);
    this.draw();
  }

  build(submit) {
    this.input = element("textarea", { id: "glm-blanks-input", rows: "3", spellcheck: "false", autocomplete: "off" });
    this.input.value = this.text;
    this.input.setAttribute("aria-describedby", "glm-blanks-keys");
    bind(this.input, "blanks.placeholder", {}, "placeholder");
    this.input.addEventListener("input", () => this.take());
    this.input.addEventListener("keydown", (event) => this.key(event, submit));
    this.mirror = element("div", { class: "glm-mirror", "aria-hidden": "true" });
    const chosen = () => this.showBar();
    // `selectionchange` is the one event that tells of each change; older browsers send it for the page's own text only.
    for (const name of ["select", "keyup", "pointerup", "focus"]) this.input.addEventListener(name, chosen);
    document.addEventListener("selectionchange", chosen);
    this.bar = element("div", { class: "glm-selected", id: "glm-blanks-selected", role: "group", hidden: true });
    bind(this.bar, "blanks.selected", {}, "label");
    const turn = element("button", { type: "button", class: "glm-button", id: "glm-blanks-turn", click: () => this.insert("[MASK]") });
    turn.append(bind(element("span"), "blanks.turn"), element("kbd", {}, "Alt+M"));
    this.bar.append(turn);
    this.bar.addEventListener("pointerdown", (event) => event.preventDefault()); // the selection stays
    const area = element("div", { class: "glm-editor" }, this.mirror, this.input, this.bar);
    area.addEventListener("focusout", (event) => {
      if (!area.contains(event.relatedTarget)) this.bar.hidden = true;
    });
    const inserts = MASKS.map(({ mask, explanation, letter }) => {
      const id = `glm-insert-${mask.slice(1, -1)}`;
      const attributes = { type: "button", class: "glm-insert", id, "aria-keyshortcuts": `Alt+${letter}` };
      const chip = element("span", { class: "glm-chip" }, mask);
      const explained = bind(element("span", { class: "glm-explain" }), explanation);
      return element("button", { ...attributes, click: () => this.insert(mask) }, chip, explained, element("kbd", {}, `Alt+${letter}`));
    });
    const insertBar = bind(element("div", { class: "glm-inserts", role: "group" }, ...inserts), "blanks.insert", {}, "label");
    const label = bind(element("label", { class: "glm-hidden", for: "glm-blanks-input" }), "blanks.text");
    this.node = element("div", { class: "glm-writing" }, insertBar, label, area);
  }

  key(event, submit) {
    if (event.isComposing || event.keyCode === 229) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      submit();
    }
    if (!event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    // A Mac types another character with Alt, so there the key itself counts.
    const found = MASKS.find(({ letter }) => event.key.toUpperCase() === letter || event.code === `Key${letter}`);
    if (!found) return;
    event.preventDefault();
    this.insert(found.mask);
  }

  /** Puts a mask at the cursor or in the place of the selected words, whose spaces stay. */
  insert(mask) {
    const { selectionStart: start, selectionEnd: end, value } = this.input;
    const words = value.slice(start, end);
    this.input.focus();
    if (words.trim()) {
      this.input.setSelectionRange(start + words.length - words.trimStart().length, end - words.length + words.trimEnd().length);
    }
    this.write(mask);
  }

  /** Puts a text in the place of the one that is there. The browser's undo brings that back. */
  load(text, words = []) {
    const before = document.activeElement;
    // Without a text there is nothing to bring back, and a phone's keyboard doesn't come up for nothing.
    if (this.input.value) {
      this.input.focus({ preventScroll: true });
      this.input.select();
    }
    this.write(text);
    if (before && before !== this.input) before.focus({ preventScroll: true });
    if (words.length) this.words = words;
    this.changed();
  }

  /** Replaces the selection. execCommand is the only way that keeps the browser's own undo. */
  write(text) {
    const command = text ? "insertText" : "delete";
    if (document.activeElement !== this.input || !document.execCommand(command, false, text)) {
      this.input.setRangeText(text, this.input.selectionStart, this.input.selectionEnd, "end");
    }
    this.take();
  }

  focus() {
    this.input.focus({ preventScroll: true });
  }

  take() {
    if (this.input.value === this.text) return;
    this.words = carried(this.text, this.words, this.input.value);
    this.text = this.input.value;
    this.draw();
    this.changed();
  }

  draw() {
    const parts = split(this.text).map((part, at) => (at % 2 ? element("mark", {}, part) : part));
    // The space keeps a last empty line as high as the textarea's.
    this.mirror.replaceChildren(...parts, "\u200b");
    this.showBar();
  }

  /** The bar stands below the selected words; not where they hold a blank or a part of one. */
  showBar() {
    const { selectionStart: start, selectionEnd: end, value } = this.input;
    const words = value.slice(start, end);
    const cut = places(value).some((place) => place.start < end && start < place.end);
    const active = document.activeElement === this.input || this.bar.contains(document.activeElement);
    this.bar.hidden = !active || !words.trim() || cut || hasMask(words);
    if (this.bar.hidden) return;
    const [box, spot] = [this.mirror.getBoundingClientRect(), this.place(end - 1)];
    const below = matchMedia("(pointer: coarse)").matches ? FINGER : 5;
    const left = Math.max(4, Math.min(spot.left - box.left - 20, box.width - this.bar.offsetWidth - 4));
    this.bar.style.left = `${left}px`;
    this.bar.style.top = `${spot.bottom - box.top + below}px`;
  }

  /** Where a character of the text stands on the page: the copy has it in the same place. */
  place(at) {
    const walker = document.createTreeWalker(this.mirror, NodeFilter.SHOW_TEXT);
    let rest = at;
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      if (rest < node.length) {
        const range = document.createRange();
        range.setStart(node, rest);
        range.setEnd(node, rest + 1);
        return range.getBoundingClientRect();
      }
      rest -= node.length;
    }
    return this.mirror.getBoundingClientRect();
  }
}
