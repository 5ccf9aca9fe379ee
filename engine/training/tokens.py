"""Documents that were tokenised beforehand (`python -m engine tokenize`), read from disk as they are drawn.

The rows of source `pretrain/wiki` lie in the folder `pretrain/wiki.tokens`, little-endian:

    ids.bin      all ids, one row behind the other: uint16, or uint32 for a vocabulary of more than 65,536 tokens
    offsets.bin  int64, rows + 1 numbers: row n is ids[offsets[n] : offsets[n + 1]]
    lines.bin    int64, rows numbers: the line of the source's file that row n comes from
    tokens.json  what they were made from and how large they are; a folder has it only when it is whole

All is mapped into memory: the system reads what is drawn and drops it when memory is short; processes share it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy

from engine.errors import GLMError
from engine.glm.tokenizer import Tokenizer
from engine.training.row_files import RowFile

FORMAT = 1
ABOUT = "tokens.json"
KINDS = {"uint16": numpy.dtype("<u2"), "uint32": numpy.dtype("<u4")}
NUMBERS = numpy.dtype("<i8")


def folder_of(tokens: Path, name: str) -> Path:
    """Where the rows of source `name` lie below the folder of all tokens."""
    return tokens / f"{name}.tokens"


def kind_of(tokenizer: Tokenizer) -> str:
    """What an id is stored as."""
    return "uint16" if tokenizer.vocabulary_size <= 1 << 16 else "uint32"


def file_sizes(about: dict) -> dict[str, int]:
    """Bytes of the files of ids, offsets and lines, in this order."""
    rows, tokens = about["rows"], about["tokens"]
    return {
        "ids.bin": tokens * KINDS[about["kind"]].itemsize,
        "offsets.bin": (rows + 1) * NUMBERS.itemsize,
        "lines.bin": rows * NUMBERS.itemsize,
    }


def made_from(file: RowFile, shape: dict, tokenizer: Tokenizer) -> dict:
    """What decides about the tokens, but for the file's content; see SourceOptions.shape."""
    return {
        "format": FORMAT,
        "file": file.path.name,
        "bytes": file.size,
        "shape": shape,
        "vocabulary": tokenizer.hash(),
        "kind": kind_of(tokenizer),
    }


class TokenRows(Sequence[dict]):
    """Rows {"ids"} of a mapped file, made when they are asked for. ids: (tokens,); starts, ends and lines: (rows,)."""

    def __init__(self, ids: numpy.ndarray, starts: numpy.ndarray, ends: numpy.ndarray, lines: numpy.ndarray) -> None:
        self._ids, self._starts, self._ends, self.lines = ids, starts, ends, lines

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> dict:  # type: ignore[override]  # no slices
        return {"ids": self._ids[self._starts[index] : self._ends[index]]}

    def only(self, indices: numpy.ndarray) -> TokenRows:
        """Some of the rows."""
        return TokenRows(self._ids, self._starts[indices], self._ends[indices], self.lines[indices])


def open_tokens(tokens: Path, name: str, tokenizer: Tokenizer, shape: dict, file: RowFile) -> TokenRows | None:
    """The tokenised rows of a source, None if it has none. GLMError bad_data if they are damaged, or of another vocabulary,
    file, or options than these."""
    folder = folder_of(tokens, name)
    if not (folder / ABOUT).is_file():
        return None
    about = _about(folder / ABOUT)
    for key, value in made_from(file, shape, tokenizer).items():
        if about.get(key) != value:
            message = f"{folder} was made with another {_NAMES[key]}: run tokenize again, or delete it."
            raise GLMError("bad_data", message, field="tokens")
    for path, size in file_sizes(about).items():
        there = (folder / path).stat().st_size if (folder / path).is_file() else 0
        if there != size:
            message = f"{folder / path} has {there} bytes, not {size}: run tokenize again."
            raise GLMError("bad_data", message, field="tokens")
    ids = _mapped(folder / "ids.bin", KINDS[about["kind"]])
    offsets = _mapped(folder / "offsets.bin", NUMBERS)
    if offsets[0] != 0 or offsets[-1] != len(ids):
        raise GLMError("bad_data", f"{folder / 'offsets.bin'} is damaged: run tokenize again.", field="tokens")
    return TokenRows(ids, offsets[:-1], offsets[1:], _mapped(folder / "lines.bin", NUMBERS))


def _about(path: Path) -> dict:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        about = None
    if not isinstance(about, dict) or not all(isinstance(about.get(key), int) for key in ("rows", "tokens")):
        raise GLMError("bad_data", f"{path} is damaged: run tokenize again.", field="tokens")
    return about


def _mapped(path: Path, kind: numpy.dtype) -> numpy.ndarray:
    """All numbers of a file."""
    if path.stat().st_size == 0:
        return numpy.empty(0, kind)  # nothing can't be mapped
    # A plain array over the map: slices of a memmap object are slower to make.
    return numpy.asarray(numpy.memmap(path, kind, "r"))


_NAMES = {
    "format": "version of the program",
    "file": "file of the source",
    "bytes": "version of the source's file",
    "shape": "limit_megabytes, split or boost",
    "vocabulary": "vocabulary",
    "kind": "vocabulary",
}
