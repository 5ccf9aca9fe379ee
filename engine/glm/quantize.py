"""Weights as whole numbers of 8 or 4 bits with fp16 scales, and the linear layer that computes with them.

The numbers are GLM-130B's own: scale = fp16(largest magnitude / 127 or / 7), q = round-half-even(fp16(weight / scale)), and the
weight stands for fp16(q * scale). Four bits: the column 2j in the high nibble of byte j, 2j+1 in the low one. A scale covers
columns / groups columns of a row. Activations are never rounded to whole numbers, biases are kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LARGEST = {8: 127, 4: 7}


def quantize_weight(weight: Tensor, bits: int, groups: int = 1) -> tuple[Tensor, Tensor]:
    """(rows, columns) floats -> int8 (rows, columns), or (rows, columns / 2) for 4 bits, and scales fp16 (rows, groups)."""
    rows, columns = weight.shape
    grouped = weight.to(torch.float16).view(rows, groups, columns // groups)
    scale = grouped.abs().amax(dim=-1, keepdim=True) / LARGEST[bits]
    # A row of zeros has no scale: it stays zeros.
    numbers = (grouped / scale.masked_fill(scale == 0, 1)).round().clamp(-LARGEST[bits], LARGEST[bits])
    numbers = numbers.to(torch.int8).view(rows, columns)
    return (pack_nibbles(numbers) if bits == 4 else numbers), scale.view(rows, groups)


def dequantize_weight(numbers: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The weight that is stood for, fp16 (rows, columns)."""
    numbers = unpack_nibbles(numbers) if bits == 4 else numbers
    rows, columns = numbers.shape
    grouped = numbers.view(rows, scale.shape[1], -1).to(torch.float16)
    return (grouped * scale[:, :, None]).view(rows, columns)


def pack_nibbles(numbers: Tensor) -> Tensor:
    """int8 (rows, columns) in -8 .. 7 -> int8 (rows, columns / 2)."""
    return (numbers[:, 0::2] << 4) | (numbers[:, 1::2] & 0x0F)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """The inverse of `pack_nibbles`."""
    return torch.stack((packed >> 4, (packed << 4) >> 4), dim=-1).flatten(1)


class QuantizedLinear(nn.Module):
    """A linear layer with a quantised weight. Made empty: checkpoint.load fills `weight`, `weight_scale` and `bias`."""

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
        self.bits = bits
        factory: dict[str, Any] = {"device": device}
        self.register_buffer("weight", torch.empty(rows, columns * bits // 8, dtype=torch.int8, **factory))
        self.register_buffer("weight_scale", torch.empty(rows, groups, dtype=torch.float16, **factory))
        self.bias = nn.Parameter(torch.empty(rows, dtype=dtype, **factory), requires_grad=False)

    def product(self, states: Tensor) -> Tensor:
        """Without the bias."""
        return F.linear(states, dequantize_weight(self.weight, self.weight_scale, self.bits).to(states.dtype))

    def forward(self, states: Tensor) -> Tensor:
        return self.product(states) + self.bias
