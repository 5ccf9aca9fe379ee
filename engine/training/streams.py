"""Each step's rows, the same for any number of processes: rows come from streams of their own order, not from ranks.

The rows of a step are divided evenly among the recipe's streams, in order, and evenly among the ranks. A rank reads the
streams that its rows come from; with at least as many streams as ranks no row is made twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import numpy

from engine.errors import GLMError
from engine.training.data import Batch, Mixture, pack


class Streams:
    """make(stream number): its Mixture. rank among `world` ranks."""

    def __init__(self, count: int, rank: int, world: int, make: Callable[[int], Mixture]) -> None:
        self.count, self._rank, self._world = count, rank, world
        if count % world and world % count:
            raise GLMError(
                "bad_data", f"{count} streams can't be divided among {world} processes.", field="streams", limit=world
            )
        share = max(1, count // world)
        first = rank * count // world
        self.mixtures = {number: make(number) for number in range(first, first + share)}

    def batch(self, stage: str, weights: list[float], rows: int, length: int) -> Batch:
        """This rank's rows of the next step of `rows` rows of all ranks."""
        if rows % self._world or rows % self.count:
            message = f"{rows} rows a step can't be divided among {self._world} processes and {self.count} streams."
            raise GLMError("bad_data", message, field="rows", limit=max(self._world, self.count))
        each = rows // self.count
        batches = [pack(mixture.samples(stage, weights, length), each, length) for mixture in self.mixtures.values()]
        whole = join(batches)
        if self._world <= self.count:
            return whole
        own = rows // self._world
        start = self._rank * own - next(iter(self.mixtures)) * each
        return rows_of(whole, slice(start, start + own))

    def state(self) -> dict[int, dict]:
        """Of the streams that this rank reads first among all: together the ranks save each once."""
        readers = max(1, self._world // self.count)
        if self._rank % readers:
            return {}
        return {number: mixture.state() for number, mixture in self.mixtures.items()}

    def restore(self, states: dict[int, dict]) -> None:
        """Go on behind `state()`s of all ranks. GLMError bad_data if they are of another number of streams."""
        if set(states) != set(range(self.count)):
            raise GLMError("bad_data", f"The saved state has {len(states)} streams, not {self.count}.", field="streams")
        for number, mixture in self.mixtures.items():
            mixture.restore(states[number])

    @property
    def left_out(self) -> int:
        """Rows that were too long or empty so far, of this rank's streams."""
        return sum(mixture.left_out for mixture in self.mixtures.values())


def rows_of(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch."""
    return Batch(*(getattr(batch, field.name)[rows] for field in fields(batch)))


def join(batches: list[Batch]) -> Batch:
    """Their rows, one batch after the other."""
    if len(batches) == 1:
        return batches[0]
    return Batch(*(numpy.concatenate([getattr(batch, field.name) for batch in batches]) for field in fields(Batch)))
