// Small helpers to build pages from nodes. Nothing here parses HTML: text from visitors and models only ever becomes
// text nodes, so it can't become markup.

/** Makes <tag> with the given attributes and children. `class`, `id`, `aria-*`, `data-*` ... are set as attributes,
 *  functions as listeners (`click: f`); children are nodes or strings; null and undefined are left out. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// One stroke path each, in a 24 by 24 box.
const ICONS = {
  send: "M12 20V5M5 12l7-7 7 7",
  stop: "M7 7h10v10H7z",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  check: "M4 12l6 6L20 6",
  again: "M20 11A8 8 0 1 0 18 17M20 4v7h-7",
  up: "M7 11v9H3v-9zM7 11l5-8c2 0 3 1 3 3l-1 4h6l-2 10H7",
  down: "M7 13V4H3v9zM7 13l5 8c2 0 3-1 3-3l-1-4h6L18 4H7",
  plus: "M12 5v14M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
  share: "M12 15V3M7 8l5-5 5 5M5 13v7h14v-7",
  edit: "M4 20l1-5L16 4l4 4L9 19zM14 6l4 4",
  back: "M15 5l-7 7 7 7",
  on: "M9 5l7 7-7 7",
  up_arrow: "M5 15l7-7 7 7",
  down_arrow: "M5 9l7 7 7-7",
  history: "M3 12a9 9 0 1 0 3-6.7M3 4v5h5M12 7v5l4 2",
  comment: "M4 5h16v11H10l-5 4v-4H4z",
  person: "M12 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8M4 21c0-4 3.6-6 8-6s8 2 8 6",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14M16 16l5 5",
  flag: "M6 21V4h12l-3 4 3 4H6",
  filter: "M4 5h16l-6 8v6l-4-2v-4z",
  remove: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  lock: "M6 11h12v9H6zM8.5 11V7.5a3.5 3.5 0 0 1 7 0V11",
  undo: "M9 14L4 9l5-5M4 9h10a6 6 0 0 1 0 12h-3",
  redo: "M15 14l5-5-5-5M20 9H10a6 6 0 0 0 0 12h3",
  fill: "M4 19h16M6 15l9-9 3 3-9 9H6z",
};

/** An icon as an <svg> node, hidden from screen readers (the button around it carries the label). */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const drawing = document.createElementNS(space, "svg");
  drawing.setAttribute("viewBox", "0 0 24 24");
  drawing.setAttribute("aria-hidden", "true");
  drawing.setAttribute("class", "glm-icon");
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", ICONS[name]);
  drawing.append(path);
  return drawing;
}

/** Copies text; resolves to false where the browser refuses. The clipboard interface exists only on https and
 *  localhost, so a page served by plain http in a lab needs the older way. */
export async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch (refusal) {
      if (refusal.name !== "NotAllowedError") throw refusal;
    }
  }
  const area = element("textarea", { class: "glm-hidden", "aria-hidden": "true", tabindex: "-1" });
  const before = document.activeElement;
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  before?.focus({ preventScroll: true });
  return copied;
}

/** Session storage that survives a full or forbidden store: losing the memory of a page is no reason to stop it. */
export const memory = {
  read(key) {
    try {
      return JSON.parse(sessionStorage.getItem(key));
    } catch (problem) {
      console.warn("Can't read the session's memory:", problem.message);
      return null;
    }
  },
  write(key, value) {
    try {
      sessionStorage.setItem(key, JSON.stringify(value));
    } catch (problem) {
      console.warn("Can't keep the session's memory:", problem.message);
    }
  },
};

/** Calls `paint` at most once a frame, however often the returned function is called. A hidden tab gets no frames,
 *  so there a timer paints: a screen reader or a test in a background tab still sees the text. */
export function onceAFrame(paint) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    const run = () => {
      if (!waiting) return;
      waiting = false;
      paint();
    };
    if (document.hidden) setTimeout(run, 100);
    else requestAnimationFrame(run);
  };
}

/** An id that no other page makes; crypto.randomUUID exists only on https and localhost. */
export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
