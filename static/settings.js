// The sampling settings as data: which of them a request sends, and which can't be used together. The fields are the names of
// the Gradio components in app/ui/playground.py, which are the names on the wire.

const SAMPLING = ["temperature", "top_k", "top_p", "repetition_penalty"];
const BEAMS = ["length_penalty", "sampled_beams"];
const DEFAULT_BEAMS = 4; // where a pane wants a beam search and the settings have none

/** Whether the settings ask for a beam search. */
export const searches = (settings) => settings.num_beams > 1;

/** The parameters of a request. kind: "chat", "fill" (as the settings say), "sample" (never a beam search), "beam" (always one).
 *  What the settings leave to the server isn't sent. */
export function parameters(settings, kind) {
  const beams = kind === "beam" || (kind !== "sample" && searches(settings));
  const chosen = {};
  if (settings.max_new_tokens > 0) chosen.max_new_tokens = settings.max_new_tokens; // else as suits the kind of blank
  if (settings.min_new_tokens > 0) chosen.min_new_tokens = settings.min_new_tokens;
  if (settings.no_repeat_ngram > 0) chosen.no_repeat_ngram = settings.no_repeat_ngram;
  const seed = settings.seed?.trim();
  // What is no number goes as it is: the server then says what is wrong with it.
  if (seed && (!beams || settings.sampled_beams)) chosen.seed = /^\d{1,15}$/.test(seed) ? Number(seed) : seed;
  if (beams) {
    chosen.num_beams = searches(settings) ? settings.num_beams : DEFAULT_BEAMS;
    if (settings.length_penalty !== undefined && settings.length_penalty !== 1) chosen.length_penalty = settings.length_penalty;
    if (settings.sampled_beams) chosen.sampled_beams = true;
    return chosen;
  }
  for (const name of SAMPLING) if (settings[name] !== undefined) chosen[name] = settings[name];
  const stop = (settings.stop ?? "").split("\n").filter((line) => line !== "");
  if (stop.length) chosen.stop = stop;
  if (kind === "fill" && settings.alternatives > 1) chosen.alternatives = settings.alternatives;
  return chosen;
}

/** Which components can't have an effect now, with the key of the text that says why: {name: key}. */
export function reasons(settings) {
  const off = {};
  if (searches(settings)) {
    for (const name of [...SAMPLING, "stop", "alternatives"]) off[name] = "off.beams";
    if (!settings.sampled_beams) off.seed = "off.beams";
    return off;
  }
  for (const name of BEAMS) off[name] = "off.sampling";
  if (settings.temperature === 0) for (const name of ["top_k", "top_p", "seed"]) off[name] = "off.greedy";
  else if (settings.top_k === 1) for (const name of ["top_p", "seed"]) off[name] = "off.greedy";
  return off;
}
