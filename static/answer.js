// What the chat and the blanks share: how a run's events become the state of an answer, and the line of buttons and
// facts below it. An answer is plain data that survives a reload: {status, run, request, error, meta, rating, ...}.

import { copy, element, icon } from "./dom.js";
import { bind, currentLanguage, errorStep, errorText, text } from "./language.js";

const WAITS = new Set(["queue_full", "overloaded", "not_ready", "rate_limited"]); // what passes by itself
const AUTOMATIC = 5; // times that the page tries again by itself, one after the other

let automatic = 0; // such tries since the last one that was taken

/** A new answer to a request, before the server said anything. */
export function newAnswer(request) {
  return { status: "running", run: null, request, queue: null, error: null, meta: {}, rating: 0 };
}

/** The answer's own fields for a run of the server's record (GET /api/conversations/ID). */
export function storedAnswer(run) {
  const running = run.status === "accepted" || run.status === "running";
  const failed = run.status === "error" || run.status === "interrupted";
  const usage = run.new_tokens === null ? null : { prompt_tokens: run.prompt_tokens, new_tokens: run.new_tokens };
  return {
    ...newAnswer(null),
    status: running ? "running" : failed ? "error" : run.status,
    run: run.id,
    error: failed ? { kind: run.error_kind ?? "interrupted", message: run.error_message ?? "", retryAfter: null } : null,
    meta: { model: run.fingerprint?.model, reason: run.finish_reason, seed: run.seed, usage },
    rating: run.rating ?? 0,
    comment: run.comment ?? "",
  };
}

/** Books what every kind of run has in common: acceptance, queue, start and end. Text is the pane's own business. */
export function book(answer, event) {
  if (event.type === "accepted") Object.assign(answer, { run: event.run, unlogged: event.log === false });
  else if (event.type === "queued") answer.queue = { position: event.position + 1, eta: event.eta_s }; // 0 is next
  else if (event.type === "started") {
    automatic = 0;
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

/** The facts below a finished answer, a <span>: model, tokens, speed, why it ended if not by itself, and the seed as a button
 *  that sets it again. */
export function facts(answer) {
  const { model, usage, seed, reason, dropped } = answer.meta;
  const parts = [];
  if (answer.unlogged) parts.push(text("unlogged"));
  if (answer.status === "cancelled") parts.push(text("stopped"));
  if (reason === "length") parts.push(text("cut"));
  if (dropped) parts.push(text("chat.dropped", { count: dropped }));
  if (model) parts.push(model);
  if (usage) parts.push(measured(usage));
  const node = element("span", { class: "glm-facts" }, parts.join(" · "));
  if (seed === undefined || seed === null) return node;
  // The settings are the shell's: playground.js hears this.
  const use = () => document.dispatchEvent(new CustomEvent("glm-seed", { detail: seed }));
  const again = element("button", { type: "button", class: "glm-seed", click: use }, text("seed.used", { seed }));
  again.title = text("seed.again");
  node.append(parts.length ? " · " : "", again);
  return node;
}

function measured(usage) {
  const seconds = (usage.seconds ?? 0) - (usage.first_token_seconds ?? 0);
  const pace = usage.tokens_per_second ?? (seconds > 0 ? (usage.new_tokens - 1) / seconds : null);
  if (pace === null) return text("tokens", { tokens: usage.new_tokens });
  const speed = new Intl.NumberFormat(currentLanguage(), { maximumFractionDigits: 1 });
  return text("speed", { tokens: usage.new_tokens, speed: speed.format(pace) });
}

/** The box that explains an error and says what to do, with a button that tries again unless `again` is null. What passes by
 *  itself, as a full queue does, is tried again by itself when the server said when, a few times. */
export function errorBox(answer, again) {
  const { kind, message, retryAfter } = answer.error;
  const sentence = errorText(kind);
  const box = element("div", { class: "glm-error", role: "alert" }, element("p", {}, sentence));
  box.append(element("p", { class: "glm-step" }, errorStep(kind)));
  // What the server says names the field or the limit. It is English, so it stands below the translated sentence.
  if (message && !message.startsWith(sentence.slice(0, -1))) box.append(element("p", { class: "glm-detail" }, message));
  if (retryAfter && again && WAITS.has(kind) && automatic < AUTOMATIC) box.append(countdown(box, answer, again));
  else if (retryAfter) box.append(element("p", {}, text("error.retry_after", { seconds: Math.ceil(retryAfter) })));
  if (again) box.append(button("again", "retry", again, { class: "glm-button glm-retry" }, true));
  return box;
}

const deadlines = new WeakMap(); // answer -> when it is tried again, so that drawing it anew doesn't begin anew

function countdown(box, answer, again) {
  const end = deadlines.get(answer) ?? Date.now() + answer.error.retryAfter * 1000;
  deadlines.set(answer, end);
  const line = element("p", { class: "glm-countdown" });
  const tick = () => {
    const left = Math.ceil((end - Date.now()) / 1000);
    line.textContent = text("error.retrying", { seconds: Math.max(0, left) });
    if (left > 0) setTimeout(() => box.isConnected && tick(), Math.min(1000, end - Date.now()));
    else if (deadlines.delete(answer)) {
      automatic += 1;
      again();
    }
  };
  // The box gets its place in the page after this.
  setTimeout(() => box.isConnected && tick());
  line.textContent = text("error.retrying", { seconds: Math.ceil((end - Date.now()) / 1000) });
  return line;
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

/** Sends {rating} or {comment} on an answer; what is stored now, or null. */
async function tell(answer, said) {
  let stored = null;
  try {
    const reply = await fetch(new URL("api/feedback", document.baseURI), {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ run: answer.run, ...said }),
    });
    // Read to its end even when it isn't needed: an unread answer keeps its connection busy.
    const body = await reply.json();
    if (reply.ok) stored = body;
  } catch (problem) {
    console.warn("Can't send feedback:", problem.message);
  }
  notice(text(stored === null ? "feedback.failed" : "comment" in said ? "comment.thanks" : "feedback.thanks"));
  return stored;
}

/** Thumbs up and down for a finished answer; `changed` is called after a rating was stored. */
export function thumbs(answer, changed) {
  if (answer.unlogged) return []; // there is nothing that it could be stored with
  const rate = async (thumb) => {
    const rating = answer.rating === thumb ? 0 : thumb; // pressed again, a thumb is taken back
    const stored = await tell(answer, { rating });
    if (!stored) return;
    answer.rating = stored.rating;
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

/** Thumbs, and a button that opens a field for a written comment below `foot`; `changed` as in `thumbs`. */
export function opinion(answer, foot, changed) {
  if (answer.unlogged) return [];
  const open = button("comment", "comment", () => toggle(), { class: "glm-quiet glm-comment", "aria-expanded": "false" });
  const mark = () => open.setAttribute("aria-pressed", String(Boolean(answer.comment)));
  let form = null;
  const close = () => {
    form.remove();
    form = null;
    open.setAttribute("aria-expanded", "false");
    open.focus({ preventScroll: true });
  };
  const toggle = () => {
    if (form) return close();
    const area = element("textarea", { class: "glm-comment-text", rows: "2", maxlength: "5000", dir: "auto" });
    area.value = answer.comment ?? "";
    bind(area, "comment.placeholder", {}, "placeholder");
    bind(area, "comment", {}, "label");
    const send = button("send", "comment.send", () => {}, { type: "submit", class: "glm-button glm-comment-send" }, true);
    const leave = button("close", "cancel", close, { class: "glm-button" }, true);
    form = element("form", { class: "glm-comment-form" }, area, element("div", { class: "glm-actions" }, send, leave));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const stored = await tell(answer, { comment: area.value.trim() });
      if (!stored) return;
      answer.comment = stored.comment;
      mark();
      changed();
      if (form) close();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.preventDefault();
      close();
    });
    foot.append(form);
    open.setAttribute("aria-expanded", "true");
    area.focus();
  };
  mark();
  return [...thumbs(answer, changed), open];
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
