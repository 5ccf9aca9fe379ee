"""Percentiles of milliseconds from counts in bins, which a database makes of a million rows in one pass.

Bins are a millisecond wide below 100 ms, then a twentieth of the power of ten that they begin with (5 ms from 100 ms on, 50 ms
from 1 s on ...), up to 1000 s: a percentile is off by 5 % at most. `bin_of(column, dialect)` is the same in SQL.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Float, Integer, case, cast, func

FINE = 100  # bins of one millisecond
DECADES = 4  # of 180 bins each: from 100 ms to 1000 s
A_DECADE = 180
LAST = FINE + DECADES * A_DECADE  # whatever takes longer


def bin_of(column: Any, dialect: str) -> ColumnElement[int]:
    """The number of the bin of a column in milliseconds."""

    def whole(value: Any) -> ColumnElement[int]:
        # SQLite's CAST cuts off, PostgreSQL's rounds.
        return cast(cast(value, Float) if dialect == "sqlite" else func.floor(value), Integer)

    steps = [(column < 0, 0), (column < FINE, whole(column))]
    for decade in range(DECADES):
        low = 10.0 ** (decade + 2)
        first = FINE + decade * A_DECADE
        steps.append((column < 10 * low, first + whole((column - low) / (low / 20))))
    return case(*steps, else_=LAST)


def edges(bin: int) -> tuple[float, float]:
    """Where a bin begins and ends, in milliseconds; the last one is a point."""
    if bin < FINE:
        return float(bin), bin + 1.0
    if bin >= LAST:
        return 10.0 ** (DECADES + 2), 10.0 ** (DECADES + 2)
    decade, place = divmod(bin - FINE, A_DECADE)
    low = 10.0 ** (decade + 2)
    return low + place * low / 20, low + (place + 1) * low / 20


def percentile(counts: Mapping[int, int], share: float) -> float | None:
    """The value below which this share of what was counted lies; None of nothing. counts: bin -> how many."""
    total = sum(counts.values())
    if not total:
        return None
    wanted, before = share * total, 0
    low = high = 0.0
    for bin in sorted(counts):
        low, high = edges(bin)
        if before + counts[bin] >= wanted:
            return low + (high - low) * (wanted - before) / counts[bin]
        before += counts[bin]
    return high
