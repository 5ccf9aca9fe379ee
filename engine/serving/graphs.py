"""Decode steps as graphs: on an accelerator what a step launches is captured once and then replayed in a single call.

    graphs = DecodeGraphs(model, cache)     # of a cache with a column more than a sequence may have tokens
    logits = graphs.step(slots, tokens, columns, positions)

A step of a few rows is thousands of small kernels, and to launch them one by one takes longer than they run. A graph repeats
them on the same memory, so whatever a step depends on lies in tensors that stay (`inputs`), and steps of different sizes are
filled up to few Shapes, each captured when it is first met: that step runs kernel by kernel, which warms up what can't be captured
(workspaces of libraries, the ranks' connections), and its result counts.

Rows that fill a shape up write their key and value to the last column of a slot, which belongs to no sequence, and what they give
is dropped. No row is a part of another one's sums, so they may be inf or nan. On a CPU the same function is simply called again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.glm.model import GLM
from engine.serving.cache import KeyValueCache

log = logging.getLogger(__name__)

_SHORTEST = 256  # columns: below it attention is too small a part of a step for graphs of its own
# Keys and values that are copied together are read, written and read again.
_GATHERING = 3


class Shape(NamedTuple):
    """Of a graph. rows: of tokens; length: columns of a slot that attention reads. gathered: the rows are in any slots, whose keys
    and values are copied together; else row i is slot i, which is read where it is, and rows of slots that aren't in the step
    fill the shape up."""

    rows: int
    length: int
    gathered: bool


def shape_of(slots: Sequence[int], columns: Sequence[int], most_slots: int, most_columns: int) -> Shape:
    """The smallest shape for a step's rows. The same in all tensor parallel ranks, which get the same work."""
    length = _bucket(max(columns) + 1, _SHORTEST, most_columns)
    few, prefix = _bucket(len(slots), 1, most_slots), _bucket(max(slots) + 1, 1, most_slots)
    # A slot that still holds a prompt is passed over when the next one is taken (slots.py), so a few rows may be anywhere: to
    # read all slots below the highest one would then cost many times what they need.
    gathered = _GATHERING * few < prefix
    return Shape(few if gathered else prefix, length, gathered)


def _bucket(needed: int, least: int, most: int) -> int:
    """`least` times the smallest power of two that makes it `needed`, but not above `most`."""
    assert 0 < needed <= most
    while least < needed:
        least *= 2
    return min(least, most)


class Recorder(Protocol):
    """How work is repeated. RuntimeError from `record` alone means that this device can't."""

    def run(self, work: Callable[[], None]) -> None:
        """Do it, as it will be recorded."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """What does it again. It isn't done now."""


class Repeated:
    """Where nothing is captured: the work itself."""

    def run(self, work: Callable[[], None]) -> None:
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        return work


class Captured:
    """Graphs of an accelerator, all in one pool of memory: they never run at the same time, and what they give is not in it.

    RuntimeError for a kind of device that has no streams.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.Stream(device=device)  # the default one can't be captured
        self._pool: tuple[int, int] | None = None

    def run(self, work: Callable[[], None]) -> None:
        # Memory that is taken and let go here is this stream's: that it first waits for the other one keeps it from being
        # used again too early.
        current = torch.accelerator.current_stream(self._device)
        self._stream.wait_stream(current)
        with self._stream:
            work()
        current.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        with self._stream:  # and its device
            graph = torch.accelerator.Graph(pool=self._pool)
            with graph:
                work()
        self._pool = graph.pool()
        return graph.replay


class DecodeGraphs:
    """inputs: (4, slots) int64: token, column and position of each row, then the slots of those that were asked for.

    recorder: another one than the device's own. Where capturing fails, a warning says so once, and steps are launched kernel
    by kernel from then on. They keep their shapes, since the graphs of other ranks exchange tensors of these shapes.
    """

    def __init__(self, model: GLM, cache: KeyValueCache, recorder: Recorder | None = None) -> None:
        slots, columns = cache.keys.shape[1], cache.keys.shape[3]
        self._model, self._cache = model, cache
        self._slots, self._scratch = slots, columns - 1
        self._pinned = model.device.type != "cpu"
        self._every_slot = torch.arange(slots, device=model.device)
        self.inputs = torch.zeros(4, slots, dtype=torch.long, device=model.device)
        self._logits = torch.zeros(slots, model.config.vocabulary, dtype=model.dtype, device=model.device)
        self._ready: dict[Shape, Callable[[], None]] = {}
        self._recorder: Recorder = recorder or Repeated()
        if recorder is None and model.device.type != "cpu":
            try:
                self._recorder = Captured(model.device)
            except RuntimeError as error:
                self._give_up(error)

    @torch.inference_mode()
    def step(
        self, slots: Sequence[int], tokens: Sequence[int], columns: Sequence[int], positions: Sequence[int]
    ) -> Tensor:
        """Token i goes to columns[i] of slots[i] (ascending), read at positions[i]. Its logits, (rows, vocabulary): a copy, which
        later steps leave alone."""
        shape = shape_of(slots, columns, self._slots, self._scratch)
        self._fill(shape, slots, tokens, columns, positions)
        ready = self._ready.get(shape)
        if ready is None:
            self._begin(shape)
        else:
            ready()
        count = len(slots)
        return self._logits[:count].clone() if shape.gathered else self._logits[self.inputs[3, :count]]

    def compute(self, shape: Shape) -> None:
        """What a graph of a shape is: from the inputs to the logits. It must not look at a value, copy from the host, or make
        anything whose size depends on one."""
        model = self._model
        tokens, columns, positions, slots = self.inputs[:, : shape.rows]
        slots = slots if shape.gathered else self._every_slot[: shape.rows]
        attention = _ShapedAttention(self._cache, shape, slots, columns, model.dtype)
        hidden = model.run(model.embed(tokens[:, None]), model.rotary(positions[:, None]), attention)
        self._logits[: shape.rows] = model.logits(hidden[:, 0])

    def _fill(
        self,
        shape: Shape,
        slots: Sequence[int],
        tokens: Sequence[int],
        columns: Sequence[int],
        positions: Sequence[int],
    ) -> None:
        values = [[0] * self._slots, [self._scratch] * self._slots, [0] * self._slots, [0] * self._slots]
        for row, one in enumerate(zip(tokens, columns, positions, slots, strict=True)):
            place = row if shape.gathered else one[3]
            values[0][place], values[1][place], values[2][place], values[3][row] = one
        # Not waited for. Memory of its own for each step: torch gives pinned memory out again only when copies from it are
        # through, while in one tensor for all a step could overwrite what the copy of the step before still has to read.
        host = torch.tensor(values, dtype=torch.long, pin_memory=self._pinned)
        self.inputs.copy_(host, non_blocking=True)

    def _begin(self, shape: Shape) -> None:
        work = partial(self.compute, shape)
        self._recorder.run(work)
        try:
            self._ready[shape] = self._recorder.record(work)
        except RuntimeError as error:
            self._give_up(error)

    def _give_up(self, error: RuntimeError) -> None:
        log.warning(
            "decode steps can't be captured on this device and are launched kernel by kernel, which is slower: %s",
            error,
        )
        self._recorder = Repeated()
        self._ready.clear()  # the memory of those that could be captured is needed now


class _ShapedAttention:
    """Attention of a graph's rows: tensors (rows, 1, heads, head_dim). Row i is the token in columns[i] of slots[i] and sees
    its slot up to there; the columns behind, as far as the shape goes, are masked. dtype: of the tensors."""

    def __init__(self, cache: KeyValueCache, shape: Shape, slots: Tensor, columns: Tensor, dtype: torch.dtype) -> None:
        self._cache, self._shape, self._slots, self._columns = cache, shape, slots, columns
        hidden = torch.arange(shape.length, device=cache.device) > columns[:, None]
        # As numbers to add: from True and False torch would make these in each layer again.
        mask = torch.zeros(hidden.shape, dtype=dtype, device=cache.device)
        self._mask = mask.masked_fill_(hidden, float("-inf"))[:, None, None]  # (rows, 1, 1, length)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self._cache.append(layer, self._slots, self._columns, key[:, 0], value[:, 0])
        keys, values = (self._seen(part[layer]).to(query.dtype) for part in (self._cache.keys, self._cache.values))
        context = F.scaled_dot_product_attention(query.transpose(1, 2), keys, values, attn_mask=self._mask)
        return context.transpose(1, 2)

    def _seen(self, slots: Tensor) -> Tensor:
        """(slots, heads, columns, head_dim) of a layer -> (rows, heads, length, head_dim)."""
        seen = slots[:, :, : self._shape.length]
        return seen.index_select(0, self._slots) if self._shape.gathered else seen[: self._shape.rows]
