// How much of the model's room a text takes, and how long its answer will take, shown before it is sent. The server counts
// (POST /api/estimate), since only it knows the vocabulary, the rule by which old messages are dropped, and its own pace.

import { element } from "./dom.js";
import { bind, currentLanguage, errorStep, errorText, onLanguage, text } from "./language.js";

const PAUSE = 350; // ms without typing before the server is asked
const WARN = 0.75; // share of the room from which on the rule for what is dropped is shown

export class Meter {
  /** ask(): what would be sent now, {type, messages or text, parameters}, or null while that is nothing. rule: key of the text
   *  that says what happens when the room is full; {positions} in it is the model's. */
  constructor(id, ask, rule) {
    this.ask = ask;
    this.rule = rule;
    this.estimate = null;
    this.timer = null;
    this.asking = null; // AbortController of the question under way
    this.bar = element("span", { class: "glm-meter-bar", role: "meter", "aria-valuemin": "0" });
    bind(this.bar, "meter.label", {}, "label");
    this.words = element("span", { class: "glm-meter-words" });
    this.warning = element("span", { class: "glm-meter-rule" });
    this.node = element("p", { class: "glm-meter", id, hidden: true }, this.bar, this.words, this.warning);
    onLanguage(() => this.show());
    document.addEventListener("glm-settings", () => this.changed());
  }

  /** The text, the conversation or the settings changed. */
  changed() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.look(), PAUSE);
  }

  async look() {
    this.asking?.abort();
    const body = this.ask();
    if (!body) return this.take(null);
    const asking = new AbortController();
    this.asking = asking;
    try {
      const answer = await fetch(new URL("api/estimate", document.baseURI), {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(body),
        signal: asking.signal,
      });
      const found = await answer.json();
      if (this.asking === asking) this.take(answer.ok ? found : { kind: found.error?.kind ?? "internal" });
    } catch (problem) {
      if (problem.name === "AbortError") return;
      console.warn("Can't ask for an estimate:", problem.message);
      this.take(null);
    }
  }

  take(estimate) {
    this.estimate = estimate;
    this.show();
  }

  show() {
    const { estimate } = this;
    this.node.hidden = !estimate;
    if (!estimate) return;
    if (estimate.kind) return this.refuse(estimate.kind);
    const { prompt_tokens: used, positions, dropped_messages: dropped, seconds } = estimate;
    const share = Math.min(1, used / positions);
    this.bar.style.setProperty("--share", share);
    this.bar.setAttribute("aria-valuemax", String(positions));
    this.bar.setAttribute("aria-valuenow", String(Math.min(used, positions)));
    this.bar.dataset.level = dropped ? "full" : share >= WARN ? "high" : "low";
    const parts = [text("meter.tokens", { used, positions })];
    if (seconds !== null && seconds !== undefined) parts.push(text("meter.seconds", { seconds: rounded(seconds) }));
    this.words.textContent = parts.join(" · ");
    const rule = [];
    if (dropped) rule.push(text("meter.dropped", { count: dropped }));
    if (dropped || share >= WARN) rule.push(text(this.rule, { positions }));
    this.warning.textContent = rule.join(" ");
    this.warning.hidden = !rule.length;
  }

  /** What can't be sent as it is. Other reasons than its length are told when it is sent. */
  refuse(kind) {
    this.node.hidden = kind !== "prompt_too_long";
    this.bar.dataset.level = "full";
    this.bar.removeAttribute("aria-valuenow");
    this.words.textContent = errorText(kind);
    this.warning.hidden = false;
    this.warning.textContent = errorStep(kind);
  }
}

/** Seconds as a person says them: "0.4", "6", "75". */
function rounded(seconds) {
  const digits = seconds < 1 ? 1 : 0;
  return new Intl.NumberFormat(currentLanguage(), { maximumFractionDigits: digits }).format(Math.max(0.1, seconds));
}
