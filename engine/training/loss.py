"""The training loss of a batch: cross-entropy over its targets, with the embedding's gradient shrunk as in GLM-130B."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from engine.glm.attention import MaskedAttention, packed_visible
from engine.glm.model import GLM
from engine.training.data import Batch


def shrunk(states: Tensor, share: float) -> Tensor:
    """The same values with `share` of the gradient: e * share + e.detach() * (1 - share) (GLM-130B, section 3.3)."""
    return states if share == 1.0 else states * share + states.detach() * (1 - share)


def batch_loss(
    model: GLM, batch: Batch, embedding_gradient: float = 1.0, checkpointing: bool = False
) -> tuple[Tensor, int]:
    """(sum of cross-entropy over the targets, their number). Logits are made only where a target is.

    embedding_gradient: the share of the gradient that reaches the embedding through the tokens that were looked up.
    checkpointing: activations within a layer are computed again in the backward pass instead of being kept.
    """
    device = model.device
    ids, positions, targets = (
        torch.from_numpy(array).to(device) for array in (batch.ids, batch.positions, batch.targets)
    )
    visible = packed_visible(torch.from_numpy(batch.document).to(device), torch.from_numpy(batch.context).to(device))
    embedded = shrunk(model.embed(ids), embedding_gradient)
    rotary, attention = model.rotary(positions), MaskedAttention(visible)
    if checkpointing:
        hidden = embedded
        for layer in model.layers:
            hidden = checkpoint(layer, hidden, rotary, attention, use_reentrant=False)
    else:
        hidden = model.run(embedded, rotary, attention)
    asked = targets >= 0
    loss = F.cross_entropy(model.logits(hidden[asked]).float(), targets[asked], reduction="sum")
    return loss, int(asked.sum())


class LossModule(torch.nn.Module):
    """What DeepSpeed wraps: forward gives the summed loss, so that its hooks see one forward and one backward."""

    def __init__(self, model: GLM, checkpointing: bool = False) -> None:
        super().__init__()
        self.model, self.checkpointing = model, checkpointing

    def forward(self, batch: Batch, embedding_gradient: float) -> tuple[Tensor, int]:
        return batch_loss(self.model, batch, embedding_gradient, self.checkpointing)
