"""General rows that come along: those that fine-tuning may train on again, and others to see whether anything was forgotten.

`GENERAL_ROWS` are written for this project (facts, short conversations, in English and Chinese); the shipped model was trained on
their like. `general_splits` are rows that it was never trained on. A host with a model of its own names files of their own.
"""

from __future__ import annotations

import json
from pathlib import Path

from engine.glm.config import EMBEDDED_FOLDER
from engine.training.sources import read_rows

GENERAL_ROWS = EMBEDDED_FOLDER / "general_rows.jsonl"
# Of each file so many rows, evenly spread: enough to see a loss, and done in a minute on two cores.
_SPLITS = {"english": 12, "chinese": 20, "tatoeba-cloze": 40}
_QUESTIONS = 60


def general_splits() -> dict[str, list[dict]]:
    """Texts, blanks and questions by name, as `measures.measure` takes them."""
    splits = {name: _spread(list(read_rows(EMBEDDED_FOLDER / "held_out_rows", name)), n) for name, n in _SPLITS.items()}
    questions = (EMBEDDED_FOLDER / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in questions]
    splits["questions"] = [
        {"messages": [{"role": "user", "content": one["question"]}, {"role": "assistant", "content": one["answer"]}]}
        for one in _spread(rows, _QUESTIONS)
    ]
    return splits


def file_splits(path: Path) -> dict[str, list[dict]]:
    """The rows of one file as a split of its name. GLMError bad_data."""
    name = path.name.removesuffix(".jsonl")
    return {name: list(read_rows(path.parent, name))}


def _spread(rows: list[dict], count: int) -> list[dict]:
    return [rows[number * len(rows) // count] for number in range(min(count, len(rows)))]
