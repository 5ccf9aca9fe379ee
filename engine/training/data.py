"""From sources with weights to packed batches, in an order that depends on the seed alone and can be resumed.

`Mixture` draws rows: a source by its weight, then the next row of that source's own shuffled order. `Packer` fills rows of
fixed length with several samples each; samples don't see each other (attention.packed_visible).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy

from engine.errors import GLMError
from engine.glm.blanks import Sample
from engine.glm.config import ChatFormat
from engine.glm.tokenizer import Tokenizer
from engine.training.left_out import LeftOut
from engine.training.objective import Objective, fitting_samples
from engine.training.row_files import RowFile
from engine.training.source_options import SourceOptions, capped, capped_indices
from engine.training.sources import find_source, is_document
from engine.training.splits import LeftToSplits
from engine.training.tokens import open_tokens


@dataclass(slots=True)
class Batch:
    """Arrays of (rows, length). targets are -1 where nothing is predicted; document is 0 for padding."""

    ids: numpy.ndarray
    positions: numpy.ndarray
    targets: numpy.ndarray
    document: numpy.ndarray
    context: numpy.ndarray

    @property
    def tokens(self) -> int:
        """Tokens that are no padding."""
        return int((self.document > 0).sum())


@dataclass(slots=True)
class Source:
    """Rows of one source: a list, or tokens.TokenRows. lines: the line of `file` that each row comes from, where known."""

    name: str
    rows: Sequence[dict]
    file: RowFile | None = None
    lines: Sequence[int] | None = None

    def place(self, index: int) -> str:
        """How messages name row number `index`."""
        if self.file is None or self.lines is None:
            return f"{self.name}, row {index + 1}"
        return self.file.place(int(self.lines[index]))


def load_source(
    folder: Path,
    name: str,
    options: dict,
    tokenizer: Tokenizer,
    held_out: frozenset[str],
    *,
    tokens: Path | None = None,
    seed: int = 0,
    left: LeftToSplits | None = None,
) -> Source:
    """Read a source by its options (see SourceOptions), without rows that ask a `held_out` question and those `left` to splits.

    tokens: a folder of sources that were tokenised beforehand; those are opened, and the others read from `folder` as they
    are. seed: which rows a `cap` keeps. The rows are the same in either way. Errors: bad_data.
    """
    parsed = SourceOptions.parse(name, options)
    file = RowFile(find_source(folder, name))
    if tokens is not None and (rows := open_tokens(tokens, name, tokenizer, parsed.shape, file)) is not None:
        if left is not None and left.lines:
            rows = rows.only(numpy.flatnonzero(~numpy.isin(rows.lines, list(left.lines))))
        chosen = capped_indices(len(rows), parsed.cap, seed, name)
        rows = rows if chosen is None else rows.only(chosen)
        return Source(name, rows, file, rows.lines)

    def kept() -> Iterator[tuple[int, dict]]:
        for number, row in parsed.rows(file):
            if left is not None and not left.keeps(number, row):
                continue
            messages = row.get("messages")
            if not messages or messages[0]["content"] not in held_out:
                yield number, row

    found: list[dict] = []
    lines = array("q")
    for number, row in kept() if parsed.cap is None else capped(kept(), parsed.cap, seed, name):
        if is_document(row):
            row = {"ids": numpy.array(tokenizer.encode_plain(row["text"]), dtype=numpy.int32)}
        found.append(row)
        lines.append(number)
    if not found:
        raise GLMError("bad_data", f"{name} has no rows left to train on.", field="data")
    return Source(name, parsed.chained(found, seed, name), file, lines)


_PATIENCE = 100  # rows of no use, one behind the other, before a small source is given up


class Mixture:
    """An endless stream of samples from weighted sources. `state()` and `restore()` carry on exactly."""

    def __init__(
        self,
        sources: list[Source],
        chat: ChatFormat | None,
        tokenizer: Tokenizer,
        objective: Objective,
        seed: int,
    ) -> None:
        self.sources, self.chat, self.tokenizer, self.objective = sources, chat, tokenizer, objective
        self.random = Random(seed)
        self.seed = seed
        self.served = [0] * len(sources)  # rows drawn from each source so far
        self.tokens = [0] * len(sources)  # tokens drawn from each source so far
        self.stage = ""
        self.stage_began = [0] * len(sources)  # `tokens` when the present stage began
        self.pending: list[Sample] = []  # samples of the last row that were not taken yet
        self._orders: dict[int, tuple[int, numpy.ndarray]] = {}
        self._barren = [0] * len(sources)  # rows drawn in a row that gave nothing
        self._left_out = LeftOut()

    def samples(self, stage: str, weights: list[float], length: int) -> Iterator[Sample]:
        """Samples of at most `length` tokens. Weights are shares of the stage's tokens: the source furthest behind is next."""
        if stage != self.stage:
            self.stage, self.stage_began = stage, list(self.tokens)
        while True:
            while self.pending:
                yield self.pending.pop(0)
            drawn = [now - then + 1.0 for now, then in zip(self.tokens, self.stage_began, strict=True)]
            index = min(
                (index for index, weight in enumerate(weights) if weight > 0),
                key=lambda index: drawn[index] / weights[index],
            )
            self.pending = self._draw(index, length)
            self.tokens[index] += sum(len(sample.ids) for sample in self.pending) or 1

    def _draw(self, index: int, length: int) -> list[Sample]:
        """The samples of a source's next row. GLMError bad_data for a broken row, or where no row of the source is of use."""
        source = self.sources[index]
        epoch, place = divmod(self.served[index], len(source.rows))
        number = int(self._order(index, epoch)[place])
        self.served[index] += 1
        try:
            samples, reason = fitting_samples(
                source.rows[number], self.chat, self.tokenizer, self.objective, length, self.random
            )
        except GLMError as error:
            raise GLMError("bad_data", f"{source.place(number)}: {error.message}", field=error.field) from error
        if reason is not None:
            self._left_out.add(source.name, reason, source.place(number))
        self._barren[index] = 0 if samples else self._barren[index] + 1
        if self._barren[index] >= max(_PATIENCE, len(source.rows)):
            message = f"Not one row of {source.name} can be trained on in {length} tokens: {source.place(number)} is {reason}."
            raise GLMError("bad_data", message, field="length", limit=length)
        return samples

    @property
    def left_out(self) -> int:
        """Rows drawn so far that were too long, empty, or without an answer, whole or in part."""
        return self._left_out.total

    def left_out_table(self) -> list[dict]:
        """The same by source and reason, with the first places: see LeftOut, which also merges tables."""
        return self._left_out.table()

    def _order(self, index: int, epoch: int) -> numpy.ndarray:
        cached = self._orders.get(index)
        if cached is None or cached[0] != epoch:
            name = self.sources[index].name
            seed = int.from_bytes(hashlib.sha256(f"{self.seed}/{name}/{epoch}".encode()).digest()[:8], "little")
            count = len(self.sources[index].rows)
            order = numpy.random.default_rng(seed).permutation(count)
            cached = (epoch, order.astype(numpy.uint32) if count < 1 << 32 else order)  # it stays for a whole epoch
            self._orders[index] = cached
        return cached[1]

    def state(self) -> dict:
        """Everything that decides what comes next, in plain lists and numbers."""
        names = ("served", "tokens", "stage", "stage_began")
        pending = [
            [list(getattr(sample, name)) for name in _SAMPLE] + [sample.context_length] for sample in self.pending
        ]
        return {
            "random": self.random.getstate(),
            "pending": pending,
            "left_out": self._left_out.table(),
            **{name: getattr(self, name) for name in names},
        }

    def restore(self, state: dict) -> None:
        """Go on behind `state()`."""
        version, numbers, gauss = state["random"]
        self.random.setstate((version, tuple(numbers), gauss))
        self.pending = [Sample(*map(tuple, arrays), context_length) for *arrays, context_length in state["pending"]]
        self.served, self.tokens = list(state["served"]), list(state["tokens"])
        self.stage, self.stage_began = state["stage"], list(state["stage_began"])
        self._left_out = LeftOut(state["left_out"])


_SAMPLE = ("ids", "positions", "targets")


def pack(samples: Iterator[Sample], rows: int, length: int) -> Batch:
    """Fill a batch of (rows, length): each sample goes to the fullest row it fits in; the first that fits nowhere ends it."""
    arrays = {name: numpy.zeros((rows, length), dtype=numpy.int64) for name in ("ids", "positions", "document")}
    targets = numpy.full((rows, length), -1, dtype=numpy.int64)
    context = numpy.zeros((rows, length), dtype=bool)
    used, documents = [0] * rows, [0] * rows
    misses = 0
    while misses < 2:
        sample = next(samples)
        size = len(sample.ids)
        fitting = [row for row in range(rows) if used[row] + size <= length]
        if not fitting:
            misses += 1  # dropped: the stream is endless, and its order stays the same
            continue
        row = max(fitting, key=lambda row: used[row])
        place = slice(used[row], used[row] + size)
        documents[row] += 1
        arrays["ids"][row, place] = sample.ids
        arrays["positions"][row, place] = sample.positions
        arrays["document"][row, place] = documents[row]
        targets[row, place] = sample.targets
        context[row, used[row] : used[row] + sample.context_length] = True
        used[row] += size
    return Batch(arrays["ids"], arrays["positions"], targets, arrays["document"], context)
