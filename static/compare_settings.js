// The settings of the two sides of a comparison: for each a preset, the page's own settings or values of its own, and one
// seed for both. As data: {settings: {first: {preset, own: {temperature, ...}}, second}, seed: {same, value}}.

import { element } from "./dom.js";
import { bind, presets, text } from "./language.js";

const FIELDS = ["temperature", "top_k", "top_p", "repetition_penalty"];
const PRESETS = { page: "compare.page", precise: "preset.precise", balanced: "preset.balanced", creative: "preset.creative", own: "compare.own" };

export function newSettings() {
  const side = (preset) => ({ preset, own: { ...presets.balanced } });
  return { settings: { first: side("page"), second: side("creative") }, seed: { same: true, value: "" } };
}

/** One line for the settings of an answer, as they were sent. */
export function said({ preset, parameters }) {
  const names = new Set([...FIELDS, ...Object.keys(parameters)].filter((name) => name in parameters));
  const values = [...names].map((name) => `${name} ${Array.isArray(parameters[name]) ? JSON.stringify(parameters[name]) : parameters[name]}`);
  return `${text(PRESETS[preset])}: ${values.join(" · ")}`;
}

export class Choices {
  /** state: the pane's, with the fields of newSettings; changed() is called after each change. The fields are `node`. */
  constructor(state, changed) {
    this.state = state;
    const sides = ["first", "second"].map((name) => this.side(name, changed));
    const row = element("div", { class: "glm-columns" }, ...sides);
    this.node = element("div", { class: "glm-choices" }, row, this.seedRow(changed));
  }

  side(name, changed) {
    const chosen = this.state.settings[name];
    const id = `glm-compare-${name}`;
    const own = element("div", { class: "glm-own" });
    const select = element("select", { id: `${id}-preset`, class: "glm-select" });
    for (const [preset, key] of Object.entries(PRESETS)) select.append(bind(element("option", { value: preset }), key));
    select.value = chosen.preset;
    own.hidden = chosen.preset !== "own";
    select.addEventListener("change", () => {
      chosen.preset = select.value;
      own.hidden = chosen.preset !== "own";
      changed();
    });
    for (const field of FIELDS) {
      const input = element("input", { id: `${id}-${field}`, class: "glm-number", inputmode: "decimal", autocomplete: "off" });
      input.value = chosen.own[field];
      input.addEventListener("input", () => {
        chosen.own[field] = input.value;
        changed();
      });
      own.append(element("label", { for: input.id }, bind(element("span"), field), input));
    }
    // Where a choice of the model goes, once the pool holds several versions: a second <select> here, whose value `of` sends.
    const legend = bind(element("legend"), `compare.${name}`);
    const label = element("label", { for: select.id, class: "glm-hidden" }, bind(element("span"), "preset"));
    return element("fieldset", { class: "glm-column glm-side-settings", id: `${id}-settings` }, legend, label, select, own);
  }

  seedRow(changed) {
    const { seed } = this.state;
    const same = element("input", { type: "checkbox", id: "glm-compare-same" });
    const value = element("input", { id: "glm-compare-seed", class: "glm-number", inputmode: "numeric", autocomplete: "off" });
    same.checked = seed.same;
    value.value = seed.value;
    value.disabled = !seed.same;
    bind(value, "compare.seed.placeholder", {}, "placeholder");
    same.addEventListener("change", () => {
      seed.same = same.checked;
      value.disabled = !seed.same;
      changed();
    });
    value.addEventListener("input", () => {
      seed.value = value.value;
      changed();
    });
    const label = element("label", { class: "glm-check", for: same.id }, same, bind(element("span"), "compare.same"));
    return element("div", { class: "glm-seeds" }, label, bind(element("label", { for: value.id, class: "glm-hidden" }), "seed"), value);
  }

  /** The seed of a new comparison, drawn as the server does unless it is given; null if each side gets one of its own. */
  seed() {
    const { same, value } = this.state.seed;
    if (!same) return null;
    return value.trim() ? number(value) : crypto.getRandomValues(new Uint32Array(1))[0];
  }

  /** {preset, parameters} of a side; parameters(kind): the page's settings, which give what the side doesn't. */
  of(name, parameters, seed) {
    const { preset, own } = this.state.settings[name];
    // As the page says, a beam search too; with values of its own a side samples.
    const sent = parameters(preset === "page" ? "chat" : "sample");
    if (preset === "own") for (const field of FIELDS) sent[field] = number(own[field]);
    else if (preset !== "page") Object.assign(sent, presets[preset]);
    delete sent.seed;
    if (seed !== null) sent.seed = seed;
    for (const [field, value] of Object.entries(sent)) if (value === "") delete sent[field]; // left to the server
    return { preset, parameters: sent };
  }
}

/** What is no number goes as it is: the server then says what is wrong with it. */
function number(value) {
  const typed = String(value).trim();
  return typed !== "" && Number.isFinite(Number(typed)) ? Number(typed) : typed;
}
