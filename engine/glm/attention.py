"""Attention over a whole sequence, for training, scoring and tests. Serving brings its own over a cache.

An attention is called as `attention(layer, query, key, value)` with tensors (batch, length, heads, head_dim), rotated
but not scaled, and returns the context in the same shape. Scores are scaled by 1/sqrt(head_dim): the layer factor that
GLM-130B's code multiplies in and divides out again cancels. The softmax runs in fp32 inside torch's kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None) -> Tensor:
    """Scaled dot-product attention on (batch, length, heads, head_dim). visible: bool, broadcast to (batch, heads, q, k)."""
    context = F.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=visible
    )
    return context.transpose(1, 2)


class MaskedAttention:
    """Every row sees the columns where `visible` (batch, 1, length, length) is True."""

    def __init__(self, visible: Tensor) -> None:
        self.visible = visible

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(query, key, value, self.visible)


def prefix_visible(length: int, context_length: Tensor) -> Tensor:
    """GLM's mask, (batch, 1, length, length), True = visible: columns before context_length (batch,) for all rows, then causal."""
    columns = torch.arange(length, device=context_length.device)
    causal = columns[None, :] <= columns[:, None]
    context = columns[None, None, :] < context_length[:, None, None]
    return (causal[None] | context).unsqueeze(1)


def packed_visible(document: Tensor, context: Tensor) -> Tensor:
    """The mask of several samples packed in one row: (batch, 1, length, length), True = visible.

    document (batch, length): the number of the sample a token belongs to, 0 for padding; context (batch, length): True
    where the token belongs to its sample's bidirectional part. A padding token sees itself, so that no row is empty.
    """
    length = document.shape[1]
    order = torch.arange(length, device=document.device)
    causal = order[None, :] <= order[:, None]
    same = (document[:, :, None] == document[:, None, :]) & (document > 0)[:, None, :]
    visible = same & (causal[None] | context[:, None, :])
    return (visible | torch.eye(length, dtype=torch.bool, device=document.device)[None]).unsqueeze(1)
