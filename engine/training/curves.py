"""What metrics.jsonl says of a run, as curves: one number a step and key, tokens read so far, events. No torch, no matplotlib.

A line is a step, {"step", "stage", "loss", "tokens", "seconds", ...}, or an event alone, {"step", "event"}; a step may carry an
event, too. A run goes on while it is read, and it may have been killed: a line that is no JSON object with a step is left out
and counted, but not the last one while it has no end. A missing key, null or NaN is a gap. Steps that were done again after a
rewind count as they went last.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy
from numpy.lib.stride_tricks import sliding_window_view

from engine.errors import GLMError

METRICS = "metrics.jsonl"
SMOOTH = 25  # steps of the mean that is reported as a run's loss

Values = list[float | None]
_MEASURED = {"loss", "tokens", "seconds", "gradient_norm"}  # a line with none of these is an event alone
_KNOWN = {"step", "stage", "event", "skipped"}


@dataclass(frozen=True, slots=True)
class Event:
    """What happened at a step, "rewind" say. text: with what else the line tells of it."""

    step: int
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Curves:
    """Lists of one entry a step, in order. given_up: (step, loss) of steps that a rewind threw away."""

    steps: list[int]
    stages: list[str]
    tokens: list[int]  # read so far, this step included
    values: dict[str, Values]
    events: list[Event]
    given_up: list[tuple[int, float]]
    seconds: float  # of all steps, those given up included
    unreadable: int  # lines

    def get(self, key: str) -> Values:
        """The curve of a key; all gaps where no line has it."""
        return self.values.get(key) or [None] * len(self.steps)

    @property
    def speed(self) -> Values:
        """Tokens a second of each step."""
        pairs = zip(self.get("tokens"), self.get("seconds"), strict=True)
        return [tokens / seconds if tokens is not None and seconds else None for tokens, seconds in pairs]

    @property
    def spans(self) -> list[tuple[str, int, int]]:
        """Stages as (name, first index, last index)."""
        found: list[tuple[str, int, int]] = []
        for index, stage in enumerate(self.stages):
            if found and found[-1][0] == stage:
                found[-1] = (stage, found[-1][1], index)
            else:
                found.append((stage, index, index))
        return found

    def totals(self) -> dict:
        """Of the whole run, as evaluation.json has them. last_loss: mean of the last steps, None without any."""
        last = smoothed(self.get("loss")[-SMOOTH:], SMOOTH)[-1:]
        return {
            "steps": len(self.steps),
            "tokens": self.tokens[-1] if self.tokens else 0,
            "targets": int(sum(value for value in self.get("targets") if value is not None)),
            "hours": round(self.seconds / 3600, 2),
            "last_loss": round(last[0], 3) if last and last[0] is not None else None,
        }


def read(path: Path) -> Curves:
    """Read a metrics.jsonl. GLMError bad_data if there is none; an empty one gives empty curves."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError as error:
        raise GLMError("bad_data", f"There is no {path}.", field="run") from error
    done: list[dict] = []  # steps in order
    events: list[Event] = []
    given_up: list[tuple[int, float]] = []
    seconds, unreadable = 0.0, 0

    def give_up(first: int) -> None:
        """Steps from this one on are done again."""
        while done and done[-1]["step"] >= first:
            row = done.pop()
            if (loss := number(row.get("loss"))) is not None:
                given_up.append((row["step"], loss))

    lines = text.split("\n")
    for number_of_line, line in enumerate(lines, start=1):
        row = _row(line)
        if row is None:
            unreadable += bool(line.strip()) and number_of_line < len(lines)
            continue
        kind = row.get("event") or ("skip" if row.get("skipped") is True else None)
        if kind:
            events.append(Event(row["step"], str(kind), _told(row, str(kind))))
        if kind == "rewind" and (back := number(row.get("to"))) is not None:
            give_up(int(back) + 1)
        elif row.keys() & _MEASURED:
            give_up(row["step"])
            done.append(row)
            seconds += number(row.get("seconds")) or 0.0
    numbers = [{key: number(value) for key, value in row.items() if key != "step"} for row in done]
    keys = sorted({key for row in numbers for key, value in row.items() if value is not None})
    return Curves(
        steps=[row["step"] for row in done],
        stages=[str(row.get("stage") or "") for row in done],
        tokens=list(accumulate(int(row.get("tokens") or 0) for row in numbers)),
        values={key: [row.get(key) for row in numbers] for key in keys},
        events=events,
        given_up=sorted(given_up),
        seconds=seconds,
        unreadable=unreadable,
    )


def number(value: object) -> float | None:
    """A finite number, or None."""
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None


def smoothed(values: Sequence[float | None], window: int, after: int = 0) -> Values:
    """Means of `window` values each, the last `after` of which come behind the place; gaps, and what is beyond the ends, are
    left out. With after = 0 what is known at each step; with half of the window the curve does not lag behind."""
    if not values:
        return []
    inner = [math.nan if value is None else value for value in values]
    numbers = numpy.array([math.nan] * (window - 1 - after) + inner + [math.nan] * after)
    there = numpy.isfinite(numbers)
    # Sums of windows, not differences of one running sum, in which a single huge value would spoil all that follow.
    sums = sliding_window_view(numpy.where(there, numbers, 0.0), window).sum(axis=-1)
    counts = sliding_window_view(there, window).sum(axis=-1)
    return [float(total / count) if count else None for total, count in zip(sums, counts, strict=True)]


def _row(line: str) -> dict | None:
    try:
        row = json.loads(line)
    except ValueError:  # the half of a line that a killed run left, or one that is being written
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def _told(row: dict, kind: str) -> str:
    """As "rewind (to 100)": with the other keys of an event alone."""
    if row.keys() & _MEASURED:
        return kind
    more = [
        f"{key} {value}" for key, value in row.items() if key not in _KNOWN and isinstance(value, str | int | float)
    ]
    return f"{kind} ({', '.join(more)})" if more else kind
