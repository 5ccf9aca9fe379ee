"""Layers by native.py: of a decode step all of them in one call; of prompts what lies before and behind a layer's attention.

layer.whole = NativeLayer.of(layer)     # None where a matrix has another form
model.whole = NativeLayers.of(model)    # None where a layer has none
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.glm import native
from engine.glm.eight_bit import EightBitProduct
from engine.glm.model import GLM, Attention, Layer, Linear, Rotary
from engine.glm.packed import native_product
from engine.glm.quantize import QuantizedLinear

_long, _pointer, _double = ctypes.c_long, ctypes.c_void_p, ctypes.c_double
_EIGHT_BIT = 5


@dataclass(frozen=True, slots=True)
class CachedRows:
    """What an attention of one token in each of several slots offers. keys, values: (layers, slots, heads, columns, head_dim),
    fp32 or fp16; slots, columns: (rows,) int64, where each token's key and value go; it sees its slot up to there."""

    keys: Tensor
    values: Tensor
    slots: Tensor
    columns: Tensor


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("kind", _long),
        ("weight", _pointer),
        ("scale", _pointer),
        ("groups", _long),
        ("rows", _long),
        ("columns", _long),
        ("row_sums", _pointer),
        ("bias", _pointer),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _pointer) for name in ("first_weight", "first_bias", "second_weight", "second_bias")),
        *((name, _Matrix) for name in ("mixed", "dense", "up", "down")),
        ("alpha", _double),
        ("epsilon", _double),
        ("heads", _long),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        ("tokens", _long),
        ("capacity", _long),
        *((name, _pointer) for name in ("slots", "places", "cosines", "sines", "keys", "values")),
        ("apart", _long),
        ("halves", _long),
        ("threads", _long),
    )


class NativeLayer:
    """hidden, rotary and attention of a pass -> hidden. A step's are (rows, 1, hidden), with an attention that offers
    CachedRows. An attention that can `read` comes with prompts, (1, tokens, hidden), or with prompts' last tokens that are read
    once more, (rows, 1, hidden). None for other attentions."""

    def __init__(self, layer: Layer, matrices: list[_Matrix], kept: list[Tensor]) -> None:
        attention, norms = layer.attention, (layer.input_layernorm, layer.post_attention_layernorm)
        self._kept = kept + [tensor.detach() for norm in norms for tensor in (norm.weight, norm.bias)]
        self._number = attention.layer
        self.struct = _Layer(
            *(tensor.data_ptr() for tensor in self._kept[-4:]), *matrices, layer.alpha, norms[0].eps, attention.heads
        )
        self._heads, self._head_dim = attention.heads, attention.head_dim
        self._library = native.library()

    @classmethod
    def of(cls, layer: Layer) -> NativeLayer | None:
        attention, mlp = layer.attention, layer.mlp
        if attention.ranks.size > 1 or layer.input_layernorm.weight.dtype != torch.float32:
            return None
        kept: list[Tensor] = []
        linears = (attention.query_key_value, attention.dense, mlp.dense_h_to_4h, mlp.dense_4h_to_h)
        matrices = [_matrix(linear, kept) for linear in linears]
        return None if None in matrices else cls(layer, matrices, kept)

    def __call__(
        self, hidden: Tensor, rotary: Rotary, attention: Attention, wanted: Tensor | None = None
    ) -> Tensor | None:
        if hidden.dtype != torch.float32:
            return None
        rows = getattr(attention, "rows", None)
        if isinstance(rows, CachedRows):
            return _step(ctypes.pointer(self.struct), 1, self._number, hidden, rotary, rows)
        read = getattr(attention, "read", None)
        return None if read is None else self._read(hidden, rotary, read, wanted)

    def _read(self, hidden: Tensor, rotary: Rotary, attend: Attention, wanted: Tensor | None) -> Tensor:
        layer, tokens, threads = ctypes.byref(self.struct), hidden.shape[0] * hidden.shape[1], torch.get_num_threads()
        hidden = hidden.contiguous()
        residual = torch.empty_like(hidden)
        query, key, value = (hidden.new_empty(tokens, self._heads, self._head_dim) for _ in range(3))
        inputs = [hidden, *(table.contiguous() for table in rotary), residual, query, key, value]
        addresses = [tensor.data_ptr() for tensor in inputs]
        self._library.glm_before(layer, addresses[0], tokens, *addresses[1:], threads)
        context = attend(self._number, query, key, value)
        if wanted is not None:
            context, residual, tokens = context[wanted], residual[:, wanted], len(wanted)
        out = torch.empty_like(residual)
        self._library.glm_behind(layer, context.data_ptr(), tokens, residual.data_ptr(), out.data_ptr(), threads)
        return out


class NativeLayers:
    """All layers of a model. hidden (rows, 1, hidden), rotary and attention of a step -> hidden behind the last one; None for an
    attention that doesn't offer CachedRows."""

    def __init__(self, layers: Sequence[NativeLayer]) -> None:
        self._layers = layers  # which keep what the structs point to
        self._structs = (_Layer * len(layers))(*(layer.struct for layer in layers))

    @classmethod
    def of(cls, model: GLM) -> NativeLayers | None:
        layers = [layer.whole for layer in model.layers]
        return cls(layers) if all(isinstance(layer, NativeLayer) for layer in layers) else None

    def __call__(self, hidden: Tensor, rotary: Rotary, attention: Attention) -> Tensor | None:
        rows = getattr(attention, "rows", None)
        if not isinstance(rows, CachedRows) or hidden.dtype != torch.float32:
            return None
        return _step(self._structs, len(self._layers), 0, hidden, rotary, rows)


def _step(layers: Any, count: int, first: int, hidden: Tensor, rotary: Rotary, rows: CachedRows) -> Tensor:
    """`count` layers, of which the first has this number."""
    cosines, sines = (table.contiguous() for table in rotary)
    keys, values = rows.keys[first], rows.values[first]
    step = _Step(
        len(hidden),
        keys.shape[2],
        *(tensor.data_ptr() for tensor in (rows.slots, rows.columns, cosines, sines, keys, values)),
        keys.nbytes,
        keys.dtype == torch.float16,
        torch.get_num_threads(),
    )
    hidden, out = hidden.contiguous(), torch.empty_like(hidden, memory_format=torch.contiguous_format)
    native.library().glm_step(layers, count, ctypes.byref(step), hidden.data_ptr(), out.data_ptr())
    return out


def _matrix(linear: Any, kept: list[Tensor]) -> _Matrix | None:
    """What a linear layer multiplies by; its tensors are added to `kept`. None for other forms, adapted ones among them."""
    matrix = row_sums = None
    if type(linear) is Linear:
        matrix = getattr(linear.packed, "native", None)
    elif type(linear) is QuantizedLinear and linear.compute is native_product:
        matrix = native.Matrix(linear.weight, linear.rows, linear.columns, linear.weight_scale)
    elif type(linear) is QuantizedLinear and isinstance(linear.compute, EightBitProduct):
        matrix, row_sums = linear.compute.native or (None, None)
    if matrix is None or linear.bias.dtype != torch.float32:
        return None
    bias = linear.bias.detach()
    kept += [tensor for tensor in (matrix.weight, matrix.scale, row_sums, bias) if tensor is not None]
    groups = 1 if matrix.scale is None or row_sums is not None else matrix.scale.shape[1]
    address = [None if tensor is None else tensor.data_ptr() for tensor in (matrix.scale, row_sums)]
    kind = matrix.kind if row_sums is None else _EIGHT_BIT
    return _Matrix(
        kind, matrix.weight.data_ptr(), address[0], groups, matrix.rows, matrix.columns, address[1], bias.data_ptr()
    )
