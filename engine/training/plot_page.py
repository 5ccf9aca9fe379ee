"""The page of a run: its panels as inline SVG, with the values under the pointer. One file, no network; light and dark."""

from __future__ import annotations

import json
import math
from html import escape

from engine.training.curves import Curves, Event, Values
from engine.training.panels import Panel, mark_places, panels, smoothing_window, summary

_WIDTH, _HEIGHT = 600, 250  # of a panel, in the units of its SVG
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 22, 8, 38
_POINTS = 1200  # of a curve, and of what the pointer finds: about two a unit of width
_EVENTS_TOLD = 200


def page(curves: Curves, name: str) -> str:
    """The whole HTML text. name: of the run."""
    shown = panels(curves)
    data = json.dumps(_hover_data(curves, shown), separators=(",", ":")).replace("<", "\\u003c")
    title = escape(name)
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: training</title>
<style>{_STYLE}</style>
<h1>{title}</h1>
<p>{escape(summary(curves))}</p>
<main>
{"".join(_figure(panel, curves, number) for number, panel in enumerate(shown))}</main>
{_events(curves)}<script>
const data = {data};
{_SCRIPT}</script>
</html>
"""


def _figure(panel: Panel, curves: Curves, number: int) -> str:
    low, high = panel.limits()
    scale = _Scale(panel, low, high)
    parts = [
        *_stages(panel, curves, scale, words=number < 2),
        *_axes(panel, scale, low, high),
        f'<g clip-path="url(#inside{number})">',
    ]
    for x, y in panel.points[:: max(1, len(panel.points) // _POINTS)]:
        parts.append(f'<circle class="given-up" cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}" r="1.6"/>')
    for index, line in enumerate(panel.lines):
        if line.smooth is not None:
            parts.append(f'<path class="raw line{index}" d="{_path(panel.x, line.values, scale)}"/>')
        drawn = line.values if line.smooth is None else line.smooth
        parts.append(f'<path class="line{index}" d="{_path(panel.x, drawn, scale)}"/>')
    parts += ["</g>", *_marks(panel, curves, scale)]
    if not panel.has_values:
        parts.append(f'<text class="none" x="{_WIDTH / 2}" y="{_HEIGHT / 2}">no values</text>')
    parts.append(f'<line class="pointer" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" visibility="hidden"/>')
    legend = "".join(f'<span class="line{index}">{escape(line.name)}</span>' for index, line in enumerate(panel.lines))
    if any(line.smooth is not None for line in panel.lines):
        legend += f" mean of {smoothing_window(len(panel.x))} steps"
    if panel.points:
        legend += ' <span class="given-up">given up by a rewind</span>'
    return f"""<figure>
<figcaption><b>{escape(panel.title)}</b> <small>{escape(panel.unit)}</small><output>{legend}</output></figcaption>
<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(panel.title)}">
<clipPath id="inside{number}">
<rect x="{_LEFT}" y="{_TOP}" width="{_WIDTH - _LEFT - _RIGHT}" height="{_HEIGHT - _TOP - _BOTTOM}"/></clipPath>
{"".join(parts)}
</svg>
</figure>
"""


class _Scale:
    """From values to the units of the SVG."""

    def __init__(self, panel: Panel, low: float, high: float) -> None:
        self.log = panel.log
        self.first, self.last = (panel.x[0], panel.x[-1]) if panel.x else (0.0, 1.0)
        if self.last <= self.first:
            self.last = self.first + 1
        self.low, self.high = (math.log10(low), math.log10(high)) if panel.log else (low, high)

    def x(self, value: float) -> float:
        return _LEFT + (value - self.first) / (self.last - self.first) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        if self.log:
            value = math.log10(value) if value > 0 else self.low
        # Far outside is as good as a little outside, and numbers stay short.
        share = min(2.0, max(-1.0, (value - self.low) / (self.high - self.low)))
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _path(x: list[float], values: Values, scale: _Scale) -> str:
    """An SVG path with gaps. Of many points the lowest and the highest of each group, so that no spike is lost."""
    group = max(1, math.ceil(2 * len(values) / _POINTS))
    parts, down = [], False
    for start in range(0, len(values), group):
        places = range(start, min(start + group, len(values)))
        there = [(value, index) for index in places if (value := values[index]) is not None]
        if not there:
            down = False
            continue
        for index in sorted({min(there)[1], max(there)[1]}):
            value = values[index]
            assert value is not None
            parts.append(f"{'L' if down else 'M'}{scale.x(x[index]):.1f} {scale.y(value):.1f}")
            down = True
        if group == 1 and start + 1 < len(values) and values[start + 1] is None and parts[-1][0] == "M":
            parts.append("h.1")  # a value alone between gaps: a dot
    return "".join(parts)


def _stages(panel: Panel, curves: Curves, scale: _Scale, words: bool) -> list[str]:
    parts = []
    for number, (stage, first, last) in enumerate(curves.spans):
        left, right = scale.x(panel.x[first]), scale.x(panel.x[min(last + 1, len(panel.x) - 1)])
        parts.append(f'<rect class="stage{number % 2}" x="{left:.1f}" y="{_TOP}" width="{max(right - left, 0):.1f}" '
                     f'height="{_HEIGHT - _TOP - _BOTTOM}"><title>{escape(stage)}</title></rect>')  # fmt: skip
        if words and right - left > 7 * len(stage):
            parts.append(f'<text class="stage" x="{left + 4:.1f}" y="{_TOP + 11}">{escape(stage)}</text>')
    return parts


def _axes(panel: Panel, scale: _Scale, low: float, high: float) -> list[str]:
    parts = []
    bottom = _HEIGHT - _BOTTOM
    for tick in log_ticks(low, high) if panel.log else ticks(low, high):
        y = scale.y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                     f'<text class="y" x="{_LEFT - 6}" y="{y + 4:.1f}">{short(tick)}</text>')  # fmt: skip
    for tick in ticks(scale.first, scale.last):
        parts.append(f'<text class="x" x="{scale.x(tick):.1f}" y="{bottom + 15}">{short(tick)}</text>')
    parts.append(f'<text class="x" x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{bottom + 31}">{escape(panel.x_name)}</text>')
    return parts


def _marks(panel: Panel, curves: Curves, scale: _Scale) -> list[str]:
    parts = []
    bottom = _HEIGHT - _BOTTOM
    for event, place in mark_places(curves, panel):
        x, top = scale.x(place), bottom - 8 if event.kind == "skip" else _TOP
        parts.append(f'<line class="event {_class(event)}" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}">'
                     f"<title>step {event.step}: {escape(event.text)}</title></line>")  # fmt: skip
    return parts


def _class(event: Event) -> str:
    return event.kind if event.kind in ("skip", "rewind", "spike", "resumed") else "other"


def _events(curves: Curves) -> str:
    if not curves.events:
        return ""
    rows = "".join(
        f'<tr><td>{event.step:,}<td class="{_class(event)}">{escape(event.text)}'
        for event in curves.events[-_EVENTS_TOLD:]
    )
    left_out = len(curves.events) - _EVENTS_TOLD
    more = f"<p>The last {_EVENTS_TOLD}; {left_out:,} before them are left out.</p>" if left_out > 0 else ""
    return f"<h2>Events</h2>{more}<table><tr><th>step<th>event{rows}</table>\n"


def _hover_data(curves: Curves, shown: list[Panel]) -> dict:
    """What the pointer finds: for some of the steps, the place in each panel (units of the SVG) and the values."""
    count = len(curves.steps)
    picks = range(count) if count <= _POINTS else [index * (count - 1) // (_POINTS - 1) for index in range(_POINTS)]
    found = []
    for panel in shown:
        scale = _Scale(panel, *panel.limits())
        lines = [
            [line.name, _told(line.values, picks), line.smooth and _told(line.smooth, picks)] for line in panel.lines
        ]
        found.append({"x": [round(scale.x(panel.x[index]), 1) for index in picks], "lines": lines})
    return {
        "steps": [curves.steps[index] for index in picks],
        "tokens": [short(curves.tokens[index]) for index in picks],
        "stages": [curves.stages[index] for index in picks],
        "panels": found,
    }


def _told(values: Values, picks: range | list[int]) -> list[str | None]:
    return [None if (value := values[index]) is None else exact(value) for index in picks]


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers from low to high."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda step: abs(step - rough))
    return [round(number * step, 12) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from low to high, with their 2- and 5-fold where there are few, and not all where there are many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    every = max(1, (last - first) // 6)
    found = [factor * 10.0**power for power in range(first, last + 1, every) for factor in factors]
    found = [tick for tick in found if low <= tick <= high]
    return found if len(found) > 2 else ticks(low, high)


def short(value: float) -> str:
    """1200000 as 1.2M."""
    for limit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if name == 'k' else limit):.4g}{name}"
    return f"{value:.4g}"


def exact(value: float) -> str:
    """As the pointer shows it: 65536, 0.03217."""
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


_STYLE = """
:root { color-scheme: light dark; --text: #1c2430; --dim: #68707c; --back: #fff; --card: #f6f7f9; --grid: #dfe3e8;
  --band: rgb(20 40 80 / 4%); --line0: #1f6fc4; --line1: #d9770a; --red: #cc2b2b; --green: #218a3c; --other: #8446b5 }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7ec; --dim: #98a1ad; --back: #14171c; --card: #1c2027;
  --grid: #303640; --band: rgb(160 190 255 / 6%); --line0: #5aa9f5; --line1: #f2a541; --red: #ff6b6b; --green: #57c776;
  --other: #c08bea } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 1.5rem auto;
  max-width: 1300px; padding: 0 1rem }
h1 { font-size: 1.4rem; margin: 0 } h2 { font-size: 1.1rem }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 1rem }
figure { margin: 0; padding: .6rem .7rem .2rem; background: var(--card); border-radius: 8px }
figcaption small, output { color: var(--dim); font-size: .82rem }
output { display: block; height: 1.5em; overflow: hidden; font-variant-numeric: tabular-nums }
output span { margin-right: .8em } output .line0 { color: var(--line0) } output .line1 { color: var(--line1) }
output .given-up { color: var(--red) }
svg { display: block; width: 100%; height: auto; touch-action: pan-y }
svg text { font: 11px system-ui, sans-serif; fill: var(--dim) }
.y { text-anchor: end } .x, .none { text-anchor: middle }
.grid { stroke: var(--grid) } .stage0 { fill: transparent } .stage1 { fill: var(--band) }
path { fill: none; stroke-width: 1.7; stroke-linejoin: round; stroke-linecap: round }
path.raw { stroke-width: .8; opacity: .4 }
path.line0 { stroke: var(--line0) } path.line1 { stroke: var(--line1) }
circle.given-up { fill: var(--red); opacity: .6 }
.event { stroke: var(--other); stroke-width: 1.3; stroke-dasharray: 4 3 }
.event.rewind, .event.spike { stroke: var(--red) } .event.resumed { stroke: var(--green) }
.event.skip { stroke: var(--dim); stroke-dasharray: none }
.pointer { stroke: var(--text); stroke-width: .8; opacity: .6; pointer-events: none }
table { border-collapse: collapse; font-size: .9rem } td, th { padding: .15rem .8rem .15rem 0; text-align: left }
td:first-child, th:first-child { text-align: right }
td.rewind, td.spike { color: var(--red) } td.resumed { color: var(--green) } td.other { color: var(--other) }
"""

_SCRIPT = """
const figures = [...document.querySelectorAll("figure")].map((figure, number) => ({
  svg: figure.querySelector("svg"), line: figure.querySelector(".pointer"), output: figure.querySelector("output"),
  legend: [...figure.querySelector("output").childNodes], ...data.panels[number] }));

function nearest(places, x) {
  let low = 0, high = places.length - 1;
  while (high - low > 1) { const middle = (low + high) >> 1; if (places[middle] < x) low = middle; else high = middle; }
  return x - places[low] < places[high] - x ? low : high;
}

function show(index) {
  figures.forEach(({ line, output, x, lines }, place) => {
    line.setAttribute("x1", x[index]); line.setAttribute("x2", x[index]); line.setAttribute("visibility", "visible");
    const more = place < 2 ? ` ${data.stages[index]}, ${data.tokens[index]} tokens` : "";
    output.textContent = `step ${data.steps[index]}${more}: `;
    lines.forEach(([name, values, smooth], number) => {
      const part = document.createElement("span");
      part.className = `line${number}`;
      part.textContent = `${name} ${values[index] ?? "–"}` + (smooth ? ` (mean ${smooth[index] ?? "–"})` : "");
      output.append(part);
    });
  });
}

function hide() {
  for (const { line, output, legend } of figures) {
    line.setAttribute("visibility", "hidden");
    output.replaceChildren(...legend);
  }
}

for (const { svg, x } of figures) {
  const find = (event) => {
    if (!x.length) return;
    const box = svg.getBoundingClientRect();
    show(nearest(x, (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width));
  };
  svg.addEventListener("pointermove", find);
  svg.addEventListener("pointerdown", find);
  svg.addEventListener("pointerleave", hide);
}
"""
