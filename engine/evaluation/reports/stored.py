"""Finished results in an output folder (see engine.evaluation.result), and the rows behind them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from engine.errors import GLMError
from engine.evaluation.record import Record
from engine.evaluation.result import FileResult, TaskResult


@dataclass(frozen=True, slots=True)
class Stored:
    """A result and the folder that it is in."""

    result: TaskResult
    folder: Path

    def records(self, file: FileResult) -> list[Record]:
        """The rows of one measured file. GLMError bad_data for a file that is missing or can't be read, naming the line."""
        path = self.folder / file.rows
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise GLMError("bad_data", f"{path} can't be read: {error.strerror}.", field="out") from error
        found = []
        for number, line in enumerate(lines, start=1):
            try:
                found.append(Record.from_json(json.loads(line)))
            except ValueError as error:
                raise GLMError("bad_data", f"{path}, line {number} is not JSON.", field="out") from error
        return found


def stored(out: Path) -> list[Stored]:
    """All finished results under an output folder, the oldest first. GLMError bad_data for a result that can't be read."""
    found = []
    for path in sorted(out.glob("*/*/result.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise GLMError("bad_data", f"{path} can't be read: {error}.", field="out") from error
        if not isinstance(values, dict):
            raise GLMError("bad_data", f"{path} is no result of a task.", field="out")
        found.append(Stored(TaskResult.from_json(values), path.parent))
    return sorted(found, key=lambda each: each.result.started)
