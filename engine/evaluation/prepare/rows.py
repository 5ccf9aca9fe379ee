"""Rows of the files that benchmarks are published as: JSON lines, JSON, CSV, TSV, Parquet. What is wrong is told by place.

    for row in read(path):                  # Row: row.place is "dev.tsv, line 7"
        sentence = row.text("sentence1", "premise")

A number that stands for a word (a ClassLabel of the Hugging Face hub) becomes the word where the Parquet file says which: in
plain JSON the same number means one thing in one publication and another in the next.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from engine.errors import GLMError

LINES = (".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.zst")
ENDINGS = (*LINES, ".json", ".csv", ".tsv", ".parquet")
_PARQUET_ROWS = 1024  # read at once


def bad(message: str) -> GLMError:
    return GLMError("bad_data", message, field="source")


class Row:
    """A row and where it is. Every method raises GLMError bad_data, naming file, line and field; of several names for the same
    field, as publications differ, the first that is there counts."""

    __slots__ = ("place", "values")

    def __init__(self, place: str, values: dict[str, Any]) -> None:
        self.place = place
        self.values = values

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def get(self, *names: str) -> Any:
        for name in names:
            if self.has(name):
                return self.values[name]
        there = ", ".join(map(str, self.values)) or "nothing"
        raise bad(f"{self.place}: the field {' or '.join(map(repr, names))} is missing; the row has {there}.")

    def text(self, *names: str) -> str:
        """Not blank; white space around it is taken off."""
        value = self.get(*names)
        if not isinstance(value, str) or not value.strip():
            raise bad(f"{self.place}: the field {self._name(names)!r} is {_shown(value)}, not a text.")
        return value.strip()

    def texts(self, *names: str) -> list[str]:
        value = self.get(*names)
        if (
            not isinstance(value, list)
            or not value
            or not all(isinstance(each, str) and each.strip() for each in value)
        ):
            raise bad(f"{self.place}: the field {self._name(names)!r} is {_shown(value)}, not a list of texts.")
        return [each.strip() for each in value]

    def word(self, *names: str, words: dict[Any, str]) -> str:
        """What the field's value is called. words: value -> word. Values are compared as texts: "1" and 1 are the same."""
        value = self.get(*names)
        known = {str(key).lower(): word for key, word in words.items()}
        # Only a text or a number: str() of anything else would be compared with words by accident.
        found = known.get(str(value).strip().lower()) if isinstance(value, str | int) else None
        if found is None:
            meant = ", ".join(str(key) for key in words)
            raise bad(f"{self.place}: the field {self._name(names)!r} is {_shown(value)}, not one of {meant}.")
        return found

    def place_of(self, *names: str, among: Sequence[str]) -> int:
        """The index of the field's text in `among`."""
        text = self.text(*names)
        stripped = [each.strip() for each in among]
        if text not in stripped:
            raise bad(f"{self.place}: the field {self._name(names)!r} is {_shown(text)}, none of the choices.")
        return stripped.index(text)

    def inside(self, *names: str) -> Row:
        """An object in a field."""
        value = self.get(*names)
        if not isinstance(value, dict):
            raise bad(f"{self.place}: the field {self._name(names)!r} is {_shown(value)}, not an object.")
        return Row(f"{self.place}, {self._name(names)}", value)

    def each(self, *names: str) -> list[Row]:
        """The objects of a list in a field."""
        value = self.get(*names)
        if not isinstance(value, list) or not value or not all(isinstance(each, dict) for each in value):
            raise bad(f"{self.place}: the field {self._name(names)!r} is {_shown(value)}, not a list of objects.")
        return [Row(f"{self.place}, {self._name(names)} {number}", each) for number, each in enumerate(value, start=1)]

    def _name(self, names: tuple[str, ...]) -> str:
        return next((name for name in names if self.has(name)), names[0])


def ending(path: Path) -> str | None:
    """Which of ENDINGS a file has."""
    name = path.name.lower()
    return next((each for each in ENDINGS if name.endswith(each)), None)


def read(
    path: Path,
    *,
    headerless: Sequence[str] = (),
    lists: Sequence[str] = (),
    delimiter: str | None = None,
) -> Iterator[Row]:
    """The rows of a file, in order. GLMError bad_data, naming file and line; unsupported for Parquet without pyarrow.

    headerless: the columns of a CSV or TSV file that may come without a line of names. lists: names for the parts of rows that
    are JSON lists. delimiter: of a CSV file; comma. A JSON file of one object is one row; of a list, a row each.
    """
    kind = ending(path)
    try:
        if kind in LINES:
            for number, line in _lines(path):
                yield _row(f"{path.name}, line {number}", line, lists)
        elif kind == ".json":
            yield from _json(path, lists)
        elif kind in (".csv", ".tsv"):
            yield from _table(path, headerless, "\t" if kind == ".tsv" else delimiter or ",", quoted=kind == ".csv")
        elif kind == ".parquet":
            yield from _parquet(path)
        else:
            raise bad(f"{path.name} is none of the kinds of files that can be read here: {', '.join(ENDINGS)}.")
    except OSError as error:
        raise bad(f"{path.name} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise bad(f"{path.name} is not UTF-8: {error.reason} at byte {error.start}.") from error


def read_text(path: Path) -> str:
    """A text file whole. GLMError bad_data."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise bad(f"{path.name} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise bad(f"{path.name} is not UTF-8: {error.reason} at byte {error.start}.") from error


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(number of the line, what it holds)."""
    number = 0
    with _open(path) as lines:
        while True:
            try:
                line = lines.readline()
            except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
                raise bad(f"{path.name} can't be read behind line {number}: {error}.") from error
            if not line:
                return
            number += 1
            if not line.isspace():
                yield number, _parse(f"{path.name}, line {number}", line)


def _open(path: Path) -> BinaryIO:
    """For reading, decompressed."""
    if path.suffix == ".gz":
        return gzip.open(path)
    if path.suffix == ".xz":
        return lzma.open(path)
    if path.suffix == ".zst":
        return io.BufferedReader(_pyarrow(path).input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _pyarrow(path: Path) -> ModuleType:
    try:
        import pyarrow
    except ImportError as error:
        message = f"{path.name} needs the package pyarrow: pip install pyarrow"
        raise GLMError("unsupported", message, field="source") from error
    return pyarrow


def _json(path: Path, lists: Sequence[str]) -> Iterator[Row]:
    """One document, or, as CLUE's files, JSON lines under the name of .json."""
    data = path.read_bytes()
    try:
        document = json.loads(data)
    except ValueError:
        for number, line in enumerate(data.splitlines(), start=1):
            if not line.isspace() and line:
                yield _row(f"{path.name}, line {number}", _parse(f"{path.name}, line {number}", line), lists)
        return
    if isinstance(document, list):
        for number, value in enumerate(document, start=1):
            yield _row(f"{path.name}, item {number}", value, lists)
    else:
        yield _row(path.name, document, lists)


def _parse(place: str, line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise bad(f"{place}: not UTF-8 ({error.reason}).") from error
    except json.JSONDecodeError as error:
        raise bad(f"{place}: not JSON ({error.msg}).") from error
    except RecursionError as error:
        raise bad(f"{place}: JSON that is too deep.") from error


def _row(place: str, value: Any, lists: Sequence[str]) -> Row:
    if isinstance(value, list) and lists:
        if len(value) < len(lists):
            raise bad(f"{place}: a list of {len(value)}, not of {len(lists)} ({', '.join(lists)}).")
        value = dict(zip(lists, value, strict=False))
    if not isinstance(value, dict):
        raise bad(f"{place}: {_shown(value)} is no row: a row is a JSON object.")
    return Row(place, value)


def _table(path: Path, headerless: Sequence[str], delimiter: str, quoted: bool) -> Iterator[Row]:
    # GLUE's TSV files are written without quoting: a lone quotation mark in a sentence is just that.
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, quoting=quoting)
        names: list[str] | None = None
        try:
            for cells in reader:
                if not cells or (len(cells) == 1 and not cells[0].strip()):
                    continue
                place = f"{path.name}, line {reader.line_num}"
                if names is None:
                    names = [cell.strip() for cell in cells]
                    # One cell that reads like a name is no sign: an answer of MMLU is "A", and so is a column's name.
                    if not headerless or names[0] == headerless[0] or set(names) <= set(headerless):
                        continue
                    names = list(headerless)
                if len(cells) != len(names):
                    raise bad(f"{place}: {len(cells)} columns, not {len(names)} ({', '.join(names)}).")
                yield Row(place, {name: cell for name, cell in zip(names, cells, strict=True) if cell != ""})
        except csv.Error as error:
            raise bad(f"{path.name}, line {reader.line_num}: {error}.") from error


def _parquet(path: Path) -> Iterator[Row]:
    pyarrow = _pyarrow(path)
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            words = _class_labels(file.schema_arrow.metadata)
            for batch in file.iter_batches(_PARQUET_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path.name}, row {number}", _named(values, words))
    except pyarrow.ArrowException as error:
        raise bad(f"{path.name} can't be read behind row {number}: {error}.") from error


def _class_labels(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """The `features` that the hub's library writes into a Parquet file's schema: column -> its feature."""
    try:
        return json.loads((metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        return {}  # someone else's metadata under that key: there are no names to be had


def _named(value: Any, feature: Any) -> Any:
    """`value` with the numbers of ClassLabels replaced by their words, at any depth. -1: no label, left out."""
    if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(value, int):
        names = feature.get("names") or []
        return names[value] if 0 <= value < len(names) else None
    if isinstance(value, list):
        inner = feature[0] if isinstance(feature, list) and feature else feature
        if isinstance(inner, dict) and inner.get("_type") in ("Sequence", "List", "LargeList"):
            inner = inner.get("feature")
        return [_named(each, inner) for each in value]
    if isinstance(value, dict):
        if isinstance(feature, dict) and feature.get("_type") in ("Sequence", "List", "LargeList"):
            feature = feature.get("feature")
        features = feature if isinstance(feature, dict) else {}
        return {name: _named(each, features.get(name)) for name, each in value.items()}
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:59] + "…"
