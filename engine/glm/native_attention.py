"""Attention of prompts by attention.cpp, for caches on CPUs in fp32 or fp16. Tensors: (tokens, heads, head_dim), fp32, contiguous.

segments = Segments([(context, branches, slot), ...])
segments.attend(cache.keys[layer], cache.values[layer], query, key, value)
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.glm import native

_long, _pointer = ctypes.c_long, ctypes.c_void_p


class _Cache(ctypes.Structure):
    _fields_ = (
        ("keys", _pointer),
        ("values", _pointer),
        *((name, _long) for name in ("halves", "heads", "capacity", "width")),
    )


class _Segment(ctypes.Structure):
    _fields_ = (*((name, _long) for name in ("start", "context", "slot", "branches")), ("lengths", _pointer))


class Segments:
    """Prompts of a packed pass, one after the other: tokens that see each other, the lengths of the branches behind them, each
    causal, and the slot that keeps keys and values, or None."""

    def __init__(self, segments: Sequence[tuple[int, tuple[int, ...], int | None]]) -> None:
        self._lengths = [(ctypes.c_int64 * len(branches))(*branches) for _, branches, _ in segments]
        self._array = (_Segment * len(segments))()
        start = 0
        for number, (context, branches, slot) in enumerate(segments):
            address = ctypes.addressof(self._lengths[number])
            self._array[number] = _Segment(start, context, -1 if slot is None else slot, len(branches), address)
            start += context + sum(branches)

    def attend(self, keys: Tensor, values: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """keys, values: a layer's, (slots, heads, columns, head_dim); written where a segment has a slot."""
        out = torch.empty_like(query)
        native.library().glm_attend(
            ctypes.byref(_cache(keys, values)),
            self._array,
            len(self._array),
            *(tensor.data_ptr() for tensor in (query, key, value, out)),
            torch.get_num_threads(),
        )
        return out


def attend_again(
    keys: Tensor, values: Tensor, slots: Tensor, columns: Tensor, query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """Of prompts' last tokens, which go to columns[i] of slots[i]: to the bit what `Segments.attend` gave them."""
    out = torch.empty_like(query)
    native.library().glm_attend_again(
        ctypes.byref(_cache(keys, values)),
        slots.data_ptr(),
        columns.data_ptr(),
        len(slots),
        *(tensor.data_ptr() for tensor in (query, key, value, out)),
        torch.get_num_threads(),
    )
    return out


def _cache(keys: Tensor, values: Tensor) -> _Cache:
    assert keys.is_contiguous() and values.is_contiguous()
    _, heads, capacity, width = keys.shape
    return _Cache(keys.data_ptr(), values.data_ptr(), keys.dtype == torch.float16, heads, capacity, width)
