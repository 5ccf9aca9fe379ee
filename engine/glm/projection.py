"""What a layer asks of its matrices, whatever form they have: plain, packed, quantised, with an adapter."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F


class Projection:
    """Mixed into a module that has a bias. states: (..., columns), results: (..., rows)."""

    @abstractmethod
    def product(self, states: Tensor) -> Tensor:
        """Without the bias."""

    __call__: Callable[[Tensor], Tensor]  # with the bias

    def plus(self, states: Tensor, residual: Tensor) -> Tensor:
        """residual + the projection."""
        return residual + self(states)

    def gated(self, states: Tensor) -> Tensor:
        """GeGLU: the first half of the projection times the exact gelu of the second one. (..., rows / 2)."""
        value, gate = self(states).chunk(2, dim=-1)
        return value * F.gelu(gate)
