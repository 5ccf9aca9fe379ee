"""Weights as whole numbers of 8 or 4 bits with fp16 scales, and the linear layer that computes with them.

The numbers are GLM-130B's own: scale = fp16(largest magnitude / 127 or / 7), q = round-half-even(fp16(weight / scale)), and the
weight stands for fp16(q * scale). Four bits: the column 2j in the high nibble of byte j, 2j+1 in the low one. A scale covers
columns / groups columns of a row. Activations are never rounded to whole numbers, biases are kept.

Everything here goes some rows of a matrix at a time: beside the quantised weight little memory is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.glm import native
from engine.glm.projection import Projection

LARGEST = {8: 127, 4: 7}
ROWS = 2048  # of a matrix at a time, at most
_CACHED = 1 << 22  # numbers at a time on a CPU: what its caches hold

# (states, weight, weight_scale) -> states times the transposed weight
Product = Callable[[Tensor, Tensor, Tensor], Tensor]


def quantize_weight(weight: Tensor, bits: int, groups: int = 1) -> tuple[Tensor, Tensor]:
    """(rows, columns) floats -> int8 (rows, columns), or (rows, columns / 2) for 4 bits, and scales fp16 (rows, groups).

    A row with a number that isn't finite in fp16 has a scale that isn't either.
    """
    rows, columns = weight.shape
    numbers = torch.empty(rows, columns * bits // 8, dtype=torch.int8, device=weight.device)
    scales = torch.empty(rows, groups, dtype=torch.float16, device=weight.device)
    for some in row_blocks(weight, columns):
        grouped = weight[some].to(torch.float16).unflatten(1, (groups, -1))
        scale = grouped.abs().amax(dim=-1, keepdim=True) / LARGEST[bits]
        # A row of zeros has no scale: it stays zeros.
        found = (grouped / scale.masked_fill(scale == 0, 1)).round_().clamp_(-LARGEST[bits], LARGEST[bits])
        found = found.to(torch.int8).flatten(1)
        numbers[some] = pack_nibbles(found) if bits == 4 else found
        scales[some] = scale.squeeze(-1)
    return numbers, scales


def dequantize_weight(numbers: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The weight that is stood for, fp16 (rows, columns)."""
    numbers = unpack_nibbles(numbers) if bits == 4 else numbers
    return numbers.to(torch.float16).unflatten(1, (scale.shape[1], -1)).mul_(scale[:, :, None]).flatten(1)


def pack_nibbles(numbers: Tensor) -> Tensor:
    """int8 (rows, columns) in -8 .. 7 -> int8 (rows, columns / 2)."""
    return (numbers[:, 0::2] << 4) | (numbers[:, 1::2] & 0x0F)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """The inverse of `pack_nibbles`."""
    # Both numbers of a byte as the two bytes of a word, the first one in its low byte: faster than to interleave them.
    words = packed.to(torch.int16)
    second = (words << 12).bitwise_right_shift_(4)
    return words.bitwise_right_shift_(4).bitwise_and_(0xFF).bitwise_or_(second).view(torch.int8)


def exact_product(states: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """(..., columns) -> (..., rows) with the weight that is stood for, in the states' type. On any device.

    Gradients reach the states, and nothing that is written out is kept for them.
    """
    if torch.is_grad_enabled() and states.requires_grad:
        return _ExactProduct.apply(states, weight, scale)
    bits = 8 * weight.shape[1] // states.shape[-1]
    product = states.new_empty(*states.shape[:-1], len(weight))
    for some in row_blocks(weight, states.shape[-1]):
        product[..., some] = F.linear(states, dequantize_weight(weight[some], scale[some], bits).to(states.dtype))
    return product


class _ExactProduct(torch.autograd.Function):
    """The weight is written out again on the way back, some rows at a time: kept, it would be the model in full precision."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.columns = states.shape[-1]
        return exact_product(states, weight, scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        bits = 8 * weight.shape[1] // ctx.columns
        total = torch.zeros(*gradient.shape[:-1], ctx.columns, dtype=torch.float32, device=gradient.device)
        for some in row_blocks(weight, ctx.columns):
            total += gradient[..., some] @ dequantize_weight(weight[some], scale[some], bits).to(gradient.dtype)
        return total.to(gradient.dtype), None, None


def row_blocks(matrix: Tensor, columns: int) -> Iterator[slice]:
    """The rows of a matrix, with so many columns when it is written out, in blocks."""
    step = min(ROWS, max(1, _CACHED // columns)) if matrix.device.type == "cpu" else ROWS
    for first in range(0, len(matrix), step):
        yield slice(first, first + step)


class QuantizedLinear(Projection, nn.Module):
    """A linear layer with a quantised weight. Made empty: checkpoint.load fills `weight`, `weight_scale` and `bias`.

    compute: the product; packed.pack chooses another one, for which weight and scales may change their form.
    """

    def __init__(
        self,
        columns: int,
        rows: int,
        bits: int,
        groups: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.columns, self.rows, self.bits, self.groups = columns, rows, bits, groups
        self.compute: Product = exact_product
        factory: dict[str, Any] = {"device": device}
        self.register_buffer("weight", torch.empty(rows, columns * bits // 8, dtype=torch.int8, **factory))
        self.register_buffer("weight_scale", torch.empty(rows, groups, dtype=torch.float16, **factory))
        self.bias = nn.Parameter(torch.empty(rows, dtype=dtype, **factory), requires_grad=False)

    def product(self, states: Tensor) -> Tensor:
        """Without the bias."""
        return self.compute(states, self.weight, self.weight_scale)

    def forward(self, states: Tensor) -> Tensor:
        affine = self._affine(states)
        # A layer with an adapter has another product than its matrix.
        if affine is None or type(self) is not QuantizedLinear:
            return self.product(states) + self.bias
        return affine(self, states, None)

    def plus(self, states: Tensor, residual: Tensor) -> Tensor:
        affine = self._affine(states)
        return super().plus(states, residual) if affine is None else affine(self, states, residual)

    def _affine(self, states: Tensor) -> Callable[[QuantizedLinear, Tensor, Tensor | None], Tensor] | None:
        """What `compute` may bring: the product with bias and residual added where it is written (packed.py, triton_products.py).

        affine_types: the states that it is for; fp32, if `compute` doesn't say.
        """
        served = states.dtype in getattr(self.compute, "affine_types", (torch.float32,))
        return getattr(self.compute, "affine", None) if served and states.dtype == self.bias.dtype else None

    def gated(self, states: Tensor) -> Tensor:
        if self._affine(states) is not None and states.dtype == torch.float32 and native.has_products(states.device):
            return native.gated(self(states))
        value, gate = self(states).chunk(2, dim=-1)
        # Torch has a gelu for memory without gaps, as one row is, and another one, which rounds otherwise.
        return value * F.gelu(gate.contiguous())
