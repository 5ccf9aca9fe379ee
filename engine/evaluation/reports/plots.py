"""The plots of a report as SVG text: scores with their intervals, perplexities, differences of versions. No script, no network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from engine.evaluation.published import MARK, Published
from engine.evaluation.reports import numbers
from engine.evaluation.reports.summary import Difference, Line, Score, Summary

_WIDTH, _LEFT, _RIGHT, _TOP = 860, 260, 24, 8  # in the units of the SVG; left: of the names
_MARK, _ROW = 13, 12  # height of a version's mark in a row, and of what is around them
_BOTTOM = 26
_NAME = 40  # letters that fit the left

Place = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class _Axis:
    place: Place
    ticks: Sequence[float]
    name: Callable[[float], str]


def scores(summary: Summary) -> str:
    """Scores in percent, of each task's first metric; "" without any."""
    lines = [line for line in _first_metrics(summary) if line.percent]
    if not lines:
        return ""
    axis = _Axis(lambda number: _across(number / 100), range(0, 101, 20), lambda number: f"{number:.0f}")
    return _rows(summary, lines, axis, "Scores in percent with 95% intervals")


def perplexities(summary: Summary) -> str:
    """Of texts, on a logarithmic axis; "" without any."""
    lines = [line for line in _first_metrics(summary) if line.metric in ("PPL", "PPL_tokens")]
    shown = [number for line in lines for number in _numbers(line) if number > 0]
    if not shown:
        return ""
    low, high = math.log10(min(shown) * 0.8), math.log10(max(shown) * 1.25)
    ticks = [
        factor * 10.0**power
        for power in range(math.floor(low), math.ceil(high) + 1)
        for factor in ((1, 2, 5) if high - low < 2 else (1,))
    ]
    ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
    axis = _Axis(
        lambda number: _across((math.log10(number) - low) / (high - low)), ticks, lambda number: f"{number:,g}"
    )
    return _rows(summary, lines, axis, "Perplexity with 95% intervals, logarithmic")


def differences(summary: Summary, second: int) -> str:
    """Of one version (its index) against the first, in percent; "" without any."""
    key = summary.versions[second].key
    firsts = {id(line) for line in _first_metrics(summary)}
    found = [
        each for each in summary.differences if each.second.key == key and each.line.percent and id(each.line) in firsts
    ]
    if not found:
        return ""
    reach = max(1.0, *(abs(end) for each in found for end in (*each.interval, each.value))) * 1.08
    step = next((step for step in (0.5, 1, 2, 5, 10, 20) if reach / step <= 5), 50)
    ticks = [number * step for number in range(-math.floor(reach / step), math.floor(reach / step) + 1)]
    axis = _Axis(
        lambda number: _across((number + reach) / (2 * reach)), ticks, lambda number: f"{number:+g}" if number else "0"
    )
    parts, y = [], float(_TOP)
    for each in found:
        parts.append(_name(each.line, y, 1))
        parts.append(_difference(each, axis, y + (_ROW + _MARK) / 2))
        y += _ROW + _MARK
    zero = f'<line class="zero" x1="{axis.place(0):.1f}" x2="{axis.place(0):.1f}" y1="{_TOP}" y2="{y:.1f}"/>'
    return _svg([*_grid(axis, y), zero, *parts], y, "Differences in percentage points with 95% intervals")


def _first_metrics(summary: Summary) -> list[Line]:
    """One line a task and group: of many metrics the first is the one that the task is known by."""
    found: dict[tuple[str, str], Line] = {}
    for line in summary.lines:
        found.setdefault((line.task, line.group), line)
    return list(found.values())


def _numbers(line: Line) -> list[float]:
    ends = [end for score in line.scores.values() for end in (score.value, *(score.interval or ()))]
    return ends + [each.value for each in line.published]


def _rows(summary: Summary, lines: Sequence[Line], axis: _Axis, label: str) -> str:
    parts, y = [], float(_TOP)
    for line in lines:
        height = _ROW + _MARK * len(summary.versions)
        parts.append(_name(line, y, len(summary.versions)))
        top, bottom = y + 4, y + height - 4
        chances = {score.chance for score in line.scores.values() if score.chance is not None}
        for chance in chances:
            x = axis.place(chance)
            parts.append(f'<line class="chance" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}">'
                         f"<title>chance: {chance:.1f}</title></line>")  # fmt: skip
        parts += [_diamond(line, each, axis, y + height / 2) for each in line.published]
        for number, version in enumerate(summary.versions):
            if version.key in line.scores:
                middle = y + _ROW / 2 + _MARK * (number + 0.5)
                parts.append(_score(line, line.scores[version.key], axis, middle, number, version.label))
        y += height
    return _svg([*_grid(axis, y), *parts], y, label)


def _score(line: Line, score: Score, axis: _Axis, y: float, number: int, version: str) -> str:
    said = f"{line.task} {line.group}: {line.metric} {numbers.value(line, score.value)}"
    if score.interval is not None:
        said += f", 95% {numbers.interval(line, score.interval)}"
    said += f"; {numbers.limited(score)} rows; {version}"
    colour = f"version{number % 6}"
    whisker = ""
    if score.interval is not None:
        left, right = (axis.place(end) for end in score.interval)
        whisker = f'<path class="whisker" d="M{left:.1f} {y:.1f}H{right:.1f}M{left:.1f} {y - 3:.1f}v6M{right:.1f} {y - 3:.1f}v6"/>'
    median = ""
    if score.files > 1:
        x = axis.place(score.spread.median)
        median = f'<path class="median" d="M{x:.1f} {y - 5.5:.1f}v11"/>'
    dot = f'<circle cx="{axis.place(score.value):.1f}" cy="{y:.1f}" r="4"/>'
    return f'<g class="{colour}"><title>{escape(said)}</title>{whisker}{dot}{median}</g>'


def _diamond(line: Line, each: Published, axis: _Axis, y: float) -> str:
    x = axis.place(each.value)
    said = f"{each.precision} {numbers.value(line, each.value)}: {MARK}; {each.origin}"
    return f'<path class="published" d="M{x:.1f} {y - 6:.1f}l6 6-6 6-6-6z"><title>{escape(said)}</title></path>'


def _difference(each: Difference, axis: _Axis, y: float) -> str:
    left, right = (axis.place(end) for end in each.interval)
    said = f"{each.line.task} {each.line.group}: {each.line.metric} {numbers.change(each)}, {each.rows:,} rows"
    return (
        f'<g class="{each.verdict}"><title>{escape(said)}</title>'
        f'<path class="whisker" d="M{left:.1f} {y:.1f}H{right:.1f}M{left:.1f} {y - 3:.1f}v6M{right:.1f} {y - 3:.1f}v6"/>'
        f'<circle cx="{axis.place(each.value):.1f}" cy="{y:.1f}" r="4"/></g>'
    )


def _name(line: Line, y: float, versions: int) -> str:
    name = line.task if line.group == "all" else f"{line.task} · {line.group}"
    short = name if len(name) <= _NAME else name[: _NAME - 1] + "…"
    middle = y + (_ROW + _MARK * versions) / 2
    band = f'<line class="row" x1="0" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
    title = f"<title>{escape(f'{name}, {line.metric}')}</title>"
    text = f'<text class="name" x="{_LEFT - 14}" y="{middle + 4:.1f}">{escape(short)}{title}</text>'
    return band + text


def _grid(axis: _Axis, bottom: float) -> list[str]:
    parts = []
    for tick in axis.ticks:
        x = axis.place(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom:.1f}"/>'
                     f'<text class="tick" x="{x:.1f}" y="{bottom + 16:.1f}">{axis.name(tick)}</text>')  # fmt: skip
    return parts


def _across(share: float) -> float:
    return _LEFT + min(1.0, max(0.0, share)) * (_WIDTH - _LEFT - _RIGHT)


def _svg(parts: Sequence[str], bottom: float, label: str) -> str:
    height = bottom + _BOTTOM
    inside = "\n".join(parts)
    return f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">\n{inside}\n</svg>'
