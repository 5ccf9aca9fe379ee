"""What `python -m engine evaluate` says: GLM-130B's report on a terminal, or JSON lines for a program.

JSON lines are the events of engine.evaluation.runner (a result has what others published, too), with `tasks` (their names and
files) and `model` before them, and `failed` {task, kind, message} for what went wrong, `interrupted`, `note` and `end`
{results, failed} behind. Progress comes twice a second.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Protocol

from engine.errors import GLMError
from engine.evaluation.asker import Asker
from engine.evaluation.published import MARK, published
from engine.evaluation.reports.summary import OVERALL, published_beside
from engine.evaluation.result import FileResult, TaskResult
from engine.evaluation.terminal import file_line, result_lines, summary_lines

_OFTEN = 0.5  # seconds between two pieces of news of progress


class Printer(Protocol):
    def loaded(self, tasks: list[tuple[str, str]]) -> None: ...

    def model(self, asker: Asker) -> None: ...

    def tell(self, event: dict[str, Any]) -> None: ...

    def fail(self, error: GLMError, task: str | None = None) -> None: ...

    def interrupted(self, message: str) -> None: ...

    def say(self, message: str) -> None: ...

    def end(self, results: list[TaskResult], failed: int) -> None: ...


class JsonPrinter:
    def __init__(self) -> None:
        self._next = 0.0

    def loaded(self, tasks: list[tuple[str, str]]) -> None:
        self._write({"event": "tasks", "tasks": [{"name": name, "file": file} for name, file in tasks]})

    def model(self, asker: Asker) -> None:
        self._write({"event": "model", "fingerprint": asker.limits.fingerprint(), "replicas": asker.replicas})

    def tell(self, event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            now = time.monotonic()
            if now < self._next and event["done"] < event["total"]:
                return
            self._next = now + _OFTEN
        if event["event"] == "result":
            event = event | {"published": _published(TaskResult.from_json(event["result"]))}
        self._write(event)

    def fail(self, error: GLMError, task: str | None = None) -> None:
        self._write({"event": "failed", "task": task, "kind": error.kind, "message": str(error)})

    def interrupted(self, message: str) -> None:
        self._write({"event": "interrupted", "message": message})

    def say(self, message: str) -> None:
        self._write({"event": "note", "message": message})

    def end(self, results: list[TaskResult], failed: int) -> None:
        self._write({"event": "end", "results": len(results), "failed": failed})

    def _write(self, event: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(event, ensure_ascii=False) + "\n")
        sys.stdout.flush()


class TerminalPrinter:
    """The report goes to the standard output, progress and failures to the standard error. Files stand in the task's order."""

    def __init__(self) -> None:
        self._moving = sys.stderr.isatty()
        self._shown = 0  # characters of the line that moves
        self._next = 0.0
        self._began, self._before = 0.0, 0
        self._order: list[tuple[str, str, str | None]] = []  # group, file, prompt of files that are not printed yet
        self._waiting: dict[tuple[str, str, str | None], FileResult] = {}
        self._group: str | None = None

    def loaded(self, tasks: list[tuple[str, str]]) -> None:
        self._line("> Loading task configs")
        for name, file in tasks:
            self._line(f"    Task {name} loaded from config {file}")
        self._line(f"> Successfully load {_tasks(len(tasks))}")

    def model(self, asker: Asker) -> None:
        limits = asker.limits
        replicas = f", {asker.replicas} replicas" if asker.replicas > 1 else ""
        self._line(
            f"> Model {limits.model} ({limits.weights_hash[:12]}), {limits.precision} on {limits.device}{replicas}"
        )

    def tell(self, event: dict[str, Any]) -> None:
        if event["event"] == "task":
            self._begin(event)
        elif event["event"] == "progress":
            self._progress(event["done"], event["total"])
        elif event["event"] == "file":
            file = FileResult(**event["file"])
            self._waiting[file.group, file.file, file.prompt] = file
            while self._order and self._order[0] in self._waiting:
                self._print_file(self._waiting.pop(self._order.pop(0)))
        else:
            self._result(TaskResult.from_json(event["result"]), event["cached"])

    def fail(self, error: GLMError, task: str | None = None) -> None:
        self._erase()
        sys.stdout.flush()
        sys.stderr.write(f"error: {error}\n")

    def interrupted(self, message: str) -> None:
        self._erase()
        sys.stderr.write(f"\n{message}\n")

    def say(self, message: str) -> None:
        self._line(message)

    def end(self, results: list[TaskResult], failed: int) -> None:
        if len(results) > 1:
            self._line("")
            for line in summary_lines(results):
                self._line(line)
        seconds = sum(result.seconds for result in results)
        more = f", {_tasks(failed)} failed" if failed else ""
        self._line(f"Finish {_tasks(len(results))} in {seconds:.1f}s{more}")

    def _begin(self, event: dict[str, Any]) -> None:
        self._order = [tuple(each) for each in event["files"]]
        self._waiting, self._group = {}, None
        self._began, self._before = time.monotonic(), event["done"]
        self._line("")
        self._line(f"Evaluating task {event['task']}:")
        if event["done"]:
            self._line(f"    {event['done']} of {event['total']} rows are done already.")

    def _print_file(self, file: FileResult) -> None:
        if file.group != self._group:
            self._group = file.group
            self._line(f"    Evaluating group {file.group}:")
        self._line(file_line(file))

    def _result(self, result: TaskResult, cached: bool) -> None:
        if cached:
            self._line("")
            self._line(f"Task {result.name} was run on these weights and rows before ({result.started}):")
            for file in result.files:
                self._line(file_line(file))
        for line in result_lines(result):
            self._line(line)
        for known in published(result.name):
            self._line(f"    ({MARK}: {known.metric} {known}, {known.origin})")

    def _progress(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._moving or now < self._next:
            return
        self._next = now + _OFTEN
        text = f"    {done} of {total} rows"
        rate = (done - self._before) / (now - self._began) if now > self._began else 0.0
        if rate > 0:
            minutes, seconds = divmod(round((total - done) / rate), 60)
            text += f", {rate:.1f} a second, {minutes}:{seconds:02} left"
        sys.stderr.write(f"\r{text:{self._shown}}")
        sys.stderr.flush()
        self._shown = len(text)

    def _erase(self) -> None:
        if self._shown:
            sys.stderr.write(f"\r{'':{self._shown}}\r")
            sys.stderr.flush()
            self._shown = 0

    def _line(self, text: str) -> None:
        self._erase()
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def _tasks(count: int) -> str:
    return f"{count} task{'' if count == 1 else 's'}"


def _published(result: TaskResult) -> list[dict[str, Any]]:
    """What belongs beside its groups, and beside all of them together where there are several."""
    groups = [name for name, spreads in result.groups.items() if spreads]
    return [
        {"group": group, "metric": metric, "value": each.value, "precision": each.precision, "origin": each.origin}
        for group in groups + ([OVERALL] if len(groups) > 1 else [])
        for metric in result.overall
        for each in published_beside(result.name, metric, group, len(groups))
    ]
