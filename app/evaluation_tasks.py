"""The benchmarks that come with the program, and whether the rows of each are there.

Their task files are only looked at here (name, what it measures, where its rows lie); what they mean is the evaluator's business
(engine/evaluation/task.py), which is a process of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from app.processes import ROOT

TASKS = ROOT / "engine" / "evaluation" / "tasks"


@dataclass(frozen=True, slots=True)
class EvaluationTask:
    """file: below TASKS, with "/". path, patterns: of its rows, below the folder of all rows."""

    file: str
    name: str
    description: str
    path: str
    patterns: tuple[str, ...]

    def is_there(self, data: Path) -> bool:
        """Whether any of its rows are."""
        base = data / self.path
        return any(path.is_file() for pattern in self.patterns for path in base.glob(pattern))

    def as_dict(self) -> dict[str, Any]:
        return {"file": self.file, "name": self.name, "description": self.description}


@cache
def shipped() -> dict[str, EvaluationTask]:
    """All tasks, by their files, in order."""
    return {task.file: task for task in map(_read, sorted(TASKS.rglob("*.yaml")))}


def offered(data: Path | None) -> list[EvaluationTask]:
    """Those whose rows are there. Looks through folders."""
    return [] if data is None else [task for task in shipped().values() if task.is_there(data)]


def _read(file: Path) -> EvaluationTask:
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    patterns = values.get("file-pattern", "**/*.json*")
    return EvaluationTask(
        file=file.relative_to(TASKS).as_posix(),
        name=values["name"],
        description=values.get("description", ""),
        path=values.get("path", "."),
        patterns=(patterns,) if isinstance(patterns, str) else tuple(patterns.values()),
    )
