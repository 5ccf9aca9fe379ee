// A plot of values over time as an <svg>, with a legend, a cursor for mouse, touch and keys, and the same values as a table.
// Lines differ in colour and in dashes, so that colour alone tells nothing.

import { element } from "../dom.js";
import { table } from "./parts.js";

const SPACE = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [640, 220, 72, 12, 14, 28];
const LINES = 4; // horizontal ones, at most

function drawn(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SPACE, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Round numbers from 0 up to the first that is not below `highest`. */
export function ticks(highest, most = LINES) {
  if (!(highest > 0)) return [0, 1];
  const raw = highest / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find((one) => one * power >= raw) * power;
  return Array.from({ length: Math.ceil(highest / step - 1e-9) + 1 }, (_, at) => at * step);
}

/** times: [words, …], one a value; lines: [{name, values: [number | null, …]}, …]; format(value) gives words for a value.
 *  texts: {title, help, label, table, time, none}; id: of the figure. highest: of the scale, if it is known. */
export function plot({ id, times, lines, format, texts, highest = null }) {
  const head = element("figcaption", { class: "glm-plot-head" }, element("h3", { id: `${id}-title` }, texts.title));
  if (texts.help) head.append(element("p", { class: "glm-detail" }, texts.help));
  const figure = element("figure", { class: "glm-plot", id, "aria-labelledby": `${id}-title` }, head);
  const known = lines.flatMap((line) => line.values).filter((value) => value !== null);
  if (!known.length) {
    figure.append(element("p", { class: "glm-plot-none" }, texts.none));
    return figure;
  }
  const scale = ticks(highest ?? Math.max(...known));
  const top = scale.at(-1);
  const x = (at) => LEFT + ((WIDTH - LEFT - RIGHT) * (times.length === 1 ? 0.5 : at / (times.length - 1)));
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top);
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", tabindex: "0", "aria-label": texts.label, class: "glm-plot-area" });
  for (const value of scale) {
    svg.append(drawn("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), class: "glm-plot-grid" }));
    svg.append(drawn("text", { x: LEFT - 7, y: y(value) + 4, "text-anchor": "end" }, format(value)));
  }
  const last = times.length - 1;
  const places = [...new Set(last < 4 ? times.keys() : [0, Math.round(last / 2), last])];
  for (const at of places) {
    const anchor = last === 0 ? "middle" : at === 0 ? "start" : at === last ? "end" : "middle";
    svg.append(drawn("text", { x: x(at), y: HEIGHT - 8, "text-anchor": anchor }, times[at]));
  }
  lines.forEach((line, number) => svg.append(...drawLine(line.values, number, x, y)));
  const cursor = drawn("line", { y1: TOP, y2: HEIGHT - BOTTOM, class: "glm-plot-cursor", visibility: "hidden" });
  svg.append(cursor);
  const said = element("p", { class: "glm-plot-said glm-detail", "aria-live": "polite" });
  let place = null;
  const point = (at) => {
    place = at;
    const moved = at !== null;
    cursor.setAttribute("visibility", moved ? "visible" : "hidden");
    if (moved) for (const end of ["x1", "x2"]) cursor.setAttribute(end, x(at));
    said.textContent = moved ? `${times[at]}: ${lines.map((line) => `${line.name} ${shown(line.values[at], format)}`).join(" · ")}` : "";
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const inside = ((event.clientX - box.left) / box.width) * WIDTH;
    point(Math.max(0, Math.min(last, Math.round(((inside - LEFT) / (WIDTH - LEFT - RIGHT)) * last))));
  });
  svg.addEventListener("pointerleave", () => svg !== document.activeElement && point(null));
  svg.addEventListener("blur", () => point(null));
  svg.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: (place ?? times.length) - 1, ArrowRight: (place ?? -1) + 1, Home: 0, End: last };
    if (!(event.key in steps)) return;
    event.preventDefault();
    point(Math.max(0, Math.min(last, steps[event.key])));
  });
  if (lines.length > 1) figure.append(legend(lines));
  figure.append(svg, said, asTable(id, times, lines, format, texts));
  return figure;
}

const shown = (value, format) => (value === null ? "–" : format(value));

/** The pieces of a line between values that are missing; one value alone is a dot. */
function drawLine(values, number, x, y) {
  const style = `glm-plot-line glm-plot-${number % 9}`;
  const made = [];
  let piece = [];
  const end = () => {
    if (piece.length > 1) made.push(drawn("polyline", { points: piece.join(" "), class: style }));
    else if (piece.length) made.push(drawn("circle", { cx: piece[0].split(",")[0], cy: piece[0].split(",")[1], r: 3.5, class: style }));
    piece = [];
  };
  values.forEach((value, at) => (value === null ? end() : piece.push(`${x(at).toFixed(1)},${y(value).toFixed(1)}`)));
  end();
  return made;
}

function legend(lines) {
  const row = (line, number) => {
    const sample = drawn("svg", { viewBox: "0 0 28 8", "aria-hidden": "true", class: "glm-plot-sample" });
    sample.append(drawn("line", { x1: 1, x2: 27, y1: 4, y2: 4, class: `glm-plot-line glm-plot-${number % 9}` }));
    return element("li", {}, sample, element("span", {}, line.name));
  };
  return element("ul", { class: "glm-plot-legend" }, ...lines.map(row));
}

function asTable(id, times, lines, format, texts) {
  const fold = element("details", { class: "glm-fold" }, element("summary", {}, texts.table));
  fold.addEventListener("toggle", () => {
    if (!fold.open || fold.querySelector("table")) return;
    // The newest first; what nothing happened in is left out.
    const rows = times.map((time, at) => [time, ...lines.map((line) => shown(line.values[at], format))]).filter((_, at) => lines.some((line) => line.values[at]));
    fold.append(table(texts.title, [texts.time, ...lines.map((line) => line.name)], rows.reverse(), { id: `${id}-table` }));
  });
  return fold;
}
