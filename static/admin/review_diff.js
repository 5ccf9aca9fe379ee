// The difference of two texts as parts [{kind: "same" | "out" | "in", text}]: by words, where a Han or kana character is a word of
// its own. Myers, "An O(ND) Difference Algorithm and Its Variations" (1986).

const WORD = /\p{Script=Han}|[\p{Script=Hiragana}\p{Script=Katakana}]|[\p{L}\p{M}\p{N}_]+(?:['’][\p{L}]+)*|\s+|[^\p{L}\p{M}\p{N}\s]/gu;
const MOST = 500; // changes; beyond this the texts have little to do with each other, and the middle is replaced as a whole

export const words = (text) => text.match(WORD) ?? [];

/** The parts in order; joined without "in" they are `before`, without "out" `after`. */
export function difference(before, after) {
  const [a, b] = [words(before), words(after)];
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head += 1;
  let tail = 0;
  while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail += 1;
  const middle = changes(a.slice(head, a.length - tail), b.slice(head, b.length - tail));
  const same = (list) => list.map((text) => ({ kind: "same", text }));
  return joined([...same(a.slice(0, head)), ...middle, ...same(a.slice(a.length - tail))]);
}

function changes(a, b) {
  const replaced = [...a.map((text) => ({ kind: "out", text })), ...b.map((text) => ({ kind: "in", text }))];
  if (!a.length || !b.length) return replaced;
  const trace = [];
  const furthest = new Map([[1, 0]]); // diagonal -> how far into `a` a path with so many changes came
  for (let d = 0; d <= Math.min(MOST, a.length + b.length); d += 1) {
    trace.push(new Map(furthest));
    for (let k = -d; k <= d; k += 2) {
      const down = k === -d || (k !== d && furthest.get(k - 1) < furthest.get(k + 1));
      let x = down ? furthest.get(k + 1) : furthest.get(k - 1) + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x += 1;
      furthest.set(k, x);
      if (x >= a.length && x - k >= b.length) return walkedBack(a, b, trace, d);
    }
  }
  return replaced;
}

function walkedBack(a, b, trace, last) {
  const parts = [];
  let [x, y] = [a.length, b.length];
  for (let d = last; d >= 0; d -= 1) {
    const furthest = trace[d];
    const k = x - y;
    const down = k === -d || (k !== d && furthest.get(k - 1) < furthest.get(k + 1));
    const from = down ? k + 1 : k - 1;
    const [toX, toY] = d === 0 ? [0, 0] : [furthest.get(from), furthest.get(from) - from];
    while (x > toX && y > toY) parts.push({ kind: "same", text: a[((y -= 1), (x -= 1))] });
    if (d > 0) parts.push(down ? { kind: "in", text: b[(y -= 1)] } : { kind: "out", text: a[(x -= 1)] });
  }
  return parts.reverse();
}

/** Neighbours of one kind as one part; of what changed, what went stands before what came, spaces between changes included. */
function joined(parts) {
  const out = [];
  let [went, came] = ["", ""];
  const flush = () => {
    if (went) out.push({ kind: "out", text: went });
    if (came) out.push({ kind: "in", text: came });
    [went, came] = ["", ""];
  };
  parts.forEach(({ kind, text }, at) => {
    const between = kind === "same" && !text.trim() && (went || came) && parts[at + 1] && parts[at + 1].kind !== "same";
    if (kind === "out" || between) went += text;
    if (kind === "in" || between) came += text;
    if (kind !== "same" || between) return;
    flush();
    const before = out.at(-1);
    if (before?.kind === "same") before.text += text;
    else out.push({ kind, text });
  });
  flush();
  return out;
}
