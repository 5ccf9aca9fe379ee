"""w8a8: whole numbers of 8 bits for weights and activations, multiplied and summed as whole numbers. x86 CPUs.

A token's activations have a scale of their own, largest magnitude / 127, so no other token of the batch moves them. What lies far
outside of a token's others (GLM-130B's authors saw up to 30% of such columns, and therefore left activations alone) would take
that scale up and the rest down to nothing: it is taken out and kept in 16 bits, as two more rows of 8, in LLM.int8()'s spirit
(arXiv 2208.07339) but by the token, not by the batch. Sums are exact in any order, so a token's result is the same, to the
bit, whatever is beside it.

Where our own products are there (native.py), they do all of it in one pass over the weight. Else oneDNN multiplies 8-bit
activations without a sign by weights with one. CPUs without VNNI add such products in pairs of 16
bits, which overflow: there each number goes as two of 4 bits. What the CPU can do is tried out, not looked up.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from engine.errors import GLMError
from engine.glm import native
from engine.glm.quantize import QuantizedLinear

OUTSIDE = 8.0  # times the mean magnitude of a token's activations: 6.4 standard deviations, if they are normal
_MOST16 = 127 * 257  # 256 * 127 + 127


def has_onednn(device: torch.device) -> bool:
    """Whether a device is an x86 CPU that oneDNN has its own products for."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@cache
def adds_exactly() -> bool:
    """Whether this CPU sums products of 8-bit numbers without overflow."""
    weight = torch.full((64, 64), 127, dtype=torch.int8)
    states = torch.full((2, 64), 255, dtype=torch.uint8)
    return bool((_multiply(states, _pack(weight), torch.ones(64), 0) == 64 * 255 * 127).all())


class EightBitProduct:
    """states (..., columns) times a transposed QuantizedLinear's weight of 8 bits with one scale a row. Its weight is taken over:
    the plain one is gone. GLMError unsupported for another weight or device."""

    def __init__(self, linear: QuantizedLinear) -> None:
        weight = linear.weight
        if linear.bits != 8 or linear.groups != 1 or not has_onednn(weight.device):
            message = "w8a8 needs weights of 8 bits with one scale a row, and an x86 CPU with AVX2 or AVX-512."
            raise GLMError("unsupported", message, field="quantize")
        self.rows, self.columns = linear.rows, linear.columns
        self._scale = linear.weight_scale.flatten().float()
        self._row_sums = weight.sum(dim=1, dtype=torch.int32)
        self._own = native.has_eight_bit_products(weight.device)
        self._weight = native.arranged(weight) if self._own else _pack(weight)
        linear.weight = torch.empty(0, dtype=torch.int8)

    @property
    def nbytes(self) -> int:
        return self.rows * self.columns + 4 * self._row_sums.numel()

    @property
    def native(self) -> tuple[native.Matrix, Tensor] | None:
        """The matrix with its scales in fp32 and the rows' sums, if our own product is used."""
        return (
            (native.Matrix(self._weight, self.rows, self.columns, self._scale), self._row_sums) if self._own else None
        )

    @property
    def affine(self) -> Callable[[QuantizedLinear, Tensor, Tensor | None], Tensor] | None:
        """With bias and residual, if our own product is used."""
        if not self._own:
            return None
        return lambda linear, states, residual: self._own_product(
            states, linear.bias, None if residual is None else residual.contiguous()
        )

    def _own_product(self, states: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        return native.multiply8(self._weight, self._scale, self._row_sums, self.columns, states, bias, residual)

    def __call__(self, states: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        if self._own:
            return self._own_product(states.float()).to(states.dtype)
        flat = states.reshape(-1, self.columns).float()
        magnitude = flat.abs()
        outside = magnitude > OUTSIDE * magnitude.mean(dim=-1, keepdim=True)
        tokens = outside.any(dim=-1).nonzero()[:, 0]
        inner, inner_scale = _rounded(flat.masked_fill(outside, 0), 127)
        if len(tokens) == 0:
            found = self._integers(inner) * inner_scale
        else:
            outer, outer_scale = _rounded(flat[tokens].masked_fill(~outside[tokens], 0), _MOST16)
            high = ((outer + 128) / 256).floor()
            low = outer - 256 * high
            products = self._integers(torch.cat((inner, high, low)))
            own, high, low = products.split((len(flat), len(tokens), len(tokens)))
            found = own * inner_scale
            found[tokens] += (256 * high + low) * outer_scale
        return found.to(states.dtype).view(*states.shape[:-1], self.rows)

    def _integers(self, numbers: Tensor) -> Tensor:
        """Whole numbers -128 .. 127 in fp32, (n, columns) -> their products with the weight that is stood for."""
        raised = (numbers + 128).to(torch.uint8)
        if adds_exactly():
            return _multiply(raised, self._weight, self._scale, 128)
        halves = torch.cat((raised >> 4, raised & 15))
        high, low = _multiply(halves, self._weight, self._scale, 0).chunk(2)
        return 16 * high + low - 128 * (self._row_sums.float() * self._scale)


def _rounded(states: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """(whole numbers up to `most` in fp32, the scale of each row)."""
    scale = states.abs().amax(dim=-1, keepdim=True) / most
    return (states / scale.masked_fill(scale == 0, 1)).round(), scale


def _pack(weight: Tensor) -> Tensor:
    return torch.ops.onednn.qlinear_prepack(weight, None)


def _multiply(states: Tensor, packed: Tensor, scale: Tensor, zero: int) -> Tensor:
    """(states - zero) times the transposed weight times its rows' scales, summed as whole numbers, in fp32."""
    none = torch.zeros(len(scale), dtype=torch.int32)
    return torch.ops.onednn.qlinear_pointwise(
        states, 1.0, zero, packed, scale, none, None, 1.0, 0, torch.float32, "none", [], ""
    )
