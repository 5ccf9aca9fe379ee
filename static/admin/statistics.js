// The statistics tab: runs, tokens, latencies and ratings over time, the room on the disk, and how long texts are kept.

import { element } from "../dom.js";
import { badge, empty, errorBox, field, loading, moment, number, select, table } from "./parts.js";
import { plot } from "./plot.js";

const BUCKETS = ["hour", "day", "week"];
const GROUPS = ["all", "mode", "model"];
const SHARES = ["p50", "p90", "p99"];

export async function show(root, context) {
  const { api, t, argument, remember, language } = context;
  const chosen = {
    bucket: BUCKETS.includes(argument.get("bucket")) ? argument.get("bucket") : "day",
    by: GROUPS.includes(argument.get("by")) ? argument.get("by") : "all",
    latency: SHARES.includes(argument.get("latency")) ? argument.get("latency") : "p50",
  };
  const choice = (name, values) => {
    const node = select(`glm-statistics-${name}`, values.map((value) => [value, t(`statistics.${name}.${value}`)]), chosen[name]);
    node.addEventListener("change", () => {
      chosen[name] = node.value;
      remember(chosen);
      if (name === "latency" && found) draw();
      else load();
    });
    return field(t(`statistics.${name}`), node);
  };
  const bar = element("div", { class: "glm-statistics-bar" }, choice("bucket", BUCKETS), choice("by", GROUPS), choice("latency", SHARES));
  const body = element("div", { class: "glm-stack" });
  const sides = element("div", { class: "glm-statistics-sides" });
  root.replaceChildren(element("h1", {}, t("statistics.title")), element("p", { class: "glm-detail" }, t("statistics.help")), bar, body, sides);
  const leaving = new AbortController();
  let found = null;
  let asked = 0;

  async function load() {
    const mine = (asked += 1);
    if (!found) body.replaceChildren(loading());
    body.setAttribute("aria-busy", "true");
    try {
      const answer = await api(`statistics?bucket=${chosen.bucket}&by=${chosen.by}`, { signal: leaving.signal });
      if (mine !== asked) return;
      found = answer;
      draw();
      const kept = await api("retention", { signal: leaving.signal });
      if (mine === asked) sides.replaceChildren(diskCard(found.disk, t), retentionCard(kept, t, language));
    } catch (problem) {
      if (problem.name !== "AbortError") body.replaceChildren(errorBox(problem, load));
    } finally {
      body.setAttribute("aria-busy", "false");
    }
  }

  function draw() {
    if (!found.series.length) return body.replaceChildren(empty(t("statistics.empty")));
    const times = found.times.map((time) => timeWords(time, found.bucket, language));
    const lines = (value) => found.series.map((one) => ({ name: seriesName(one, t), values: found.times.map((_, at) => value(one.points, at)) }));
    const span = { from: times[0], to: times.at(-1) };
    const one = (name, value, format, more = {}) => {
      const title = t(`statistics.${name}`) + (more.suffix ?? "");
      const texts = { title, help: more.help, label: t("statistics.chart", { what: title, ...span }) };
      for (const key of ["table", "time", "none"]) texts[key] = t(`statistics.${key}`);
      return plot({ id: `glm-plot-${name}`, times, lines: lines(value), format, texts, highest: more.highest ?? null });
    };
    const milliseconds = (value) => duration(value, language);
    const latency = (name) => one(name, (points, at) => points[`${name}_${chosen.latency}`][at], milliseconds, { suffix: ` (${t(`statistics.latency.${chosen.latency}`)})` });
    const share = (part, whole) => (whole ? part / whole : null);
    const percent = (value) => new Intl.NumberFormat(language, { style: "percent", maximumFractionDigits: 0 }).format(value);
    body.replaceChildren(
      summary(found.series, t, language),
      element(
        "div",
        { class: "glm-plots" },
        one("runs", (points, at) => points.runs[at], short(language)),
        one("new_tokens", (points, at) => points.new_tokens[at], short(language)),
        latency("first_token"),
        latency("total"),
        latency("queue"),
        one("unsuccessful", (points, at) => points.failed[at] + points.cancelled[at], short(language)),
        one("thumbs", (points, at) => share(points.thumbs_up[at], points.thumbs_up[at] + points.thumbs_down[at]), percent, { help: t("statistics.thumbs.help"), highest: 1 }),
        one("stars", (points, at) => points.stars[at], (value) => number(value, 1), { highest: 5 }),
        one("wins", (points, at) => share(points.wins[at], points.compared[at]), percent, { help: t("statistics.wins.help"), highest: 1 }),
      ),
    );
  }

  await load();
  return () => leaving.abort();
}

function seriesName({ key, name }, t) {
  if (name === null) return t("statistics.series.unknown");
  const words = { all: 1, others: 1, chat: 1, generate: 1, fill: 1, score: 1 };
  return key in words ? t(`statistics.series.${key}`) : name;
}

/** A count in few signs: 12,345 as 12K. */
const short = (language) => {
  const format = new Intl.NumberFormat(language, { notation: "compact", maximumFractionDigits: 1 });
  return (value) => format.format(value);
};

/** Milliseconds as a person reads them: ms, s, min. */
export function duration(milliseconds, language) {
  const [value, unit] = milliseconds < 1000 ? [milliseconds, "millisecond"] : milliseconds < 60000 ? [milliseconds / 1000, "second"] : [milliseconds / 60000, "minute"];
  const digits = value < 10 && unit !== "millisecond" ? 1 : 0;
  return new Intl.NumberFormat(language, { style: "unit", unit, unitDisplay: "short", maximumFractionDigits: digits }).format(value);
}

function timeWords(iso, bucket, language) {
  const day = { timeZone: "UTC", month: "short", day: "numeric" };
  const hour = { ...day, hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
  return new Intl.DateTimeFormat(language, bucket === "hour" ? hour : day).format(new Date(iso));
}

function summary(series, t, language) {
  const names = ["runs", "failed", "cancelled", "new_tokens", "first_token", "total", "thumbs_up", "thumbs_down"];
  const cell = (whole, name) => {
    if (name in whole) return number(whole[name]);
    const median = whole[`${name}_p50`];
    return median === null ? "–" : duration(median, language);
  };
  const rows = series.map((one) => [seriesName(one, t), ...names.map((name) => cell(one.whole, name))]);
  const heads = names.map((name) => t(`statistics.${name}`) + (["first_token", "total"].includes(name) ? ` (${t("statistics.latency.p50")})` : ""));
  return table(`${t("statistics.summary")}: ${t("statistics.whole")}`, [t("statistics.series"), ...heads], rows, { id: "glm-statistics-summary" });
}

function listed(rows) {
  return element("dl", { class: "glm-statistics-list" }, ...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = bytes > 0 ? Math.min(units.length - 1, Math.floor(Math.log2(bytes) / 10)) : 0;
  return `${number(bytes / 1024 ** power, 1)} ${units[power]}`;
}

function diskCard(disk, t) {
  const card = element("section", { class: "glm-card", id: "glm-disk" }, element("h2", {}, t("statistics.disk")));
  const unknown = t("statistics.disk.unknown");
  if (!disk) {
    card.append(element("p", { class: "glm-detail" }, unknown));
    return card;
  }
  const say = (value, words) => (value === null ? unknown : words(value));
  if (disk.warning) {
    card.append(element("div", { class: "glm-remark glm-remark-busy", role: "alert" }, element("p", {}, t("statistics.disk.soon")), element("p", { class: "glm-detail", lang: "en" }, disk.warning), element("p", {}, t("statistics.disk.shorten"))));
  }
  card.append(
    listed([
      [t("statistics.disk.used"), size(disk.used)],
      [t("statistics.disk.quota"), disk.quota ? size(disk.quota) : t("statistics.disk.no_quota")],
      [t("statistics.disk.free"), say(disk.free, size)],
      [t("statistics.disk.each"), say(disk.bytes_a_run, size)],
      [t("statistics.disk.growth"), say(disk.bytes_a_day, size)],
      [t("statistics.disk.left"), say(disk.days_left, (days) => t("statistics.disk.days", { days: number(days) }))],
    ]),
  );
  if (disk.quota) {
    const share = Math.min(1, disk.used / disk.quota);
    card.append(element("meter", { class: "glm-statistics-meter", min: "0", max: "1", high: "0.9", value: share, "aria-label": `${t("statistics.disk.used")} / ${t("statistics.disk.quota")}` }));
  }
  return card;
}

function retentionCard(kept, t, language) {
  const age = (seconds) => {
    if (seconds === null) return t("statistics.retention.forever");
    const [value, unit] = seconds >= 86400 ? [seconds / 86400, "day"] : [seconds / 3600, "hour"];
    return new Intl.NumberFormat(language, { style: "unit", unit, unitDisplay: "long", maximumFractionDigits: 1 }).format(value);
  };
  const due = Object.values(kept.due).reduce((sum, count) => sum + count, 0);
  const last = kept.last ? element("span", { class: "glm-bar" }, moment(kept.last.moment), badge(number(kept.last.erased.runs))) : t("statistics.retention.never");
  const rows = ["kept", "failed", "reviewed"].map((name) => [t(`statistics.retention.${name}`), age(kept[`${name}_seconds`])]);
  rows.push([t("statistics.retention.due"), number(due)], [t("statistics.retention.last"), last]);
  return element("section", { class: "glm-card", id: "glm-retention" }, element("h2", {}, t("statistics.retention")), listed(rows));
}
