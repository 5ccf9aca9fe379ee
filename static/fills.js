// A filled text as data, without the page: {source, blanks: [{mask, text, alternatives, begun, done}], result}.
// `result` is the server's own composition, null while there is none or after the visitor took another choice.

import { currentLanguage } from "./language.js";

const MASK = /(\[MASK\]|\[sMASK\]|\[gMASK\])/;

/** The parts of a text; every second one, from the second on, is a mask. */
export const split = (source) => source.split(MASK);

/** The blanks of a text, in order; a text without any gets one at its end, as on the server. */
export function emptyBlanks(source) {
  const masks = split(source).filter((_, at) => at % 2);
  return (masks.length ? masks : ["[gMASK]"]).map((mask) => ({ mask, text: "", alternatives: [], begun: false, done: false }));
}

/** The text as parts in order: {text} and {text, index, blank}. A fill's leading space goes where one stands already. */
export function sequence(filled) {
  const parts = split(filled.source);
  if (parts.length === 1) parts.push("[gMASK]", "");
  const out = [];
  let before = "";
  parts.forEach((part, at) => {
    if (at % 2 === 0) {
      if (part) out.push({ text: part });
      before += part;
      return;
    }
    const index = (at - 1) / 2;
    const blank = filled.blanks[index];
    const words = before.endsWith(" ") && blank.text.startsWith(" ") ? blank.text.slice(1) : blank.text;
    out.push({ text: words, index, blank });
    before += words;
  });
  return out;
}

/** The filled text for copying: the server's own where nothing was changed; blanks that were not reached stay masks. */
export function plain(filled) {
  if (filled.result !== null) return filled.result;
  return sequence(filled).map((part) => (part.blank && !part.blank.begun ? part.blank.mask : part.text)).join("");
}

/** The different choices of a blank, the likeliest first. */
export function choices(blank) {
  const all = blank.alternatives.length ? blank.alternatives : [{ text: blank.text, logprob: null }];
  const unique = new Map();
  for (const one of all) if (!unique.has(one.text.trim())) unique.set(one.text.trim(), one);
  return [...unique.values()].sort((one, other) => (other.logprob ?? 0) - (one.logprob ?? 0));
}

/** A logprob as a share for a person; null if there is none. */
export function percent(logprob) {
  if (logprob === null || logprob === undefined || !Number.isFinite(logprob)) return null;
  const share = Math.exp(logprob);
  if (share < 0.001) return "<0.1%";
  return new Intl.NumberFormat(currentLanguage(), { style: "percent", maximumSignificantDigits: share > 0.1 ? 3 : 2 }).format(share);
}
