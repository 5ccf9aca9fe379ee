// The output of a run as text that can be selected: tokens coloured by their probability, corrected spans with what replaces them.
// Positions are Unicode characters (code points) of the output as the model wrote it, which is what the server counts in.

import { element } from "../dom.js";
import { text } from "../language.js";

const MASK = /\[MASK\]|\[sMASK\]|\[gMASK\]/;
const HEAT = [0.05, 0.2, 0.5, 0.8]; // probabilities from which on a token is shown one step surer

export const characters = (words) => Array.from(words);

/** Where the tokens stand in the output: [{start, end, logprob, blank}], those that can't be told left out. */
export function tokenPlaces({ run, blanks }) {
  const output = run.output ?? "";
  const places = [];
  let at = 0; // UTF-16 units
  const parts = run.mode === "fill" ? String(run.prompt).split(MASK) : [""];
  if (run.mode === "fill" && parts.length === 1) parts.push("");
  blanks.forEach((blank, number) => {
    if (run.mode === "fill") {
      const found = output.indexOf(parts[number] ?? "", at);
      if (found !== at) return;
      at += (parts[number] ?? "").length;
    }
    let inside = at;
    blank.tokens.forEach((token, index) => {
      let words = token.text ?? "";
      // The first token's space goes where one stands already, or where the text begins.
      if (index === 0 && words.startsWith(" ") && !output.startsWith(words, inside)) words = words.slice(1);
      if (!words || !output.startsWith(words, inside)) return;
      places.push({ start: inside, end: inside + words.length, logprob: token.logprob, blank: number });
      inside += words.length;
    });
    at = inside;
  });
  return inCharacters(places, output);
}

function inCharacters(places, output) {
  let [units, count] = [0, 0];
  const counted = (to) => {
    count += characters(output.slice(units, to)).length;
    units = to;
    return count;
  };
  return places.map((place) => ({ ...place, start: counted(place.start), end: counted(place.end) }));
}

export const heat = (logprob) => HEAT.filter((share) => Math.exp(logprob) >= share).length;

/** An element with the output. places: of `tokenPlaces`, [] for no colours; spans: the corrected ones, each a button that calls
 *  open(span). */
export function drawOutput(output, places, spans, open) {
  const all = characters(output);
  const ordered = [...spans].sort((one, other) => one.start - other.start);
  const cuts = new Set([0, all.length, ...places.flatMap(({ start, end }) => [start, end]), ...ordered.flatMap(({ start, end }) => [start, end])]);
  const edges = [...cuts].sort((one, other) => one - other);
  const node = element("div", { class: "glm-output", id: "glm-output", dir: "auto", tabindex: "0", role: "group" });
  const place = new Map(places.map((one) => [one.start, one]));
  let inside = null; // the corrected span that is being drawn
  for (let at = 0; at < edges.length; at += 1) {
    const [start, end] = [edges[at], edges[at + 1] ?? edges[at]];
    if (inside && start >= inside.end) inside = null;
    const begun = ordered.find((span) => span.start === start && span !== inside);
    if (begun && !node.querySelector(`[data-span="${begun.id}"]`)) {
      node.append(replacement(begun, open));
      inside = begun.end > start ? begun : null;
    }
    if (end === start) continue;
    const words = all.slice(start, end).join("");
    const token = place.get(start) ?? places.find((one) => one.start <= start && start < one.end);
    const piece = element("span", { "data-at": start }, words);
    if (inside) piece.className = "glm-rejected";
    else if (token) {
      const step = heat(token.logprob);
      if (step < HEAT.length) piece.className = `glm-heat glm-heat-${step}`;
      piece.title = text("review.token", { percent: percent(Math.exp(token.logprob)) });
    }
    node.append(piece);
  }
  return node;
}

function replacement(span, open) {
  const words = span.chosen || text("review.nothing");
  const node = element("button", { type: "button", class: "glm-chosen", "data-span": span.id, "data-point": span.start, click: () => open(span) }, words);
  node.setAttribute("aria-label", text("review.span.open", { rejected: span.rejected || text("review.nothing"), chosen: words }));
  return node;
}

export function percent(share) {
  if (share >= 0.995) return "100 %";
  return share >= 0.1 ? `${Math.round(share * 100)} %` : `${(share * 100).toPrecision(share < 0.001 ? 1 : 2)} %`;
}

/** What is selected in the output: {start, end}, null where nothing of it is. */
export function selected(node) {
  const selection = document.getSelection();
  if (!selection.rangeCount || selection.isCollapsed) return null;
  const range = selection.getRangeAt(0);
  if (!range.intersectsNode(node)) return null;
  const [start, end] = [position(node, range.startContainer, range.startOffset, 0), position(node, range.endContainer, range.endOffset, 1)];
  return start === null || end === null || end <= start ? null : { start, end };
}

/** The character at a point of the document; what lies before the output is its beginning, what lies behind it its end. */
function position(node, container, offset, edge) {
  if (!node.contains(container)) {
    const before = node.compareDocumentPosition(container) & Node.DOCUMENT_POSITION_PRECEDING;
    return edge === 0 && before ? 0 : edge === 1 && !before ? length(node) : null;
  }
  if (container.nodeType === Node.TEXT_NODE) {
    const owner = container.parentElement.closest("[data-at], [data-point]");
    if (!owner) return null;
    if (owner.dataset.point !== undefined) return Number(owner.dataset.point);
    return Number(owner.dataset.at) + characters(container.data.slice(0, offset)).length;
  }
  const next = container.childNodes[offset] ?? null;
  if (container !== node) return position(node, node, [...node.childNodes].findIndex((one) => one.contains(container)) + (next ? 0 : 1), edge);
  for (let one = next; one; one = one.nextSibling) if (one.dataset.at !== undefined) return Number(one.dataset.at);
  return length(node);
}

const length = (node) => [...node.querySelectorAll("[data-at]")].reduce((sum, one) => sum + characters(one.textContent).length, 0);

/** Selects characters of the output, as a mouse would. */
export function select(node, { start, end }) {
  const [from, to] = [point(node, start, false), point(node, end, true)];
  if (from && to) document.getSelection().setBaseAndExtent(...from, ...to);
}

function point(node, character, behind) {
  for (const piece of node.querySelectorAll("[data-at]")) {
    const at = Number(piece.dataset.at);
    const all = characters(piece.textContent);
    const last = at + all.length;
    if (behind ? character > at && character <= last : character >= at && character < last) {
      return [piece.firstChild, all.slice(0, character - at).join("").length];
    }
  }
  return null;
}

/** The words of a text as [{start, end}] in characters, without spaces between; Han text is cut as its readers would. */
export function wordPlaces(output, language) {
  const out = [];
  let at = 0;
  for (const { segment } of new Intl.Segmenter(language, { granularity: "word" }).segment(output)) {
    const count = characters(segment).length;
    if (segment.trim()) out.push({ start: at, end: at + count });
    at += count;
  }
  return out;
}
