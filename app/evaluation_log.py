"""What an evaluation's process says, read as it comes: JSON lines (engine/commands/evaluate_printer.py), and other lines between
them that are for people.

    log = EvaluationLog(path)
    log.read()             # what is new since; then log.progress(), log.results, log.failures, log.ended …
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from app.processes import without_tracebacks

KEPT_LINES = 200
OVERALL = "overall"


class EvaluationLog:
    """Of one process. What the times are made from is this process's own clock: they begin anew when the server restarts."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._offset = 0
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._done = self._total = 0
        self._task: str | None = None
        self._began, self._before = 0.0, 0
        self.tasks: list[str] = []
        self.weights: str | None = None  # hash of those that answer, once it is known
        self.results: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self.interrupted = self.ended = False

    def read(self) -> None:
        """Take in the whole lines that are new. A file that isn't there yet has none."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return
        whole = new.rfind(b"\n") + 1
        self._offset += whole
        for line in new[:whole].decode("utf-8", "replace").splitlines():
            event = _event(line)
            if event is None:
                self._lines.append(line)
            else:
                self._take(event)

    def lines(self, count: int) -> list[str]:
        """The last lines that are no events, without tracebacks."""
        return without_tracebacks(self._lines)[-count:]

    def progress(self) -> dict[str, Any] | None:
        """{"task", "number" from 1, "tasks", "done", "total", "seconds_left" of this task, None: not known yet}."""
        if self._task is None:
            return None
        new, seconds = self._done - self._before, self._clock() - self._began
        # Lines that were read together tell nothing of the time between them.
        left = round(seconds / new * (self._total - self._done)) if new and seconds >= 1 else None
        return {
            "task": self._task,
            "number": min(len(self.tasks), self.tasks.index(self._task) + 1 if self._task in self.tasks else 1),
            "tasks": len(self.tasks),
            "done": self._done,
            "total": self._total,
            "seconds_left": left,
        }

    def _take(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "tasks":
            self.tasks = [task["name"] for task in event["tasks"]]
        elif kind == "model":
            self.weights = event["fingerprint"]["weights_hash"]
        elif kind == "task":
            self._task, self._done, self._total = event["task"], event["done"], event["total"]
            self._began, self._before = self._clock(), event["done"]
        elif kind == "progress":
            self._done, self._total = event["done"], event["total"]
        elif kind == "result":
            self.results.append(_result(event))
        elif kind == "failed":
            task = event["task"]
            self.failures.append(f"{task}: {event['message']}" if task else event["message"])
        elif kind == "interrupted":
            self.interrupted = True
        elif kind == "end":
            self.ended = True


def _event(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "event" in found else None


def _result(event: Mapping[str, Any]) -> dict[str, Any]:
    """What a table shows of a task: a row for each metric of each group, and of all together where there are several groups."""
    result = event["result"]
    groups = {name: spreads for name, spreads in result["groups"].items() if spreads}
    shown = groups | ({OVERALL: result["overall"]} if len(groups) > 1 else {})
    rows = []
    for group, spreads in shown.items():
        files = [file for file in result["files"] if group in (OVERALL, file["group"])]
        for metric, spread in spreads.items():
            published = [
                {key: each[key] for key in ("value", "precision", "origin")}
                for each in event["published"]
                if (each["group"], each["metric"]) == (group, metric)
            ]
            count = sum(file["count"] for file in files)
            rows.append(
                {"group": group, "metric": metric, "value": spread["average"], "rows": count, "published": published}
            )
    return {
        "name": result["name"],
        "type": result["type"],
        "limit": result["limit"],
        "seconds": result["seconds"],
        "cached": event["cached"],
        "rows": rows,
    }
