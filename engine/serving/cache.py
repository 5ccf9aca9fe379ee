"""Keys and values of all running sequences, and attention over them.

One tensor each for keys and values, (layers, slots, heads, columns, head_dim): a sequence owns a slot from its first to its
last token. The cache knows columns only: which position a token was read at is already rotated into its key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.glm.attention import attend
from engine.glm.cache_precision import cache_precision
from engine.glm.model import GLM
from engine.glm.native_attention import Segments, attend_again
from engine.glm.native_layer import CachedRows
from engine.glm.precision import DTYPES
from engine.serving.work import Tree


def kept_dtype(model: GLM, kv_cache: str) -> torch.dtype:
    """kv_cache: of cache_precision.KV_CACHES."""
    precision = next(name for name, dtype in DTYPES.items() if dtype == model.dtype)
    return DTYPES[cache_precision(kv_cache, precision, model.config.quantization is not None)]


class KeyValueCache:
    """Memory is zeroed, so that a column never written weighs nothing when it is masked (0 * nan would be nan).

    dtype: may be shorter than that of the states: what they are rounded to is what every attention sees, a prompt's own too.
    """

    def __init__(
        self, layers: int, slots: int, heads: int, columns: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (layers, slots, heads, columns, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def device(self) -> torch.device:
        return self.keys.device

    def rounded(self, states: Tensor) -> Tensor:
        """Keys or values as the cache has them, in the type that they come in."""
        return states if states.dtype == self.keys.dtype else states.to(self.keys.dtype).to(states.dtype)

    def write(self, layer: int, slot: int, key: Tensor, value: Tensor) -> None:
        """The first columns of a slot. key, value: (length, heads, head_dim)."""
        length = key.shape[0]
        self.keys[layer, slot, :, :length] = key.transpose(0, 1)
        self.values[layer, slot, :, :length] = value.transpose(0, 1)

    def append(self, layer: int, slots: Tensor, columns: Tensor, key: Tensor, value: Tensor) -> None:
        """One column in each of several slots. slots, columns: (rows,); key, value: (rows, heads, head_dim)."""
        self.keys[layer][slots, :, columns] = key.to(self.keys.dtype)
        self.values[layer][slots, :, columns] = value.to(self.values.dtype)

    def copy(self, source: int, target: int, length: int) -> None:
        """The first `length` columns of one slot to another, in all layers."""
        self.keys[:, target, :, :length] = self.keys[:, source, :, :length]
        self.values[:, target, :, :length] = self.values[:, source, :, :length]

    def clear(self, slot: int) -> None:
        """For a slot that may hold inf or nan: masking alone doesn't keep those from its next sequence."""
        self.keys[:, slot] = 0
        self.values[:, slot] = 0


@dataclass(frozen=True, slots=True)
class Segment:
    """A prompt in a packed pass: `context` tokens that see each other, then branches of the given lengths, causal, that see
    the context and themselves. Keys and values go to `slot` (only with a single branch), or nowhere."""

    context: int
    branches: tuple[int, ...]
    slot: int | None

    @property
    def length(self) -> int:
        return self.context + sum(self.branches)


class PromptAttention:
    """Attention of a packed pass: tensors (1, tokens, heads, head_dim), the segments' tokens one after the other.

    Each segment is computed by itself, so that its result doesn't depend on the others.
    """

    def __init__(self, cache: KeyValueCache, segments: Sequence[Segment]) -> None:
        assert all(segment.slot is None or len(segment.branches) == 1 for segment in segments)
        self._cache, self._segments = cache, segments

    @cached_property
    def _visible(self) -> list[Tensor | None]:
        return [_branch_mask(segment, self._cache.device) for segment in self._segments]

    @cached_property
    def _native(self) -> Segments:
        return Segments([(segment.context, segment.branches, segment.slot) for segment in self._segments])

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        context = torch.empty_like(query)
        key, value = self._cache.rounded(key), self._cache.rounded(value)
        start = 0
        for segment, visible in zip(self._segments, self._visible, strict=True):
            middle, end = start + segment.context, start + segment.length
            if segment.slot is not None:
                self._cache.write(layer, segment.slot, key[0, start:end], value[0, start:end])
            context[:, start:middle] = attend(
                query[:, start:middle], key[:, start:middle], value[:, start:middle], None
            )
            context[:, middle:end] = attend(query[:, middle:end], key[:, start:end], value[:, start:end], visible)
            start = end
        return context

    def read(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The same for native_layer.py, of (tokens, heads, head_dim)."""
        return self._native.attend(self._cache.keys[layer], self._cache.values[layer], query, key, value)


class StepAttention:
    """Attention of a decode step: tensors (rows, 1, heads, head_dim); row i is the token in column columns[i] of slots[i].

    Slots must ascend. Every row sees the columns of its slot up to its own. Slots that lie side by side are computed
    together on a view of the cache, masked to each row's length: nothing is gathered or copied. together: False computes each
    row by itself, over its own length, so that its sums are in the same order whatever runs beside it. whole: whether layers
    may compute themselves in one call (native_layer.py); if not, these are prompts' last tokens, to be computed as when they
    were read.
    """

    def __init__(
        self,
        cache: KeyValueCache,
        slots: Sequence[int],
        columns: Sequence[int],
        *,
        together: bool = True,
        whole: bool = True,
    ) -> None:
        self._cache = cache
        self._slots = torch.tensor(slots, dtype=torch.long, device=cache.device)
        self._columns = torch.tensor(columns, dtype=torch.long, device=cache.device)
        self.rows = CachedRows(cache.keys, cache.values, self._slots, self._columns) if whole else None
        self.read = None if whole else self._read
        assert all(later > earlier for earlier, later in pairwise(slots))
        self._rows, self._together = (slots, columns), together

    @cached_property
    def _runs(self) -> list[tuple[slice, slice, int, Tensor | None]]:
        """Rows that are computed together: which of them, their slots, the longest one, what each sees of that. Whole layers don't
        ask for it."""
        slots, columns = self._rows
        runs: list[tuple[slice, slice, int, Tensor | None]] = []
        first = 0
        for row in range(1, len(slots) + 1):
            if self._together and row < len(slots) and slots[row] == slots[row - 1] + 1:
                continue
            lengths = [column + 1 for column in columns[first:row]]
            longest = max(lengths)
            visible = None
            if min(lengths) < longest:
                order = torch.arange(longest, device=self._cache.device)
                visible = order[None, None, None] <= self._columns[first:row, None, None, None]  # (rows, 1, 1, columns)
            runs.append((slice(first, row), slice(slots[first], slots[row - 1] + 1), longest, visible))
            first = row
        return runs

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self._cache.append(layer, self._slots, self._columns, key[:, 0], value[:, 0])
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        found = [
            F.scaled_dot_product_attention(
                query[rows].transpose(1, 2),
                keys[slots, :, :longest].to(query.dtype),
                values[slots, :, :longest].to(query.dtype),
                attn_mask=visible,
            )
            for rows, slots, longest, visible in self._runs
        ]
        return (found[0] if len(found) == 1 else torch.cat(found)).transpose(1, 2)

    def _read(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        return attend_again(keys, values, self._slots, self._columns, query, key, value)


class TreeAttention:
    """Attention of one token of each live beam of a search: tensors (beams, 1, heads, head_dim). See work.Tree.

    All that the search has written is read once for all of its beams, in place where it lies in one slot.
    """

    def __init__(self, cache: KeyValueCache, tree: Tree) -> None:
        self._cache, self._tree = cache, tree
        columns, beams = cache.keys.shape[3], len(tree.tokens)
        self._total = tree.prompt + tree.first + beams
        places = range(self._total - beams, self._total)
        self._slots = torch.tensor([tree.slots[place // columns] for place in places], device=cache.device)
        self._columns = torch.tensor([place % columns for place in places], device=cache.device)
        visible = torch.zeros(beams, self._total, dtype=torch.bool)
        visible[:, : tree.prompt] = True
        for row, path in enumerate(tree.paths):
            visible[row, torch.tensor(path) + tree.prompt] = True
        self._visible = visible.to(cache.device)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self._cache.append(layer, self._slots, self._columns, key[:, 0], value[:, 0])
        keys, values = (self._written(part[layer]).to(query.dtype) for part in (self._cache.keys, self._cache.values))
        together = query.transpose(0, 1).transpose(1, 2)  # (1, heads, beams, head_dim)
        context = F.scaled_dot_product_attention(together, keys[None], values[None], attn_mask=self._visible)
        return context.transpose(1, 2).transpose(0, 1)

    def _written(self, slots: Tensor) -> Tensor:
        """(slots, heads, columns, head_dim) of a layer -> (heads, all places of the search, head_dim)."""
        columns = slots.shape[2]
        parts = [
            slots[slot, :, : min(columns, self._total - first)]
            for slot, first in zip(self._tree.slots, range(0, self._total, columns), strict=False)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class MixedAttention:
    """Rows one after the other that attend in ways of their own: (number of rows, attention) each."""

    def __init__(self, parts: Sequence[tuple[int, StepAttention | TreeAttention]]) -> None:
        self._sizes, self._attentions = zip(*parts, strict=True)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows = zip(*(part.split(self._sizes) for part in (query, key, value)), strict=True)
        found = [attention(layer, *row) for attention, row in zip(self._attentions, rows, strict=True)]
        return found[0] if len(found) == 1 else torch.cat(found)


def _branch_mask(segment: Segment, device: torch.device) -> Tensor | None:
    """(rows behind the context, all columns), True = visible; None where everything is (a single row)."""
    tail = sum(segment.branches)
    if tail == 1:
        return None
    branch = torch.repeat_interleave(torch.tensor(segment.branches, device=device))
    order = torch.arange(tail, device=device)
    own = (branch[:, None] == branch[None, :]) & (order[None, :] <= order[:, None])
    return torch.cat((torch.ones(tail, segment.context, dtype=torch.bool, device=device), own), dim=1)
