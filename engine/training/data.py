"""From sources with weights to packed batches, in an order that depends on the seed alone and can be resumed.

`Mixture` draws rows: a source by its weight, then the next row of that source's own shuffled order. `Packer` fills rows of
fixed length with several samples each; samples don't see each other (attention.packed_visible).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy

from engine.errors import GLMError
from engine.glm.blanks import Sample
from engine.glm.config import ChatFormat
from engine.glm.tokenizer import Tokenizer
from engine.training.objective import Objective, row_samples
from engine.training.sources import read_rows


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
    """Rows of one source, and how they are used."""

    name: str
    rows: list[dict]


def load_source(folder: Path, name: str, options: dict, tokenizer: Tokenizer, held_out: frozenset[str]) -> Source:
    """Read a source by its options, without rows that ask a `held_out` question.

    limit_megabytes; split ("sentences": each also as a document of its own; "couplets": verse lines as blanks and as
    questions for the next line); boost {text: times} (rows that contain a text are repeated).
    """
    limit = options.get("limit_megabytes")
    rows: list[dict] = []
    for row in read_rows(folder, name, int(limit * 1e6) if limit else None):
        if "messages" in row and row["messages"][0]["content"] in held_out:
            continue
        made = _split(row, options.get("split"))
        times = max(
            [1, *(count for text, count in options.get("boost", {}).items() if text in str(row.get("text", row)))]
        )
        rows += made * times
    for row in rows:
        if "text" in row and "answers" not in row:
            row["ids"] = numpy.array(tokenizer.encode_plain(row.pop("text")), dtype=numpy.int32)
    if not rows:
        raise GLMError("bad_data", f"{name} has no rows left to train on.", field="data")
    return Source(name, rows)


def _split(row: dict, how: str | None) -> list[dict]:
    if how is None:
        return [row]
    text = row["text"]
    if how == "sentences":
        ends = text.replace("。", "。\n").replace(". ", ".\n").split("\n")
        return [row, *({"text": sentence.strip()} for sentence in ends if sentence.strip())]
    if how == "couplets":
        made = []
        for line in text.split("\n"):
            halves = line.split("，")
            if len(halves) == 2 and halves[0] and len(halves[1]) > 1 and halves[1][-1] in "。？！；":
                made.append({"text": f"{halves[0]}，[MASK]{halves[1][-1]}", "answers": [halves[1][:-1]]})
                made.append({"text": f"[MASK]，{halves[1]}", "answers": [halves[0]]})
                question = {"role": "user", "content": f"“{halves[0]}”的下一句是什么？"}
                made.append({"messages": [question, {"role": "assistant", "content": f"{halves[1][:-1]}。"}]})
        return made
    raise GLMError("bad_data", f'split is "sentences" or "couplets", not {how!r}.', field="split")


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
        self.left_out = 0  # rows that were too long or empty

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
            self.pending = row_samples(
                self._next_row(index), self.chat, self.tokenizer, self.objective, length, self.random
            )
            self.left_out += not self.pending
            self.tokens[index] += sum(len(sample.ids) for sample in self.pending) or 1

    def _next_row(self, index: int) -> dict:
        source = self.sources[index]
        epoch, place = divmod(self.served[index], len(source.rows))
        order = self._order(index, epoch)
        self.served[index] += 1
        return source.rows[order[place]]

    def _order(self, index: int, epoch: int) -> numpy.ndarray:
        cached = self._orders.get(index)
        if cached is None or cached[0] != epoch:
            name = self.sources[index].name
            seed = int.from_bytes(hashlib.sha256(f"{self.seed}/{name}/{epoch}".encode()).digest()[:8], "little")
            cached = (epoch, numpy.random.default_rng(seed).permutation(len(self.sources[index].rows)))
            self._orders[index] = cached
        return cached[1]

    def state(self) -> dict:
        """Everything that decides what comes next, in plain lists and numbers."""
        names = ("served", "tokens", "stage", "stage_began", "left_out")
        pending = [
            [list(getattr(sample, name)) for name in _SAMPLE] + [sample.context_length] for sample in self.pending
        ]
        return {"random": self.random.getstate(), "pending": pending, **{name: getattr(self, name) for name in names}}

    def restore(self, state: dict) -> None:
        """Go on behind `state()`."""
        version, numbers, gauss = state["random"]
        self.random.setstate((version, tuple(numbers), gauss))
        self.pending = [Sample(*map(tuple, arrays), context_length) for *arrays, context_length in state["pending"]]
        self.served, self.tokens = list(state["served"]), list(state["tokens"])
        self.stage, self.stage_began, self.left_out = state["stage"], list(state["stage_began"]), state["left_out"]


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
