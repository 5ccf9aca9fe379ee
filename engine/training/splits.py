"""Rows that are kept away from training, to measure on afterwards: chosen before it begins, by the hash of their text alone.

A split names a source and how many of its rows are held out. The same text in another row of the source is left out, too,
and so are rows of other sources (`without`) that contain it: Tatoeba's sentences stand in three of ours.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine.errors import GLMError
from engine.glm.tokenizer import MASKS
from engine.training.recipe import Split
from engine.training.row_files import RowFile
from engine.training.source_options import SourceOptions
from engine.training.sources import find_source, is_document, numbered_rows, row_text

FOLDER = "splits"  # in the run folder: a file of rows for each split


@dataclass(slots=True)
class LeftToSplits:
    """What training leaves out of one source. lines: of its file; questions: of these only what is made of them beside their
    documents is left out, as questions and blanks about a poem whose text stays."""

    lines: set[int] = field(default_factory=set)
    questions: set[int] = field(default_factory=set)

    def keeps(self, number: int, row: dict) -> bool:
        """Whether a row made of a line is trained on."""
        return number not in self.lines and (number not in self.questions or is_document(row))


@dataclass(frozen=True, slots=True)
class Splits:
    """rows: of each split; left: by source."""

    rows: dict[str, list[dict]]
    left: dict[str, LeftToSplits]

    def digest(self) -> str:
        """SHA-256 of all held-out rows, to show later that they did not change."""
        return hashlib.sha256(json.dumps(self.rows, ensure_ascii=False, sort_keys=True).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """A file of JSON lines for each split. GLMError bad_data if there is one that differs."""
        folder.mkdir(exist_ok=True)
        for name, rows in self.rows.items():
            path = folder / f"{name}.jsonl"
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            if path.exists() and path.read_text(encoding="utf-8") != text:
                message = f"{path} differs from what recipe and data give now: a new run needs a new folder."
                raise GLMError("bad_data", message)
            path.write_text(text, encoding="utf-8")


def read_splits(folder: Path) -> dict[str, list[dict]]:
    """Rows by the name of their file, of `write` or anybody's. GLMError bad_data, naming the line."""
    return {path.stem: [row for _, row in numbered_rows(RowFile(path))] for path in sorted(folder.glob("*.jsonl"))}


def make_splits(data: Path, splits: Mapping[str, Split], options: Mapping[str, dict], seed: int) -> Splits:
    """Choose the rows of all splits. options: of single sources, as the recipe has them. GLMError bad_data."""
    rows: dict[str, list[dict]] = {}
    left: dict[str, LeftToSplits] = {}
    for name, split in splits.items():
        parsed = SourceOptions.parse(split.source, options.get(split.source, {}))
        chosen = _chosen(data, name, split, parsed, seed)
        texts = {whole_text(row) for row in chosen.values()}
        own = left.setdefault(split.source, LeftToSplits())
        same = {number for number, row in _numbered(data, split.source, parsed) if whole_text(row) in texts}
        (own.questions if split.keep_documents else own.lines).update(same)
        rows[name] = list(_made(chosen, parsed, split.keep_documents))
        for other in split.without:
            there = SourceOptions.parse(other, options.get(other, {}))
            gone = left.setdefault(other, LeftToSplits()).lines
            for number, row in _numbered(data, other, there):
                whole = whole_text(row)
                if any(text in whole for text in texts):
                    gone.add(number)
    return Splits(rows, left)


def _numbered(data: Path, name: str, options: SourceOptions) -> Iterator[tuple[int, dict]]:
    limit = None if options.limit_megabytes is None else int(options.limit_megabytes * 1e6)
    return numbered_rows(RowFile(find_source(data, name)), limit)


def _chosen(data: Path, name: str, split: Split, options: SourceOptions, seed: int) -> dict[int, dict]:
    """By line. Those with the lowest hash; a text counts once."""

    def candidates() -> Iterator[tuple[bytes, int, dict]]:
        seen: set[bytes] = set()
        for number, row in _numbered(data, split.source, options):
            text = whole_text(row)
            key = hashlib.sha256(f"{seed}/{name}/{text}".encode()).digest()
            if len(text) < split.shortest or key in seen or any(part in text for part in split.keep):
                continue
            seen.add(key)
            yield key, number, row

    found = heapq.nsmallest(split.count, candidates(), key=lambda candidate: candidate[0])
    if len(found) < split.count:
        message = f"{split.source} has {len(found)} rows that {name} could hold out, not {split.count}."
        raise GLMError("bad_data", message, field=f"splits.{name}.count", limit=len(found))
    return {number: row for _, number, row in sorted(found, key=lambda candidate: candidate[1])}


def _made(chosen: dict[int, dict], options: SourceOptions, questions: bool) -> Iterator[dict]:
    """The rows that training would have made of the chosen lines."""
    for row in chosen.values():
        yield from (made for made in options.made(row) if not (questions and is_document(made)))


def whole_text(row: dict) -> str:
    """The text of a row with its blanks filled; of a conversation all messages, one a line."""
    if "answers" in row and row["answers"]:
        return _filled(row["text"], row["answers"])
    if "messages" in row and len(row["messages"]) == 2 and row["messages"][0]["content"].count("[MASK]") == 1:
        return _filled(row["messages"][0]["content"], [row["messages"][1]["content"]])
    return row_text(row)


def _filled(text: str, answers: list[str]) -> str:
    for answer in answers:
        first = min((place, mask) for mask in MASKS if (place := text.find(mask)) >= 0)
        text = text[: first[0]] + answer + text[first[0] + len(first[1]) :]
    return text
