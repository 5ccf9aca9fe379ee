"""Numbers as reports write them."""

from __future__ import annotations

from engine.evaluation.reports.intervals import Interval
from engine.evaluation.reports.summary import Difference, Line, Score, Version


def value(line: Line, number: float) -> str:
    """One digit after the point for percent, as in the paper; three, or four figures, for the rest."""
    if line.percent:
        return f"{number:.1f}"
    return f"{number:.3f}" if abs(number) < 100 else f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.1f}"


def interval(line: Line, found: Interval | None) -> str:
    return f"{value(line, found[0])}–{value(line, found[1])}" if found is not None else ""


def signed(line: Line, number: float) -> str:
    return ("+" if number > 0 else "−" if number < 0 else "") + value(line, abs(number))


def change(each: Difference) -> str:
    """+1.2 [−0.3, +2.7]."""
    low, high = each.interval
    return f"{signed(each.line, each.value)} [{signed(each.line, low)}, {signed(each.line, high)}]"


def limited(score: Score) -> str:
    """Rows, and whether they are all."""
    return f"{score.count:,}" + (f" (first {score.limit:,} of each file)" if score.limit is not None else "")


def published(line: Line) -> str:
    """FP16 80.2, INT4 79.5."""
    return ", ".join(f"{each.precision} {value(line, each.value)}" for each in line.published)


def seconds(number: float) -> str:
    return (
        f"{number:.0f} s" if number < 120 else f"{number / 60:.0f} min" if number < 7200 else f"{number / 3600:.1f} h"
    )


def title(versions: list[Version]) -> str:
    return "Evaluation of " + ", ".join(dict.fromkeys(version.name for version in versions))
