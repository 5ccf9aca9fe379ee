// The review queue's filters: what the address says, a form to choose them, and a chip for each one that takes it away again. The
// names are the server's (storage/run_filter.py).

import { element } from "../dom.js";
import { isText, text } from "../language.js";
import { button, dialog, errorBox, field, number, select } from "./parts.js";

export const ORDERS = ["newest", "oldest", "uncertainty", "disagreement", "flags", "rating", "rating_low"];
const LISTS = ["modes", "statuses", "model_versions", "languages", "clients", "tags", "reviewers"];
const SWITCHES = ["reviewed", "corrected", "flagged"];
const OTHERS = ["words", "rating_from", "rating_to", "thumbs", "created_from", "created_to", "visitor", "ids"];
export const FILTERS = [...OTHERS, ...LISTS, ...SWITCHES];

/** Only the filters (and with `order` the order) of an address. */
export function filtersOf(argument, more = ["order"]) {
  const out = new URLSearchParams();
  for (const name of [...FILTERS, ...more]) {
    const value = argument.getAll(name).filter(Boolean).join(",");
    if (value) out.set(name, value);
  }
  return out;
}

const named = (key, value) => {
  const known = `review.${key}.${value}`;
  return isText(known) ? text(known) : value;
};

/** What a filter's value is called. facets: of the server, null while they aren't there. */
function words(name, value, facets) {
  if (["modes", "statuses", "languages", "thumbs"].includes(name)) return named(name, value);
  const facet = { model_versions: "models", reviewers: "reviewers" }[name];
  return (facet && facets?.[facet]?.find((one) => String(one.value) === value)?.name) || value;
}

/** A chip for each filter that is set; remove(name, value or null): called with what is taken away. */
export function chips(filters, facets, remove) {
  const chip = (label, name, value) =>
    element("span", { class: "glm-chip", "data-filter": name }, element("span", { dir: "auto" }, label), button(text("review.filter.remove", { filter: label }), () => remove(name, value), { kind: "quiet", drawing: "close" }));
  const out = [];
  for (const name of FILTERS) {
    const value = filters.get(name);
    if (!value) continue;
    if (LISTS.includes(name)) {
      for (const one of value.split(",")) out.push(chip(text("review.chip", { name: text(`review.filter.${name}`), value: words(name, one, facets) }), name, one));
    } else if (SWITCHES.includes(name)) out.push(chip(text(`review.filter.${name}.${value}`), name, null));
    else out.push(chip(text("review.chip", { name: text(`review.filter.${name}`), value: words(name, value, facets) }), name, null));
  }
  return out;
}

/** The dialog with all filters; done(filters): called with the chosen ones. */
export async function chooseFilters(api, filters, done) {
  const form = element("form", { class: "glm-form glm-filters", id: "glm-filters" });
  const opened = dialog(text("review.filters"), form, { wide: true, id: "glm-filters-dialog" });
  let facets;
  try {
    facets = await api("facets");
  } catch (problem) {
    return form.replaceChildren(errorBox(problem));
  }
  const chosen = (name) => (filters.get(name) ?? "").split(",");
  const boxes = (name, rows) => {
    if (!rows.length) return null;
    const box = ({ value, name: label, count, capped }) =>
      element(
        "label",
        { class: "glm-check" },
        element("input", { type: "checkbox", name, value, checked: chosen(name).includes(String(value)) }),
        element("span", { dir: "auto" }, label ?? words(name, String(value), facets)),
        count === undefined ? null : element("span", { class: "glm-detail" }, `${number(count)}${capped ? "+" : ""}`),
      );
    return element("fieldset", { class: "glm-boxes" }, element("legend", {}, text(`review.filter.${name}`)), ...rows.map(box));
  };
  const lists = [
    ["modes", facets.modes],
    ["languages", facets.languages],
    ["statuses", facets.statuses],
    ["model_versions", facets.models],
    ["clients", facets.clients],
    ["reviewers", facets.reviewers],
    ["tags", facets.tags],
  ];
  const either = (name) =>
    field(text(`review.filter.${name}`), select(`glm-filter-${name}`, [["", text("review.any")], ["true", text("review.yes")], ["false", text("review.no")]], filters.get(name) ?? "", { name }));
  const stars = (name) =>
    field(text(`review.filter.${name}`), select(`glm-filter-${name}`, [["", text("review.any")], ...["1", "2", "3", "4", "5"].map((count) => [count, count])], filters.get(name) ?? "", { name }));
  const input = (name, type) => field(text(`review.filter.${name}`), element("input", { id: `glm-filter-${name}`, name, type, value: filters.get(name) ?? "" }));
  const thumbs = field(
    text("review.filter.thumbs"),
    select("glm-filter-thumbs", ["", "up", "down", "any"].map((one) => [one, one ? words("thumbs", one) : text("review.any")]), filters.get("thumbs") ?? "", { name: "thumbs" }),
  );
  form.replaceChildren(
    element("div", { class: "glm-filter-grid" }, ...SWITCHES.map(either), thumbs, stars("rating_from"), stars("rating_to"), input("created_from", "date"), input("created_to", "date")),
    ...lists.map(([name, rows]) => boxes(name, rows ?? [])).filter(Boolean),
    element("div", { class: "glm-bar" }, element("button", { type: "submit", class: "glm-primary" }, text("review.filters.show")), button(text("review.filters.clear"), () => finish(new URLSearchParams()), { id: "glm-filters-clear" })),
  );
  const finish = (next) => {
    opened.close();
    for (const name of ["order", "words"]) if (filters.get(name)) next.set(name, filters.get(name));
    done(next);
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const given = new FormData(form);
    const next = new URLSearchParams();
    for (const name of FILTERS) {
      const value = given.getAll(name).filter(Boolean).join(",");
      if (value) next.set(name, value);
      // What this form has no field for stays.
      else if (["visitor", "ids"].includes(name) && filters.get(name)) next.set(name, filters.get(name));
    }
    finish(next);
  });
  form.querySelector("select, input")?.focus();
}
