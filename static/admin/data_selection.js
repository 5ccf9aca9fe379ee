// Which runs are meant, for exports and datasets: the review queue's filters, as chips with a button that opens them all.

import { element } from "../dom.js";
import { button, errorBox } from "./parts.js";
import { chips, chooseFilters, filtersOf } from "./review_filters.js";

/** Asks once `wait` ms have gone by without another call, and gives up what was asked before. work(signal) */
export function lively(work, wait = 250) {
  let timer = null;
  let asking = null;
  return () => {
    clearTimeout(timer);
    asking?.abort();
    timer = setTimeout(() => work((asking = new AbortController()).signal), wait);
  };
}

/** Shows what was thrown in `place`; nothing for what was given up. */
export function refused(problem, place) {
  if (problem.name !== "AbortError") place.replaceChildren(errorBox(problem));
}

/** {node, filters(): URLSearchParams, body(): the same as an object}; changed() is called after a change. */
export function selection(context, view, changed) {
  const { t, api, argument, remember } = context;
  let filters = filtersOf(argument, []);
  const node = element("div", { class: "glm-bar", id: "glm-data-selection" });
  const set = (next) => {
    filters = filtersOf(next, []);
    const kept = new URLSearchParams(filters);
    kept.set("view", view);
    remember(kept);
    draw();
    changed();
  };
  const remove = (name, value) => {
    const next = new URLSearchParams(filters);
    const rest = value === null ? [] : next.get(name).split(",").filter((one) => one !== value);
    if (rest.length) next.set(name, rest.join(","));
    else next.delete(name);
    set(next);
  };
  const draw = () => {
    const shown = chips(filters, null, remove);
    node.replaceChildren(
      button(t("data.filters"), () => chooseFilters(api, filters, set), { drawing: "filter", id: "glm-data-filters" }),
      ...(shown.length ? shown : [element("span", { class: "glm-detail" }, t("data.everything"))]),
    );
  };
  draw();
  return { node, filters: () => new URLSearchParams(filters), body: () => Object.fromEntries(filters) };
}

/** JSON as people read it, in a box that scrolls. */
export const shownRow = (row, label) => element("pre", { class: "glm-data-row", tabindex: "0", role: "region", "aria-label": label, dir: "auto" }, JSON.stringify(row, null, 2));
