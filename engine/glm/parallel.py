"""How a model is split over tensor parallel ranks: the one table of what is split along what, and the ranks' exchange.

Megatron's scheme (arXiv 1909.08053), as in GLM-130B: the projections to query/key/value (whole heads) and to the gated
inner width are split by rows, each gate half on its own; the projections back are split by columns, their partial products
summed, their biases added once; embedding and logits are split over the vocabulary. Everything else is in all ranks. Of an
adapter's product B A (lora.py) the factor that has the split dimension is split as the matrix is, the other one is in all ranks.
The same table cuts and joins the files of SwissArmyTransformer checkpoints.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import GLMError
from engine.glm.config import check_groups

ROWS, HALVES, COLUMNS, WHOLE = "rows", "halves", "columns", "whole"


def partition(name: str) -> str:
    """How the tensor of a name (a parameter's, or `...weight_scale`) is split: ROWS, HALVES (of the rows), COLUMNS or WHOLE."""
    module, _, kind = name.rpartition(".")
    columns = module.endswith(("attention.dense", "mlp.dense_4h_to_h"))
    if kind == ("lora_b" if columns else "lora_a"):
        return WHOLE
    if module == "word_embeddings" or module.endswith("attention.query_key_value"):
        return ROWS
    if module.endswith("mlp.dense_h_to_4h"):
        return HALVES
    if columns and kind != "bias":
        return COLUMNS
    return WHOLE


def slices(how: str, shape: Sequence[int], rank: int, size: int) -> list[tuple[slice, ...]]:
    """Where a rank's part lies in a whole tensor; several pieces are joined along dimension 0.

    GLMError unsupported if it doesn't come out even.
    """
    if how == WHOLE or size == 1:
        return [(slice(None),) * len(shape)]
    dimension = 1 if how == COLUMNS else 0
    pieces = 2 if how == HALVES else 1
    length = shape[dimension] // pieces // size
    if length * pieces * size != shape[dimension]:
        raise GLMError("unsupported", f"{shape[dimension]} can't be split over {size} ranks.", field="tensor_parallel")
    starts = [piece * length * size + rank * length for piece in range(pieces)]
    cut = [slice(start, start + length) for start in starts]
    return [(slice(None), part) if dimension else (part,) for part in cut]


def scale_slice(groups: int, rank: int, size: int) -> slice:
    """The scales of a rank's columns, of `groups` scales a row of a matrix that is split by columns.

    GLMError unsupported where a rank's columns would end inside a group.
    """
    check_groups(groups, size)
    if groups % size == 0:
        return slice(rank * groups // size, (rank + 1) * groups // size)
    return slice(rank * groups // size, rank * groups // size + 1)  # several ranks lie in one group and share its scale


def join(how: str, parts: Sequence[Tensor]) -> Tensor:
    """The whole tensor from the ranks' parts: the inverse of `slices`. Of WHOLE tensors the first is taken."""
    if how == WHOLE or len(parts) == 1:
        return parts[0]
    if how == HALVES:
        halves = [part.chunk(2, dim=0) for part in parts]
        return torch.cat([half[0] for half in halves] + [half[1] for half in halves])
    return torch.cat(list(parts), dim=1 if how == COLUMNS else 0)


@dataclass(frozen=True, slots=True)
class Ranks:
    """One rank among `size`, and how it exchanges tensors with the others; a single rank exchanges nothing."""

    rank: int = 0
    size: int = 1
    group: Any = None  # of torch.distributed; None: the default one

    def enter(self, tensor: Tensor) -> Tensor:
        """What all ranks have, on its way into products that each rank has a part of: its gradient is the sum of theirs."""
        return _Enter.apply(tensor, self) if self.size > 1 and _differentiated(tensor) else tensor

    def reduce(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place where no gradient is asked for."""
        if self.size == 1:
            return tensor
        if _differentiated(tensor):
            return _Sum.apply(tensor, self)
        torch.distributed.all_reduce(tensor, group=self.group)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """(..., n) of each rank -> (..., size * n), in the order of the ranks."""
        if self.size == 1:
            return tensor
        if _differentiated(tensor):
            return _Gather.apply(tensor, self)
        return self._gathered(tensor)

    def _gathered(self, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        torch.distributed.all_gather(parts, tensor.contiguous(), group=self.group)
        return torch.cat(parts, dim=-1)


def _differentiated(tensor: Tensor) -> bool:
    return torch.is_grad_enabled() and tensor.requires_grad


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].clone()
        torch.distributed.all_reduce(gradient, group=ctx.ranks.group)
        return gradient, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        total = tensor.clone()
        torch.distributed.all_reduce(total, group=ranks.group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None  # what follows is the same in all ranks, and so is its gradient


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks._gathered(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].chunk(ctx.ranks.size, dim=-1)[ctx.ranks.rank], None


SINGLE = Ranks()


def connect(rendezvous: Path, rank: int, size: int, device: torch.device) -> Ranks:
    """Join the other ranks of this machine; returns when all have come. One group a process.

    rendezvous: a file that none but these ranks use, where they tell each other their addresses; no port is fixed. It may
    be deleted when every rank has been connected and has exchanged a tensor.
    """
    if device.type == "cpu" and sys.platform == "linux":
        # Else gloo listens where the host's name leads, which may be nowhere; the ranks are all on this machine.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if device.index is not None:
        torch.accelerator.set_device_index(device.index)
    torch.distributed.init_process_group(
        torch.distributed.get_default_backend_for_device(device),
        store=torch.distributed.FileStore(str(rendezvous), size),
        rank=rank,
        world_size=size,
    )
    return Ranks(rank, size)
