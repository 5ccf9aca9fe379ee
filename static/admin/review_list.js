// The review queue: search, order, filters, one page of runs by keyset. It keeps what it shows in the address's hash.

import { element, icon } from "../dom.js";
import { text } from "../language.js";
import { chips, chooseFilters, filtersOf, ORDERS } from "./review_filters.js";
import { badge, button, empty, errorBox, moment, number, select } from "./parts.js";

const PAGE = 50;

export class Queue {
  /** argument: URLSearchParams of the address. open(id): shows a run. remember(argument): writes the address. */
  constructor(context, open) {
    Object.assign(this, { api: context.api, context, open });
    this.filters = filtersOf(context.argument);
    this.cursor = ["after", "before"].map((name) => [name, context.argument.get(name)]).find(([, value]) => value) ?? null;
    this.current = context.argument.get("run");
    this.page = { runs: [], next: null, previous: null, complete: true };
    this.facets = null;
    this.asking = null;
    this.node = element("div", { class: "glm-queue", id: "glm-queue" }, this.bar(), (this.chosen = element("div", { class: "glm-chips" })), (this.count = element("p", { class: "glm-detail", role: "status", id: "glm-count" })), (this.list = element("div", { class: "glm-rows", id: "glm-rows" })));
  }

  bar() {
    this.search = element("input", { type: "search", id: "glm-search", placeholder: text("review.search"), "aria-label": text("review.search"), value: this.filters.get("words") ?? "", maxlength: "200" });
    const form = element("form", { role: "search", class: "glm-search" }, icon("search"), this.search);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.change("words", this.search.value.trim());
      this.search.blur();
    });
    // The cross in the field empties it; who only deletes letters presses Enter.
    this.search.addEventListener("search", () => !this.search.value && this.filters.has("words") && this.change("words", ""));
    this.order = select("glm-order", ORDERS.map((one) => [one, text(`review.order.${one}`)]), this.filters.get("order") ?? "newest", { "aria-label": text("review.order") });
    this.order.addEventListener("change", () => this.change("order", this.order.value === "newest" ? "" : this.order.value));
    const filter = button(text("review.filters"), () => chooseFilters(this.api, this.filters, (next) => this.narrow(next)), { drawing: "filter", id: "glm-open-filters" });
    const export_ = button(text("review.use"), () => this.context.open("data", filtersOf(this.filters, [])), { id: "glm-use-selection", title: text("review.use.help") });
    return element("div", { class: "glm-queue-bar" }, form, element("div", { class: "glm-bar" }, this.order, filter), export_);
  }

  change(name, value) {
    const next = new URLSearchParams(this.filters);
    if (value) next.set(name, value);
    else next.delete(name);
    this.narrow(next);
  }

  /** Show the first page of another selection. */
  narrow(next) {
    this.filters = next;
    this.cursor = null;
    this.search.value = next.get("words") ?? "";
    return this.load();
  }

  remember() {
    const words = new URLSearchParams(this.filters);
    if (this.cursor) words.set(...this.cursor);
    if (this.current) words.set("run", this.current);
    this.context.remember(words);
  }

  /** Ask for the page that `filters` and `cursor` say. */
  async load() {
    this.asking?.abort();
    const asking = (this.asking = new AbortController());
    this.remember();
    this.drawChips();
    this.node.setAttribute("aria-busy", "true");
    const words = new URLSearchParams(this.filters);
    words.set("limit", PAGE);
    if (this.cursor) words.set(...this.cursor);
    this.counted(asking.signal);
    try {
      this.page = await this.api(`runs?${words}`, { signal: asking.signal });
      this.draw();
    } catch (problem) {
      if (problem.name === "AbortError") return;
      this.list.replaceChildren(errorBox(problem, () => this.load()));
    }
    this.node.removeAttribute("aria-busy");
  }

  async counted(signal) {
    this.count.textContent = "";
    try {
      const { count, capped, complete = true } = await this.api(`runs/count?${filtersOf(this.filters, [])}`, { signal });
      this.count.textContent = text("review.count", { count: `${number(count)}${capped || !complete ? "+" : ""}` });
    } catch (problem) {
      if (problem.name !== "AbortError" && !problem.kind) throw problem; // the list says what is wrong with the server
    }
  }

  async drawChips() {
    const remove = (name, value) => {
      const rest = value === null ? [] : (this.filters.get(name) ?? "").split(",").filter((one) => one !== value);
      this.change(name, rest.join(","));
    };
    const draw = () => this.chosen.replaceChildren(...chips(this.filters, this.facets, remove));
    draw();
    const needed = ["model_versions", "reviewers"].some((name) => this.filters.has(name));
    if (!needed || this.facets) return;
    try {
      this.facets = await this.api("facets");
      draw();
    } catch (problem) {
      if (!problem.kind) throw problem; // a chip with a number in place of a name is no reason for a box
    }
  }

  draw() {
    const { runs, next, previous, complete } = this.page;
    const page = (cursor) => () => this.turn(cursor);
    const pager = element("div", { class: "glm-bar glm-pager" });
    if (previous) pager.append(button(text("review.page.before"), page(["before", previous]), { drawing: "back", id: "glm-page-before" }));
    if (next) pager.append(button(text(complete ? "review.page.next" : "review.page.on"), page(["after", next]), { drawing: "on", id: "glm-page-next" }));
    const rows = element("ol", { class: "glm-run-list" }, ...runs.map((run) => this.row(run)));
    const filtered = [...this.filters.keys()].some((name) => name !== "order");
    const nothing = () => empty(text(filtered ? "review.none" : "review.none.yet"), filtered ? button(text("review.filters.clear"), () => this.narrow(new URLSearchParams())) : null);
    if (runs.length) this.list.replaceChildren(rows, pager);
    else if (complete) this.list.replaceChildren(nothing(), pager);
    else this.list.replaceChildren(element("p", {}, text("review.none.here")), pager);
    this.mark();
  }

  async turn(cursor) {
    this.cursor = cursor;
    await this.load();
    this.list.scrollTop = 0;
    this.list.querySelector("button")?.focus({ preventScroll: true });
  }

  row(run) {
    const flags = [];
    if (run.rating) flags.push(element("span", { class: "glm-row-stars", role: "img", "aria-label": text("review.stars", { count: run.rating }) }, "★".repeat(run.rating)));
    if (run.flagged) flags.push(badge(text("review.flagged"), "bad"));
    if (run.corrected) flags.push(badge(text("review.corrected"), "good"));
    if (run.reviewed) flags.push(badge(text("review.done")));
    for (const thumb of ["up", "down"]) {
      const count = run[`thumbs_${thumb}`];
      const label = `${text(`review.thumbs.${thumb}`)} ${count}`;
      if (count) flags.push(element("span", { class: "glm-badge", role: "img", "aria-label": label, title: label }, icon(thumb), String(count)));
    }
    if (run.status !== "done") flags.push(badge(text(`review.statuses.${run.status}`), run.status === "error" ? "bad" : "busy"));
    flags.push(...run.tags.map((tag) => element("span", { class: "glm-tag", dir: "auto" }, tag)));
    const facts = element("span", { class: "glm-row-facts" }, text(`review.modes.${run.mode}`), " · ", moment(run.created), run.model ? ` · ${run.model}` : "");
    const head = element("span", { class: "glm-row-head" }, facts);
    if (run.uncertainty !== null) head.append(element("span", { title: text("review.uncertainty.help") }, text("review.sureness", { percent: Math.round(Math.exp(-run.uncertainty) * 100) })));
    const node = element(
      "button",
      { type: "button", class: "glm-row", "data-run": run.id, click: (event) => this.open(run.id, { byMouse: event.detail > 0 }) },
      head,
      element("span", { class: "glm-row-prompt", dir: "auto" }, run.prompt),
      element("span", { class: "glm-row-output", dir: "auto" }, run.output ?? "–"),
      flags.length ? element("span", { class: "glm-row-flags" }, ...flags) : null,
    );
    return element("li", {}, node);
  }

  /** A run's review changed: its row shows it. */
  update(id, fields) {
    const at = this.page.runs.findIndex((run) => run.id === id);
    if (at < 0) return;
    Object.assign(this.page.runs[at], fields);
    const old = this.list.querySelector(`[data-run="${CSS.escape(id)}"]`)?.parentElement;
    if (!old) return;
    const focused = old.contains(document.activeElement);
    const fresh = this.row(this.page.runs[at]);
    old.replaceWith(fresh);
    if (focused) fresh.firstChild.focus({ preventScroll: true });
    this.mark();
  }

  choose(id) {
    this.current = id;
    this.remember();
    this.mark();
  }

  mark() {
    for (const node of this.list.querySelectorAll(".glm-row")) {
      if (node.dataset.run === this.current) node.setAttribute("aria-current", "true");
      else node.removeAttribute("aria-current");
    }
    this.list.querySelector('[aria-current="true"]')?.scrollIntoView({ block: "nearest" });
  }

  /** The run `step` places on (1 or -1) from the chosen one; another page is fetched where this one ends. Null at the ends. */
  async neighbour(step) {
    const { runs } = this.page;
    const at = runs.findIndex((run) => run.id === this.current);
    if (at < 0) return runs[0]?.id ?? null;
    if (runs[at + step]) return runs[at + step].id;
    const cursor = step > 0 ? this.page.next && ["after", this.page.next] : this.page.previous && ["before", this.page.previous];
    if (!cursor) return null;
    this.cursor = cursor;
    await this.load();
    return (step > 0 ? this.page.runs[0] : this.page.runs.at(-1))?.id ?? null;
  }
}
