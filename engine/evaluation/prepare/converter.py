"""A converter: which files of a benchmark's publication it reads, and what rows it makes of them; and writing those whole.

    prepared = run(converter, source, out)      # out/CONVERTER.path/validation.jsonl ...: what the task file of that path reads

Rows hold the benchmark's own fields, labels as words; how they are shown to the model is said in the task file (`prompts`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from engine.errors import GLMError
from engine.evaluation.prepare.rows import ENDINGS, Row, bad, ending, read

# (file to be written, relative to the converter's path; a row for it, or for a text file the next part of the text)
Made = Iterator[tuple[str, dict[str, Any] | str]]


@dataclass(frozen=True)
class Converter:
    """name: as --prepare knows it. path: of its rows, as in the task file. source: what SOURCE is, in a sentence."""

    name: str
    path: str
    source: str
    make: Callable[[Path, list[str]], Made]  # (SOURCE; notes for the user, to be added to)


@dataclass(frozen=True)
class Prepared:
    """files: written path -> its rows (texts: its parts). notes: what the user should know, a sentence each."""

    files: dict[Path, int]
    notes: list[str] = field(default_factory=list)


def by_split(
    splits: dict[str, str],
    rows: Callable[[Row], Iterator[dict[str, Any]]],
    *,
    headerless: Sequence[str] = (),
    lists: Sequence[str] = (),
    delimiter: str | None = None,
    unlabelled: Callable[[Row], bool] = lambda row: False,
) -> Callable[[Path, list[str]], Made]:
    """The `make` of a benchmark with a file, or several, for each split. splits: as of `find`. rows: of one row of theirs.
    unlabelled: rows that are left out, and counted in a note: they have no agreed answer. The others as of `read`."""

    def make(source: Path, notes: list[str]) -> Made:
        for split, paths in find(source, splits).items():
            left_out = 0
            for path in paths:
                for row in read(path, headerless=headerless, lists=lists, delimiter=delimiter):
                    if unlabelled(row):
                        left_out += 1
                        continue
                    for made in rows(row):
                        yield f"{split}.jsonl", made
            if left_out:
                notes.append(f"{split}: {left_out} rows without an agreed label were left out.")

    return make


def find(source: Path, splits: dict[str, str], endings: Sequence[str] = ENDINGS) -> dict[str, list[Path]]:
    """split -> its files: `source` itself, or those in the folder `source`, at any depth.

    splits: name -> regular expression that the beginning of a file's name matches, small letters; what follows it is no letter,
    figure or "_". The parts of one split (validation-00000-of-00002.parquet) come in order; two files of one split that are no
    such parts are an error, as nobody can know which is meant. GLMError bad_data for that and for no file at all.
    """
    if not source.exists():
        raise GLMError("bad_request", f"There is no file or folder {source}.", field="source")
    inside = sorted(source.rglob("*")) if source.is_dir() else [source]
    files = [path for path in inside if path.is_file() and any(path.name.lower().endswith(each) for each in endings)]
    found: dict[str, list[Path]] = {}
    for split, pattern in splits.items():
        matching = [path for path in files if re.match(rf"(?:{pattern})(?![a-z0-9_])", path.name.lower())]
        parts = {re.sub(r"-\d+-of-", "-*-of-", str(path)) for path in matching}
        if len(parts) > 1:
            names = ", ".join(str(path.relative_to(source)) for path in matching[:4])
            raise bad(f"{source} has several files for {split}: {names}. Name the one that is meant as the source.")
        if matching:
            found[split] = matching
    if not found and source.is_file() and len(splits) == 1 and files:
        found = {next(iter(splits)): files}
    if not found:
        wanted = ", ".join(f"{split} ({pattern})" for split, pattern in splits.items())
        what = f"The name {source.name} tells no split" if source.is_file() else f"{source} holds no file of any split"
        raise bad(f"{what}. File names begin with: {wanted}; and end with: {', '.join(endings)}.")
    return found


def split_of(path: Path) -> str:
    """A file's name without its ending(s)."""
    return path.name[: -len(ending(path) or path.suffix)]


def run(converter: Converter, source: Path, out: Path, limit: int | None = None) -> Prepared:
    """Write the rows of `source` under out/converter.path, whole or not at all. limit: rows a file, at most.

    GLMError bad_request, bad_data, unsupported, as told where rows are read; OSError where files can't be written.
    """
    folder = out / converter.path
    files = _Files(folder, limit)
    notes: list[str] = []
    try:
        for name, made in converter.make(source, notes):
            files.add(name, made)
        if not files.counts:
            raise bad(f"{source} holds no rows for {converter.name}.")
        return Prepared(files.finish(), notes)
    finally:
        files.close()


class _Files:
    """Files being written under names of their own, until all are whole."""

    def __init__(self, folder: Path, limit: int | None) -> None:
        self.folder = folder
        self.limit = limit
        self.counts: dict[str, int] = {}
        self._open: dict[str, IO[str]] = {}

    def add(self, name: str, made: dict[str, Any] | str) -> None:
        count = self.counts.get(name, 0)
        if self.limit is not None and count >= self.limit:
            return
        if name not in self._open:
            path = self._new(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open[name] = path.open("w", encoding="utf-8", newline="")
        self.counts[name] = count + 1
        self._open[name].write(made if isinstance(made, str) else json.dumps(made, ensure_ascii=False) + "\n")

    def finish(self) -> dict[Path, int]:
        for file in self._open.values():
            file.close()
        for name in self._open:
            self._new(name).replace(self.folder / name)
        return {self.folder / name: count for name, count in self.counts.items()}

    def close(self) -> None:
        for name, file in self._open.items():
            file.close()
            self._new(name).unlink(missing_ok=True)

    def _new(self, name: str) -> Path:
        path = self.folder / name
        return path.with_name(f".{path.name}.{os.getpid()}")
