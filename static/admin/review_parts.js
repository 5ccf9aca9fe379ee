// Parts of a run's view: the bar with stars, flag, tags, note and the state of saving; the box of a conflict; the facts below.

import { element } from "../dom.js";
import { text } from "../language.js";
import { difference } from "./review_diff.js";
import { percent } from "./review_output.js";
import { badge, button, moment, number, table } from "./parts.js";

const NOTE_PAUSE = 700; // ms without typing before a note is sent
const NOTE = 5000; // characters, as the server allows
const TAGS = 20;

/** The bar of one run: {node, update(), tag(), note()}. view: RunView. */
export function reviewBar(view) {
  const { draft, desk } = view;
  const star = (count) => {
    const set = (event) => {
      draft.set({ rating: draft.value.rating === count ? null : count });
      if (event.detail > 0) desk.rest();
    };
    return button("★", set, { class: "glm-star", "data-star": count, "aria-label": text("review.stars", { count }), title: `${text("review.stars", { count })} (${count})`, "aria-keyshortcuts": String(count) });
  };
  const stars = element("div", { class: "glm-stars", role: "group", "aria-label": text("review.rating") }, ...[1, 2, 3, 4, 5].map(star));
  const flag = button(text("review.flag"), () => draft.set({ flagged: !draft.value.flagged }), { drawing: "flag", id: "glm-flag", "aria-keyshortcuts": "f" });
  const done = button(text("review.done"), () => draft.set({ status: draft.value.status === "done" ? "open" : "done" }), { drawing: "check", id: "glm-done" });
  const next = button(text("review.done.next"), () => desk.doneAndNext(), { kind: "primary", id: "glm-done-next" });
  const saved = element("span", { class: "glm-saved", id: "glm-saved", role: "status" });
  const tags = tagEditor(view);
  const note = noteEditor(draft);
  const back = button(text("review.back"), () => desk.list(), { kind: "quiet", drawing: "back", class: "glm-quiet glm-only-narrow", id: "glm-back" });
  const up = button(text("review.previous"), () => desk.step(-1), { kind: "quiet", drawing: "up_arrow", id: "glm-previous" });
  const down = button(text("review.next"), () => desk.step(1), { kind: "quiet", drawing: "down_arrow", id: "glm-next" });
  const first = element("div", { class: "glm-bar" }, back, stars, flag, done, saved, element("span", { class: "glm-end glm-steps" }, up, down), next);
  const node = element("div", { class: "glm-card glm-review-bar" }, first, tags.node, note.node);
  const update = () => {
    const { rating, flagged, status } = draft.value;
    for (const one of stars.children) {
      const count = Number(one.dataset.star);
      one.setAttribute("aria-pressed", String(count === rating));
      one.classList.toggle("glm-star-on", rating !== null && count <= rating);
    }
    flag.setAttribute("aria-pressed", String(flagged));
    done.setAttribute("aria-pressed", String(status === "done"));
    saved.dataset.state = draft.state;
    const { reviewer, updated } = draft.review;
    saved.title = updated ? moment(updated).title : "";
    const by = reviewer ? text("review.saved.by", { name: reviewer.name }) : text("review.saved.none");
    saved.replaceChildren(draft.state === "saved" ? by : text(`review.state.${draft.state}`));
    tags.update();
    note.update();
  };
  return { node, update, tag: tags.open, note: note.open };
}

function tagEditor({ draft, desk }) {
  const list = element("div", { class: "glm-chips" });
  const known = element("datalist", { id: "glm-known-tags" });
  const input = element("input", { id: "glm-tag", maxlength: "40", list: "glm-known-tags", placeholder: text("review.tag"), "aria-label": text("review.tag"), autocomplete: "off", enterkeyhint: "done" });
  const form = element("form", { class: "glm-tag-form" }, input, known);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const added = input.value.split(",").map((one) => one.trim()).filter(Boolean);
    input.value = "";
    const tags = [...new Set([...draft.value.tags, ...added])].slice(0, TAGS);
    if (added.length) draft.set({ tags });
  });
  input.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Escape") desk.rest();
  });
  input.addEventListener("focus", async () => {
    if (known.childElementCount) return;
    try {
      const { tags } = await desk.api("tags?limit=100");
      known.replaceChildren(...tags.map(({ tag }) => element("option", { value: tag })));
    } catch (problem) {
      if (!problem.kind) throw problem; // without suggestions a tag can still be typed
    }
  });
  const update = () => {
    const shown = draft.value.tags.join("\n");
    if (list.dataset.shown === shown) return;
    list.dataset.shown = shown;
    const remove = (tag) => draft.set({ tags: draft.value.tags.filter((one) => one !== tag) });
    list.replaceChildren(...draft.value.tags.map((tag) => element("span", { class: "glm-chip" }, element("span", { dir: "auto" }, tag), button(text("review.tag.remove", { tag }), () => remove(tag), { kind: "quiet", drawing: "close" }))));
  };
  return { node: element("div", { class: "glm-bar glm-tags" }, list, form), update, open: () => input.focus() };
}

function noteEditor(draft) {
  const area = element("textarea", { id: "glm-note", rows: "2", maxlength: NOTE, dir: "auto", placeholder: text("review.note.help"), "aria-label": text("review.note") });
  let timer = null;
  const send = () => {
    clearTimeout(timer);
    if (area.value !== draft.value.note) draft.set({ note: area.value });
  };
  area.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(send, NOTE_PAUSE);
  });
  area.addEventListener("blur", send);
  area.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Escape") area.closest("[tabindex]").focus({ preventScroll: true });
  });
  const node = element("details", { class: "glm-fold glm-note", open: Boolean(draft.value.note) }, element("summary", {}, text("review.note")), area);
  const update = () => {
    // What is being typed is newer than what the server knows.
    if (document.activeElement !== area) area.value = draft.value.note;
  };
  const open = () => {
    node.open = true;
    area.focus();
  };
  return { node, update, open };
}

/** What two people did to one run, with a choice. Nothing is lost: what isn't taken stays readable here until one is chosen. */
export function conflictBox(draft, run) {
  const { theirs, mine, decide } = draft.conflict;
  const who = theirs.review.reviewer?.name ?? "?";
  const value = (name, one) => {
    if (name === "rating") return one ? text("review.stars", { count: one }) : text("shell.none");
    if (name === "status") return text(one === "done" ? "review.done" : "review.open");
    if (name === "flagged") return text(one ? "review.yes" : "review.no");
    if (name === "tags") return one.join(", ") || text("shell.none");
    if (name === "spans") return spans(one);
    if (name === "corrected" && one !== null) return element("span", { class: "glm-diff glm-text" }, ...parts(run.output ?? "", one));
    return one === null || one === "" ? text("shell.none") : element("span", { class: "glm-text", dir: "auto" }, one);
  };
  const spans = (list) => (list.length ? element("ul", {}, ...list.map((span) => element("li", { dir: "auto" }, element("del", {}, characters(run, span)), " → ", element("ins", {}, span.chosen || text("review.nothing"))))) : text("shell.none"));
  const parts = (before, after) => difference(before, after).map(({ kind, text: words }) => (kind === "same" ? words : element(kind === "in" ? "ins" : "del", {}, words)));
  const rows = Object.keys(mine).map((name) => [text(`review.field.${name}`), value(name, name === "spans" ? theirs.spans : theirs.review[name]), value(name, mine[name])]);
  const title = text("review.conflict", { name: who });
  return element(
    "section",
    { class: "glm-card glm-conflict", id: "glm-conflict", role: "alert" },
    element("h2", {}, title),
    element("p", {}, text("review.conflict.help")),
    table(title, [text("review.conflict.what"), who, text("review.conflict.you")], rows),
    element(
      "div",
      { class: "glm-bar" },
      button(text("review.conflict.mine"), () => decide("mine"), { kind: "primary", id: "glm-keep-mine" }),
      button(text("review.conflict.theirs", { name: who }), () => decide("theirs"), { id: "glm-keep-theirs" }),
    ),
  );
}

const characters = (run, { start, end }) => Array.from(run.output ?? "").slice(start, end).join("") || text("review.nothing");

/** All that is known of a run, folded: choices of the model, opinions, conversation, parameters and timings, datasets. */
export function facts(found, desk) {
  const { run, model_version: model, blanks, conversation, feedback, votes, datasets } = found;
  const fold = (title, nodes, open = false) => (nodes.length ? element("details", { class: "glm-fold glm-card", open }, element("summary", {}, title), ...nodes) : null);
  return element(
    "div",
    { class: "glm-stack" },
    fold(text("review.opinions", { count: feedback.length + votes.length }), opinions(feedback, votes, desk), true),
    fold(text("review.alternatives"), alternatives(blanks)),
    conversation ? fold(text("review.conversation"), around(conversation, desk)) : null,
    fold(text("review.facts"), [numbers(run, model)]),
    fold(text("review.datasets", { count: datasets.length }), datasets.length ? [element("ul", {}, ...datasets.map((one) => element("li", {}, `${one.name} ${one.version} · ${one.part}`, one.removed ? ` · ${text("review.deleted")}` : "")))] : []),
  );
}

function opinions(feedback, votes, desk) {
  const thumb = (rating) => (rating > 0 ? badge(text("review.thumbs.up"), "good") : rating < 0 ? badge(text("review.thumbs.down"), "bad") : null);
  const said = feedback.map((one) => element("li", { class: "glm-bar" }, thumb(one.rating), element("span", { dir: "auto" }, one.comment), element("span", { class: "glm-detail" }, moment(one.updated))));
  const chosen = votes.map((one) =>
    element("li", { class: "glm-bar" }, text(`review.vote.${one.choice}`), button(text("review.vote.other"), () => desk.open(one.other)), one.blind ? badge(text("review.vote.blind")) : null),
  );
  return said.length + chosen.length ? [element("ul", { class: "glm-plain" }, ...said, ...chosen)] : [];
}

function alternatives(blanks) {
  const some = blanks.filter((blank) => (blank.alternatives ?? []).length > 1);
  return some.map((blank) =>
    element(
      "div",
      {},
      element("h3", {}, text("review.alternatives.of", { number: blank.index + 1 })),
      element("ul", { class: "glm-plain" }, ...blank.alternatives.map((one) => element("li", { class: "glm-bar", dir: "auto" }, element("span", { class: "glm-text" }, one.text.trim() || text("review.nothing")), one.logprob === null || one.logprob === undefined ? null : element("span", { class: "glm-detail" }, percent(Math.exp(one.logprob)))))),
    ),
  );
}

function around({ title, runs, earlier, later }, desk) {
  const row = (one) => {
    const words = [element("span", { class: "glm-row-prompt", dir: "auto" }, one.prompt ?? "–"), element("span", { class: "glm-row-output", dir: "auto" }, one.output ?? "–")];
    if (one.current) return element("li", { "aria-current": "true" }, element("div", { class: "glm-row" }, ...words));
    return element("li", {}, element("button", { type: "button", class: "glm-row", click: () => desk.open(one.id) }, ...words));
  };
  const more = (key, count) => (count ? element("p", { class: "glm-detail" }, text(key, { count })) : null);
  const parts = [title ? element("p", { dir: "auto" }, title) : null, more("review.conversation.earlier", earlier), element("ol", { class: "glm-run-list" }, ...runs.map(row)), more("review.conversation.later", later)];
  return parts.filter(Boolean);
}

function numbers(run, model) {
  const milliseconds = (value) => (value === null ? null : `${number(value)} ms`);
  const rows = [
    ["id", element("code", {}, run.id)],
    ["model", model && `${model.name} (${model.weights_hash.slice(0, 12)})`],
    ["tainted", model?.tainted && moment(model.tainted)],
    ["parameters", element("code", {}, Object.entries(run.parameters ?? {}).map(([name, value]) => `${name} ${JSON.stringify(value)}`).join(", ") || "–")],
    ["seed", run.seed === null ? null : element("code", {}, String(run.seed))],
    ["tokens", run.new_tokens === null ? null : text("review.fact.tokens.of", { prompt: number(run.prompt_tokens), output: number(run.new_tokens) })],
    ["speed", run.tokens_per_second && text("review.fact.speed.of", { speed: number(run.tokens_per_second, 1) })],
    ["queued", milliseconds(run.queue_milliseconds)],
    ["first", milliseconds(run.first_token_milliseconds)],
    ["total", milliseconds(run.total_milliseconds)],
    ["batch", run.largest_batch],
    ["sure", run.uncertainty === null || run.uncertainty === undefined ? null : percent(Math.exp(-run.uncertainty))],
    ["finish", run.finish_reason],
    ["visitor", element("code", {}, run.visitor)],
    ["client", run.client],
    ["repaired", run.repaired ? text("review.yes") : null],
  ].filter(([, value]) => value !== null && value !== undefined && value !== "");
  const list = element("dl", { class: "glm-facts" });
  for (const [name, value] of rows) list.append(element("dt", {}, text(`review.fact.${name}`)), element("dd", {}, value instanceof Node ? value : String(value)));
  return list;
}
