"""Muon for the matrices of the layers, AdamW for embedding, norms and biases, as one torch optimiser.

Muon (Jordan et al. 2024): the momentum of a matrix is replaced by its nearest semi-orthogonal matrix, found with five
Newton-Schulz steps, and scaled by 0.2 * sqrt(max(rows, columns)), so that its size is AdamW's and one learning rate
serves both (Liu et al., arXiv 2502.16982). At small token budgets it needs about half the steps of AdamW.

Newton-Schulz costs the same however few rows a step has. Of several processes with a copy each, every one does it for some
of the matrices and sends the others what came out: the numbers are those of one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """The semi-orthogonal factor of (rows, columns), nearly: singular values end between about 0.7 and 1.2."""
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


class MuonAdamW(torch.optim.Optimizer):
    """Parameter groups with `muon: True` hold matrices, the others anything. weight_decay is decoupled in both.

    rank among `copies` processes that hold the same parameters and gradients.
    """

    def __init__(
        self,
        groups: Iterable[dict],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        *,
        rank: int = 0,
        copies: int = 1,
    ) -> None:
        self._rank, self._copies = rank, copies
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "muon": False,
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One update of all parameters that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            given = [parameter for parameter in group["params"] if parameter.grad is not None]
            updates = self._muon(given, group) if group["muon"] else (self._adamw(one, group) for one in given)
            for parameter, update in zip(given, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"])

    def _muon(self, parameters: list[Tensor], group: dict) -> list[Tensor]:
        owners = shares([parameter.numel() for parameter in parameters], self._copies)
        directions = []
        for parameter, owner in zip(parameters, owners, strict=True):
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])  # in every process: any of them may save it
            if owner == self._rank:
                nesterov = parameter.grad.lerp(state["momentum"], group["momentum"])
                direction = orthogonalise(nesterov) * (0.2 * max(parameter.shape) ** 0.5)
                directions.append(direction.contiguous())
            else:
                directions.append(torch.empty_like(parameter))
        if self._copies > 1:
            sent = [
                torch.distributed.broadcast(direction, src=owner, async_op=True)
                for direction, owner in zip(directions, owners, strict=True)
            ]
            for one in sent:
                one.wait()
        return directions

    def _adamw(self, parameter: Tensor, group: dict) -> Tensor:
        state = self.state[parameter]
        if not state:
            state.update(step=torch.zeros(()), mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
        state["step"] += 1
        beta1, beta2 = group["betas"]
        state["mean"].lerp_(parameter.grad, 1 - beta1)
        state["square"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
        step = float(state["step"])
        denominator = (state["square"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
        return state["mean"] / (1 - beta1**step) / denominator


def shares(sizes: Sequence[int], owners: int) -> list[int]:
    """Who does which work of these sizes, so that all have about the same: the largest first, each to whom has least."""
    loads, chosen = [0] * owners, [0] * len(sizes)
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        chosen[place] = loads.index(min(loads))
        loads[chosen[place]] += sizes[place]
    return chosen


def parameter_groups(model: nn.Module, lr: float, embedding_lr: float, weight_decay: float) -> list[dict]:
    """Matrices of the layers for Muon; the embedding, and norms with biases (without decay), for AdamW."""
    matrices, *others = adamw_groups(model, lr, embedding_lr, weight_decay)
    return [matrices | {"muon": True}, *others]


def adamw_groups(model: nn.Module, lr: float, embedding_lr: float, weight_decay: float) -> list[dict]:
    """Matrices of the layers, with decay; the embedding; norms with biases."""
    matrices, vectors, embedding = [], [], []
    for name, parameter in model.named_parameters():
        (embedding if "word_embeddings" in name else matrices if parameter.dim() == 2 else vectors).append(parameter)
    return [
        {"params": matrices, "lr": lr, "weight_decay": weight_decay},
        {"params": embedding, "lr": embedding_lr, "weight_decay": 0.0},
        {"params": vectors, "lr": lr, "weight_decay": 0.0},
    ]
