// What the chat and the blanks share: how a run's events become the state of an answer, and the line of buttons and
// facts below it. An answer is plain data that survives a reload: {status, run, request, error, meta, rating, ...}.

import { copy, element, icon } from "./dom.js";
import { bind, currentLanguage, errorText, text } from "./language.js";

/** A new answer to a request, before the server said anything. */
export function newAnswer(request) {
  return { status: "running", run: null, request, queue: null, error: null, meta: {}, rating: 0 };
}

/** Books what every kind of run has in common: acceptance, queue, start and end. Text is the pane's own business. */
export function book(answer, event) {
  if (event.type === "accepted") answer.run = event.run;
  else if (event.type === "queued") answer.queue = { position: event.position + 1, eta: event.eta_s }; // 0 is next
  else if (event.type === "started") {
    answer.queue = null;
    answer.meta.model = event.model;
    answer.meta.dropped = event.dropped_messages ?? 0;
  } else if (event.type === "done") {
    answer.status = "done";
    Object.assign(answer.meta, { reason: event.finish_reason, seed: event.seed, usage: event.usage ?? null });
  } else if (event.type === "cancelled") answer.status = "cancelled";
  else if (event.type === "error") {
    answer.status = "error";
    answer.error = { kind: event.kind, message: event.message ?? "", retryAfter: event.retry_after_s ?? null };
  }
}

/** One line for what a running answer waits for. */
export function waitingText(answer) {
  if (!answer.queue) return text("waiting");
  const { position, eta } = answer.queue;
  if (eta === null || eta === undefined) return text("queued", { position });
  return text("queued.eta", { position, seconds: Math.max(1, Math.round(eta)) });
}

/** The facts below a finished answer: model, tokens, speed, seed, and why it ended if not by itself. */
export function facts(answer) {
  const { model, usage, seed, reason, dropped } = answer.meta;
  const parts = [];
  if (answer.status === "cancelled") parts.push(text("stopped"));
  if (reason === "length") parts.push(text("cut"));
  if (dropped) parts.push(text("chat.dropped", { count: dropped }));
  if (model) parts.push(model);
  if (usage) {
    const speed = new Intl.NumberFormat(currentLanguage(), { maximumFractionDigits: 1 });
    const seconds = usage.seconds - (usage.first_token_seconds ?? 0);
    const measured = usage.tokens_per_second ?? (seconds > 0 ? (usage.new_tokens - 1) / seconds : 0);
    parts.push(text("speed", { tokens: usage.new_tokens, speed: speed.format(measured) }));
  }
  if (seed !== undefined && seed !== null) parts.push(text("seed.used", { seed }));
  return parts.join(" · ");
}

/** The box that explains an error, with a button that tries again unless `again` is null. */
export function errorBox(answer, again) {
  const { kind, message, retryAfter } = answer.error;
  const sentence = errorText(kind);
  const box = element("div", { class: "glm-error", role: "alert" }, element("p", {}, sentence));
  if (retryAfter) box.append(element("p", {}, text("error.retry_after", { seconds: Math.ceil(retryAfter) })));
  // What the server says names the field or the limit. It is English, so it stands below the translated sentence.
  if (message && !message.startsWith(sentence.slice(0, -1))) box.append(element("p", { class: "glm-detail" }, message));
  if (again) box.append(button("again", "retry", again, { class: "glm-button glm-retry" }, true));
  return box;
}

/** A button with an icon and its text as a label, and with `worded` also as visible text. */
export function button(drawing, key, click, attributes = {}, worded = false) {
  const node = element("button", { type: "button", class: "glm-quiet", click, ...attributes }, icon(drawing));
  if (worded) {
    node.append(bind(element("span"), key));
    return node;
  }
  bind(node, key, {}, "label");
  return bind(node, key, {}, "title");
}

/** A button with an example: {language, text}. */
export function exampleButton(example, attributes) {
  const foreign = example.language === currentLanguage() ? "" : " glm-foreign";
  return element("button", { type: "button", class: `glm-example${foreign}`, lang: example.language, ...attributes }, example.text);
}

export function copyButton(key, source, attributes = {}, worded = false) {
  const click = async () => {
    const copied = await copy(source());
    notice(text(copied ? "copied" : "copy.failed"));
    if (!copied) return;
    node.firstChild.replaceWith(icon("check"));
    setTimeout(() => node.firstChild.replaceWith(icon("copy")), 1500);
  };
  const node = button("copy", key, click, attributes, worded);
  return node;
}

/** Thumbs up and down for a finished answer; `changed` is called after a rating was stored. */
export function thumbs(answer, changed) {
  const rate = async (thumb) => {
    const rating = answer.rating === thumb ? 0 : thumb; // pressed again, a thumb is taken back
    let stored = null;
    try {
      const reply = await fetch(new URL("api/feedback", document.baseURI), {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ run: answer.run, rating }),
      });
      // Read to its end even when it isn't needed: an unread answer keeps its connection busy.
      const body = await reply.json();
      if (reply.ok) stored = body.rating;
    } catch (problem) {
      console.warn("Can't send a rating:", problem.message);
    }
    notice(text(stored === null ? "feedback.failed" : "feedback.thanks"));
    if (stored === null) return;
    answer.rating = stored;
    show();
    changed();
  };
  const good = button("up", "good", () => rate(1), { class: "glm-quiet glm-good" });
  const bad = button("down", "bad", () => rate(-1), { class: "glm-quiet glm-bad" });
  const show = () => {
    good.setAttribute("aria-pressed", String(answer.rating === 1));
    bad.setAttribute("aria-pressed", String(answer.rating === -1));
  };
  show();
  return [good, bad];
}

let noticeTimer = null;

/** A short message at the edge of the page, read aloud by screen readers. */
export function notice(message) {
  let node = document.getElementById("glm-notice");
  if (!node) {
    node = element("div", { id: "glm-notice", class: "glm-notice", role: "status", "aria-live": "polite" });
    document.body.append(node);
  }
  node.textContent = message;
  node.classList.add("glm-shown");
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => node.classList.remove("glm-shown"), 3000);
}
