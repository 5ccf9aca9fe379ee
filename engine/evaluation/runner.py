"""Runs a task: its files' questions, the longest first, to whoever answers; rows are kept as they come, numbers made at the end.

Questions of all files go on one after the other without a gap: as one ends the next begins, so that the replicas' slots are full
until the last file. What `tell` gets are plain dictionaries, for a terminal or as JSON lines for another program (EVENTS).
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.errors import GLMError
from engine.evaluation import output
from engine.evaluation.asker import Asker
from engine.evaluation.kinds import Kind, Question, kind_of
from engine.evaluation.output import RowsFile
from engine.evaluation.record import Record
from engine.evaluation.result import FileResult, TaskResult, group_spreads
from engine.evaluation.rows import Row, TaskFile, read_rows, task_files
from engine.evaluation.task import Task
from engine.glm.locked_folder import locked_folder

# task: begins (total questions, done already); progress; file: is measured (FileResult); result: the task ended (TaskResult)
EVENTS = ("task", "progress", "file", "result")

Tell = Callable[[dict[str, Any]], None]


@dataclass(slots=True)
class _Measured:
    """A file on its way."""

    file: TaskFile
    rows: dict[int, Row]
    store: RowsFile
    pending: list[Question]
    left: int = 0
    began: float = 0.0
    ended: float = 0.0
    result: FileResult | None = None


@dataclass(slots=True)
class Evaluation:
    """data: the folder of all tasks' rows; out: see result.py; limit: rows a file at most; parallel: questions at the same time.

    `run` may be called for one task after the other. GLMError: bad_data for a task or its rows, and what the asker raises. When
    it is cancelled or fails, all rows so far are kept.
    """

    asker: Asker
    data: Path
    out: Path
    tell: Tell
    limit: int | None = None
    parallel: int | None = None
    _done: int = field(default=0, init=False)
    _total: int = field(default=0, init=False)

    async def run(self, task: Task, task_file: str) -> TaskResult:
        asker, began = self.asker, time.monotonic()
        started = datetime.now(UTC).isoformat(timespec="seconds")
        kind = kind_of(task)(task, asker.tokenizer, asker.limits.positions)
        groups = task_files(task, self.data)
        files = [file for group in groups.values() for file in group]
        if not files:
            patterns = ", ".join(task.file_pattern.values())
            message = f"Task {task.name}: no file in {self.data / task.path} fits {patterns}."
            raise GLMError("bad_data", message, field="data")
        hash = output.task_hash(task, files, asker.tokenizer, kind.longest, self.limit)
        folder = output.task_folder(output.weights_folder(self.out, asker.limits), task, hash)
        with locked_folder(folder):
            known = output.finished(folder)
            if known is not None:
                self.tell({"event": "result", "task": task.name, "cached": True, "result": known.to_json()})
                return known
            measured = [self._prepare(file, task, kind, folder) for file in files]
            try:
                await self._ask_all(task, kind, measured)
            finally:
                for each in measured:
                    each.store.close()
            found = {group: [] for group in groups}
            for each in measured:
                assert each.result is not None
                found[each.file.group].append(each.result)
            results = [each.result for each in measured if each.result is not None]
            result = TaskResult(
                name=task.name,
                type=task.type,
                task_file=Path(task_file).name,
                task_hash=hash,
                fingerprint=asker.limits.fingerprint(),
                files=results,
                groups={group: group_spreads(inside) for group, inside in found.items()},
                overall=group_spreads(results),
                seconds=round(time.monotonic() - began, 3),
                started=started,
                replicas=asker.replicas,
                max_seq_length=kind.longest,
                task=task.model_dump(mode="json"),
                limit=self.limit,
            )
            output.write_result(folder, result)
        self.tell({"event": "result", "task": task.name, "cached": False, "result": result.to_json()})
        return result

    def _prepare(self, file: TaskFile, task: Task, kind: Kind, folder: Path) -> _Measured:
        rows = read_rows(file, task, self.asker.tokenizer, self.limit)
        store = RowsFile(folder, file)
        questions: list[Question] = []
        for row in rows:
            try:
                questions += kind.questions(row)
            except GLMError as error:
                raise GLMError("bad_data", f"{file.path}, row {row.number}: {error.message}", field="data") from error
        pending = [question for question in questions if (question.row, question.part) not in store.records]
        pending.sort(key=lambda question: -question.tokens)
        return _Measured(file, {row.number: row for row in rows}, store, pending, len(pending))

    async def _ask_all(self, task: Task, kind: Kind, measured: list[_Measured]) -> None:
        self._done = sum(len(each.store.records) for each in measured)
        self._total = self._done + sum(len(each.pending) for each in measured)
        self.tell(
            {
                "event": "task",
                "task": task.name,
                "type": task.type,
                "files": [[each.file.group, each.file.name, each.file.prompt] for each in measured],
                "total": self._total,
                "done": self._done,
            }
        )
        free = asyncio.Semaphore(self.parallel or self.asker.width)
        try:
            async with asyncio.TaskGroup() as group:
                for each in measured:
                    each.began = each.ended = time.monotonic()
                    if not each.left:
                        self._measure(task, kind, each)
                    for question in each.pending:
                        await free.acquire()
                        group.create_task(self._ask(task, kind, each, question, free))
        except* GLMError as errors:
            raise _first(errors) from errors

    async def _ask(self, task: Task, kind: Kind, each: _Measured, question: Question, free: asyncio.Semaphore) -> None:
        try:
            answers = await self.asker.ask(question)
        finally:
            free.release()
        row = each.rows[question.row]
        each.store.add(kind.answered(row, question, answers))
        each.left -= 1
        self._done += 1
        self.tell({"event": "progress", "task": task.name, "done": self._done, "total": self._total})
        if not each.left:
            each.ended = time.monotonic()
            self._measure(task, kind, each)

    def _measure(self, task: Task, kind: Kind, each: _Measured) -> None:
        records = [each.store.records[key] for key in sorted(each.store.records)]
        file = each.file
        metrics = kind.measure(records, [each.rows[record.row] for record in records])
        means = [name for name in kind.row_metrics if name in metrics]
        each.result = FileResult(
            file=file.name,
            group=file.group,
            metrics=metrics,
            count=len(records),
            seconds=round(each.ended - each.began, 3),
            rows=each.store.path.name,
            prompt=file.prompt,
            means=means,
            standard_errors={name: error for name in means if (error := _standard_error(records, name)) is not None},
            tokens=sum(record.read for record in records),
            truncated=sum(record.truncated for record in records),
        )
        self.tell({"event": "file", "task": task.name, "file": each.result.to_json()})


def _standard_error(records: list[Record], name: str) -> float | None:
    """Of the mean over rows, None for a single one."""
    scores = [record.scores[name] for record in records]
    return statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None


def _first(errors: BaseExceptionGroup) -> GLMError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, GLMError)
    return error
