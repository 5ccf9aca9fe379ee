"""BIG-bench's JSON tasks, of which BIG-bench-lite is a choice of 24: `task.json` with examples that have an `input` and either
`target_scores` (choices with a score each, the best is right) or a `target` (a text, or several)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.errors import GLMError
from engine.evaluation.prepare.converter import Converter, Made
from engine.evaluation.prepare.rows import Row, bad, read

_NAME = re.compile(r"[\w-]+")


def make(source: Path, notes: list[str]) -> Made:
    """One file a task, multiple-choice/NAME.jsonl or generation/NAME.jsonl."""
    if not source.exists():
        raise GLMError("bad_request", f"There is no file or folder {source}.", field="source")
    paths = sorted(source.rglob("task.json")) if source.is_dir() else [source]
    for path in paths:
        rows = list(read(path))
        if len(rows) != 1 or not rows[0].has("examples"):
            raise bad(f"{path} is no task of BIG-bench: it has no list 'examples'.")
        name = path.parent.name if path.name == "task.json" else path.stem
        if not _NAME.fullmatch(name):
            raise bad(f"The folder's name {name!r} is the task's, and is not made of letters, figures, '_' and '-'.")
        task = rows[0]
        for example in task.each("examples"):
            yield from _example(example, name, task)


def _example(example: Row, name: str, task: Row) -> Iterator[tuple[str, dict[str, Any]]]:
    # The defaults are those of BIG-bench's documentation.
    head = task.values.get("task_prefix", "") + task.values.get("example_input_prefix", "\nQ: ")
    inputs = f"{head}{example.text('input')}{task.values.get('example_output_prefix', chr(10) + 'A: ')}".strip()
    if not example.has("target_scores"):
        target = example.get("target")
        targets = [target] if isinstance(target, str) else example.texts("target")
        yield f"generation/{name}.jsonl", {"inputs_pretokenized": inputs, "targets_pretokenized": targets}
        return
    scores = example.inside("target_scores").values
    if len(scores) < 2 or not all(isinstance(score, int | float) for score in scores.values()):
        raise bad(f"{example.place}: 'target_scores' must give at least two choices a number each.")
    choices = list(scores)
    yield (
        f"multiple-choice/{name}.jsonl",
        {
            "inputs_pretokenized": inputs,
            "choices_pretokenized": [f" {choice}" for choice in choices],
            "label": max(range(len(choices)), key=lambda number: scores[choices[number]]),
        },
    )


CONVERTERS = (
    Converter("big-bench", "big-bench", "a task.json of BIG-bench, or a folder with task folders in it", make),
)
