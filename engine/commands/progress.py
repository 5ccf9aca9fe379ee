"""How far a command is that writes many bytes: a line that moves on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from engine.commands.ending import told
from engine.glm.size import format_size

_WIDTH = 24
_OFTEN, _SELDOM = 0.2, 30.0  # seconds between lines on a terminal, and elsewhere


class Progress:
    """Call it with what is being done, the bytes done, and those in all. Rate and estimate count from the first call on."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._start: tuple[float, int] | None = None
        self._next = 0.0
        self._shown = 0  # characters of the line on the terminal

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self._start is None:
            self._start = now, done
            self._next = now + (_OFTEN if self._terminal else _SELDOM)
        if now < self._next and not (done == total and self._terminal):
            return
        self._next = now + (_OFTEN if self._terminal else _SELDOM)
        began, before = self._start
        rate = (done - before) / (now - began) if now > began else 0.0
        text = f"{format_size(done)} of {format_size(total)}"
        if rate > 0:
            text += f", {format_size(int(rate))}/s, {_time((total - done) / rate)} left"
        share = done / total if total else 1.0
        if self._terminal:
            bar = "#" * int(_WIDTH * share)
            line = f"[{bar:.<{_WIDTH}}] {share:4.0%} {text}  {what}"
            sys.stderr.write(f"\r{line:{self._shown}}")
            self._shown = len(line)
        else:
            sys.stderr.write(f"{share:4.0%} {text}: {what}\n")
        sys.stderr.flush()

    def end(self) -> None:
        """Leave the line that moves, so that what follows has its own."""
        if self._shown:
            sys.stderr.write("\n")
            self._shown = 0


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def with_progress(work: Callable[[Progress], int], ended: str) -> int:
    """The exit status of work that shows its progress: 1 when the machine fails, 2 for a mistake, 130 when it was interrupted.

    ended: what has become of it when the machine failed or it was interrupted, in a sentence.
    """
    progress = Progress()
    return told(lambda: work(progress), ended, progress.end)
