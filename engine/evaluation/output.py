"""The output folder of a run (see result.py): what is done already, rows as they come, finished results. Torch-free.

A task's folder is found by the hash of its settings, rows and the model's vocabulary, in a folder for the weights and their
precision. So a run that was killed goes on where it stopped, one that was finished isn't run again, and nothing old is taken for
something else. Rows are written whole, one line each, and reach the disk as they come; a half line at the end is dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from engine.errors import GLMError
from engine.evaluation.record import Record
from engine.evaluation.result import TaskResult
from engine.evaluation.rows import TaskFile
from engine.evaluation.task import Task, settings_hash
from engine.glm.tokenizer import Tokenizer
from engine.serving.protocol import Limits

RESULT = "result.json"
VERSION = 1  # of what the numbers mean: a change of prompts or metrics is a new one
_DIGITS = 12  # of a hash, in names


def weights_folder(out: Path, limits: Limits) -> Path:
    return out / f"{limits.weights_hash[:_DIGITS]}-{_slug(limits.precision)}"


def task_hash(task: Task, files: Sequence[TaskFile], tokenizer: Tokenizer, longest: int, limit: int | None) -> str:
    """sha256 (hex) of all that the numbers depend on, but for the weights. GLMError bad_data for a file that can't be read."""
    digest = hashlib.sha256()
    parts = [f"{VERSION}", settings_hash(task), tokenizer.hash(), f"{longest}", f"{limit}"]
    read: dict[Path, str] = {}
    for file in files:
        if file.path not in read:
            try:
                read[file.path] = hashlib.sha256(file.path.read_bytes()).hexdigest()
            except OSError as error:
                raise GLMError("bad_data", f"{file.path} can't be read: {error.strerror}.", field="data") from error
        parts += [file.group, file.name, file.prompt or "", read[file.path]]
    digest.update(json.dumps(parts).encode())
    return digest.hexdigest()


def task_folder(base: Path, task: Task, hash: str) -> Path:
    return base / f"{_slug(task.name)}-{hash[:_DIGITS]}"


def finished(folder: Path) -> TaskResult | None:
    """The result of a task that was run to its end. GLMError bad_data for a result file that is none."""
    path = folder / RESULT
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise GLMError("bad_data", f"{path} can't be read: {error}.", field="out") from error
    return TaskResult.from_json(values)


def write_result(folder: Path, result: TaskResult) -> None:
    """Whole, or not at all."""
    new = folder / f".{RESULT}"
    new.write_text(json.dumps(result.to_json(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    new.replace(folder / RESULT)


class RowsFile:
    """The rows of one measured file: those that are there, and a place for more. To be closed."""

    def __init__(self, folder: Path, file: TaskFile) -> None:
        name = json.dumps([file.group, file.name, file.prompt])
        self.path = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:_DIGITS]}.jsonl"
        self.records: dict[tuple[int, int], Record] = {}
        whole = 0  # bytes
        if self.path.exists():
            content = self.path.read_bytes()
            whole = content.rfind(b"\n") + 1
            for line in content[:whole].splitlines():
                try:
                    record = Record.from_json(json.loads(line))
                except ValueError as error:
                    raise GLMError("bad_data", f"{self.path} can't be read: {error}.", field="out") from error
                self.records[record.row, record.part] = record
            if whole < len(content):
                os.truncate(self.path, whole)
        self._file: TextIO | None = None

    def add(self, record: Record) -> None:
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(json.dumps(record.to_json(), ensure_ascii=False) + "\n")
        self._file.flush()
        self.records[record.row, record.part] = record

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _slug(text: str) -> str:
    return re.sub(r"[^\w]+", "-", text).strip("-") or "task"
