// A filled text as data, without the page: {source, blanks, result, ...}. A blank is {mask, text, alternatives, own, scored,
// locked, begun, done}: `alternatives` [{text, logprob, tokens}] as the model gave them, `own` the visitor's words for it,
// `scored` {context, values: {words: {logprob, tokens}}} what the model said to words in one state of the other blanks.
// `tokens` [{text, logprob}] of an alternative is null where it is unknown; the end of a fill is a token with text null.
// `result` is the server's own composition, null while there is none or after the visitor changed something.

import { currentLanguage } from "./language.js";

const MASK = /(\[MASK\]|\[sMASK\]|\[gMASK\])/;
const LIKE_MASK = /\[\s*[a-z]{0,3}\s*mask\s*\]/i; // what the server refuses, too
const OWN_WORDS = 5; // that are kept for one blank

/** The parts of a text; every second one, from the second on, is a mask. */
export const split = (source) => source.split(MASK);

/** Whether a text has a mask in it, or what the server would take for a misspelt one. */
export const hasMask = (words) => LIKE_MASK.test(words);

/** Like `split`, but a text without any mask gets one at its end, as on the server. */
function pieces(source) {
  const parts = split(source);
  if (parts.length === 1) parts.push("[gMASK]", "");
  return parts;
}

/** The blanks of a text, in order. own: for each the words that stood there before, or null. */
export function emptyBlanks(source, own = []) {
  const masks = pieces(source).filter((_, at) => at % 2);
  return masks.map((mask, at) => emptied({ mask, own: own[at] ? [own[at]] : [], locked: false }));
}

/** A blank as before it was filled; what it was is `former`, until the new fill has come. */
export function emptied({ mask, own, locked }, former = null) {
  const blank = { mask, text: "", alternatives: [], own, scored: null, locked, begun: false, done: false };
  return former ? { ...blank, former } : blank;
}

/** Puts the model's fill into a blank: a `blank` event, or what the server's record has of one. */
export function fillBlank(blank, { text, alternatives = [], tokens = null, logprobs = [] }) {
  const known = tokens ?? logprobs.map((logprob, at) => ({ text: `${at + 1}`, logprob }));
  blank.alternatives = alternatives.map(({ text: words, logprob, finish_reason: reason = "stop" }, at) => ({
    text: words,
    logprob,
    tokens: at === 0 && known.length ? withEnd(known, logprob, reason) : null,
  }));
  Object.assign(blank, { text, scored: null, begun: true, done: blank.alternatives.length > 0 });
}

/** The tokens of a fill with the end that follows them: the fill's probability counts it, theirs don't. */
export function withEnd(tokens, logprob, reason) {
  const out = tokens.map(({ text, logprob: one }) => ({ text, logprob: one }));
  const rest = logprob - out.reduce((sum, token) => sum + token.logprob, 0);
  if ((reason === "stop" || reason === "scored") && Number.isFinite(rest)) out.push({ text: null, logprob: Math.min(0, rest) });
  return out;
}

/** Keeps words of the visitor's own for a blank, the newest last. */
export function keepOwn(blank, words) {
  blank.own = [...blank.own.filter((one) => one.trim() !== words.trim()), words].slice(-OWN_WORDS);
}

/** The parts of a text with `words` in its blanks, in order; null leaves the mask. A blank's part has its index. A leading space
 *  goes where one stands already, or where the text begins. */
function laidOut(source, words) {
  let before = "";
  return pieces(source).map((part, at) => {
    const out = { text: part };
    if (at % 2) {
      out.index = (at - 1) / 2;
      const fill = words[out.index];
      if (fill !== null) out.text = fill.startsWith(" ") && (!before || /\s$/.test(before)) ? fill.slice(1) : fill;
    }
    before += out.text;
    return out;
  });
}

/** The text as parts in order: {text} and {text, index, blank}. */
export function sequence(filled) {
  const parts = laidOut(filled.source, filled.blanks.map((blank) => blank.text));
  return parts
    .filter((part) => part.text || part.index !== undefined)
    .map((part) => (part.index === undefined ? part : { ...part, blank: filled.blanks[part.index] }));
}

/** The filled text for copying: the server's own where nothing was changed; blanks that were not reached stay masks. */
export function plain(filled) {
  if (filled.result !== null) return filled.result;
  return sequence(filled).map((part) => (part.blank && !part.blank.begun ? part.blank.mask : part.text)).join("");
}

/** What is sent so that only the blanks `open` (indexes) are filled: {text, map}, map[k] the index here of the text's blank k.
 *  All others keep their words; one that has none yet stays a blank. */
export function refilling(filled, open) {
  const map = [];
  const words = filled.blanks.map((blank, at) => (open.includes(at) || !blank.begun ? null : blank.text));
  const parts = laidOut(filled.source, words);
  for (const { text, index } of parts) {
    if (index === undefined) continue;
    if (words[index] === null) map.push(index);
    else for (let masks = (split(text).length - 1) / 2; masks > 0; masks -= 1) map.push(null); // the model wrote them
  }
  return { text: parts.map((part) => part.text).join(""), map };
}

/** The words that stand in `prompt` in place of each blank of `source`, null for a mask that is still one; null when the prompt
 *  was not made from that text. The reverse of `refilling`. */
export function aligned(source, prompt) {
  const parts = pieces(source);
  const whole = split(source).length === 1 && prompt === source ? prompt + parts[1] : prompt;
  if (!whole.startsWith(parts[0])) return null;
  let at = parts[0].length;
  const words = [];
  for (let next = 1; next < parts.length; next += 2) {
    const [mask, after] = [parts[next], parts[next + 1]];
    const masked = whole.startsWith(mask + after, at);
    const last = next + 2 === parts.length;
    const end = masked ? at + mask.length : last ? whole.length - after.length : whole.indexOf(after, at);
    if (end < at || !whole.startsWith(after, end)) return null;
    words.push(masked ? null : whole.slice(at, end));
    if (!masked && MASK.test(words.at(-1))) return null; // a blank in a place where that text has none
    at = end + after.length;
  }
  return at === whole.length ? words : null;
}

/** The choices for a blank, each once, the likeliest first: [{text, logprob, tokens, own, model}]. context: the text around it as
 *  it is now; where words were scored in it, their scores stand instead of what was known from the fill. */
export function choices(blank, context) {
  const scored = blank.scored?.context === context ? blank.scored.values : null;
  const unique = new Map();
  const add = (words, more) => {
    const key = words.trim();
    if (!unique.has(key)) unique.set(key, { text: words, logprob: null, tokens: null, own: false, model: false });
    const row = unique.get(key);
    row.own ||= more.own ?? false;
    row.model ||= more.model ?? false;
    row.logprob ??= more.logprob ?? null;
    row.tokens ??= more.tokens ?? null;
  };
  for (const one of blank.alternatives) add(one.text, { ...one, model: true });
  for (const words of blank.own) add(words, { own: true });
  if (blank.begun) add(blank.text, {});
  const rows = [...unique.values()];
  if (scored) for (const row of rows) Object.assign(row, { logprob: null, tokens: null }, scored[row.text.trim()]);
  return rows.sort((one, other) => (other.logprob ?? -Infinity) - (one.logprob ?? -Infinity) || 0);
}

/** How the visitor's newest scored words compare with the likeliest fill of the model: {key, values} of a text, or null. */
export function verdict(blank, rows) {
  const named = (words) => rows.find((row) => row.text.trim() === words.trim() && row.logprob !== null);
  const own = [...blank.own].reverse().map(named).find(Boolean);
  if (!own) return null;
  const best = rows.find((row) => row.model && row !== own && row.logprob !== null);
  const values = { own: own.text.trim(), fill: best?.text.trim() };
  if (own.model && (!best || best.logprob <= own.logprob)) return { key: "blanks.score.same", values };
  if (!best) return null;
  const ratio = Math.exp(Math.min(Math.abs(best.logprob - own.logprob), 30));
  if (ratio < 1.1) return { key: "blanks.score.even", values };
  const digits = { notation: "compact", compactDisplay: "long", maximumSignificantDigits: 2 };
  values.times = new Intl.NumberFormat(currentLanguage(), digits).format(ratio);
  return { key: best.logprob > own.logprob ? "blanks.score.fill" : "blanks.score.own", values };
}

/** A logprob as a share for a person; null if there is none. */
export function percent(logprob) {
  if (logprob === null || logprob === undefined || !Number.isFinite(logprob)) return null;
  const share = Math.exp(logprob);
  if (share < 0.001) return "<0.1%";
  return new Intl.NumberFormat(currentLanguage(), { style: "percent", maximumSignificantDigits: share > 0.1 ? 3 : 2 }).format(share);
}

/** The visitor's own words for each blank of `after`, when one piece of `before` was replaced and those of `before` are known: a
 *  blank that took the place of words keeps them, through undo and redo, too. */
export function carried(before, words, after) {
  const shorter = Math.min(before.length, after.length);
  let start = 0;
  while (start < shorter && before[start] === after[start]) start += 1;
  let tail = 0;
  while (tail < shorter - start && before.at(-1 - tail) === after.at(-1 - tail)) tail += 1;
  const grown = after.length - before.length;
  const known = new Map(places(before).map((place, at) => [place.start, words[at] ?? null]));
  return places(after).map((place) => {
    if (place.end <= start) return known.get(place.start) ?? null;
    if (place.start >= after.length - tail) return known.get(place.start - grown) ?? null;
    if (place.start > start || place.end < after.length - tail) return null; // more than this blank is new
    const replaced = before.slice(place.start, Math.max(place.start, place.end - grown));
    return replaced.trim() && !/MASK/.test(replaced) ? replaced : null;
  });
}

/** Where the masks of a text stand: [{start, end}] in characters. */
export function places(source) {
  let at = 0;
  const found = split(source).map((part) => ({ start: at, end: (at += part.length) }));
  return found.filter((_, number) => number % 2);
}
