"""What a run prints while it goes on: one line that is rewritten on a terminal, a line now and then elsewhere.

    with Line(recipe.steps) as line:
        line(metrics)        # after each step, the object that was written to metrics.jsonl

What is logged meanwhile gets a line of its own. Figures are those of the last steps: the loss, tokens a second and share of the
matmul peak as means, the time left from the time between the calls, so that data and saving count.
"""

from __future__ import annotations

import logging
import math
import shutil
import sys
import time
import unicodedata
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from engine.training.curves import SMOOTH, number

log = logging.getLogger(__name__)

_BAR = 20
_LAST = 50  # steps that the figures are of; the loss: SMOOTH


@dataclass(frozen=True, slots=True)
class State:
    """What a line tells. None: not known. peak_share: 0 to 1. seconds_left: of the whole run."""

    step: int
    steps: int
    stage: str
    loss: float | None
    tokens_per_second: float | None
    peak_share: float | None
    seconds_left: float | None


class Recent:
    """The last steps, and what they say. `clock` gives seconds."""

    def __init__(self, steps: int, clock=time.monotonic) -> None:
        self.steps, self._clock = steps, clock
        self._losses: deque[float] = deque(maxlen=SMOOTH)
        self._done: deque[tuple[float, float]] = deque(maxlen=_LAST)  # tokens, seconds
        self._shares: deque[float] = deque(maxlen=_LAST)
        self._between: deque[float] = deque(maxlen=_LAST)
        self._called: float | None = None

    def add(self, metrics: Mapping[str, Any]) -> State:
        """After a step: its object of metrics.jsonl; keys that are missing or null are left out of the means."""
        now = self._clock()
        seconds, tokens = number(metrics.get("seconds")), number(metrics.get("tokens"))
        if self._called is not None:
            self._between.append(now - self._called)
        elif seconds is not None:
            self._between.append(seconds)
        self._called = now
        for kept, key in ((self._losses, "loss"), (self._shares, "peak_share")):
            if (value := number(metrics.get(key))) is not None:
                kept.append(value)
        if seconds and tokens is not None:
            self._done.append((tokens, seconds))
        left = self.steps - metrics["step"]
        return State(
            step=metrics["step"],
            steps=self.steps,
            stage=str(metrics.get("stage") or ""),
            loss=_mean(self._losses),
            tokens_per_second=_total(self._done, 0) / _total(self._done, 1) if self._done else None,
            peak_share=_mean(self._shares),
            seconds_left=left * mean if (mean := _mean(self._between)) is not None else None,
        )


class Line:
    """Call it after each step. On a terminal it shows every step, else one in `every` goes to the log.

    It is a context manager: at its end the terminal's line is left as it is, and what follows has its own.
    """

    def __init__(self, steps: int, every: int = 10, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._recent, self._every = Recent(steps), every
        self._shown = False
        self._handlers: list[logging.Handler] = []

    def __enter__(self) -> Line:
        if self._terminal:
            self._handlers = list(logging.getLogger().handlers)
            for handler in self._handlers:
                handler.addFilter(self._make_room)
        return self

    def __exit__(self, *_: object) -> None:
        for handler in self._handlers:
            handler.removeFilter(self._make_room)
        if self._shown:
            self._stream.write("\n")
            self._stream.flush()
            self._shown = False

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        state = self._recent.add(metrics)
        if self._terminal:
            width = shutil.get_terminal_size().columns
            self._stream.write("\r\x1b[K" + terminal_line(state, width))
            self._stream.flush()
            self._shown = True
        elif state.step % self._every == 0 or state.step == state.steps:
            log.info("%s", plain_line(state))

    def clear(self) -> None:
        """Take the line off the terminal; the next step shows it again."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False

    def _make_room(self, record: logging.LogRecord) -> bool:
        self.clear()
        return True


def plain_line(state: State) -> str:
    """As `step 30/1250 pretrain loss 5.123 1043 tokens/s, 38% of the matmul peak, 1:02:03 left`."""
    words = [f"step {state.step}/{state.steps}", state.stage]
    words += [] if state.loss is None else [f"loss {state.loss:.3f}"]
    words += [] if state.tokens_per_second is None else [f"{state.tokens_per_second:.0f} tokens/s"]
    more = [" ".join(word for word in words if word)]
    more += [] if state.peak_share is None else [f"{state.peak_share:.0%} of the matmul peak"]
    more += [] if state.seconds_left is None else [f"{duration(state.seconds_left)} left"]
    return ", ".join(more)


def terminal_line(state: State, width: int) -> str:
    """The same with a bar, the least needed words left out until it is less than `width` columns wide."""
    share = min(1.0, state.step / state.steps) if state.steps else 1.0
    bar = "#" * int(_BAR * share)
    whole = plain_line(state)
    for line in (f"[{bar:.<{_BAR}}] {share:4.0%} {whole}", f"{share:4.0%} {whole}", whole):
        if _columns(line) < width:
            return line
    while whole and _columns(whole) >= width:
        whole = whole[:-1]
    return whole


def _columns(text: str) -> int:
    """That a terminal shows it in: a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)


def duration(seconds: float) -> str:
    """As 0:07, 1:02:03, 2 days 3:04:05."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours}:{minutes:02}:{rest:02}" if hours or days else f"{minutes}:{rest:02}"
    return f"{days} day{'s' if days > 1 else ''} {clock}" if days else clock


def _mean(values: deque[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _total(pairs: deque[tuple[float, float]], index: int) -> float:
    return math.fsum(pair[index] for pair in pairs)
