"""Where a process of a run is: among the ranks that share one copy of the model, and among the copies.

Neighbours share a copy (their links are the fastest): rank = copy * tensor parallel size + place in the copy. DeepSpeed asks for
the same under Megatron's names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from engine.errors import GLMError
from engine.glm.parallel import SINGLE, Ranks


@dataclass(frozen=True, slots=True)
class Grid:
    """tensor: the ranks of this copy; data_rank of data_size copies; data_group: those with the same part in all copies."""

    rank: int = 0
    tensor: Ranks = SINGLE
    data_rank: int = 0
    data_size: int = 1
    data_group: Any = None

    @staticmethod
    def make(rank: int, world: int, tensor_parallel: int) -> Grid:
        """All processes must ask. GLMError bad_data if they can't be divided so."""
        if world % tensor_parallel:
            message = f"{world} processes can't be divided into copies of {tensor_parallel} each."
            raise GLMError("bad_data", message, field="scale.tensor_parallel", limit=world)
        if tensor_parallel == 1:
            return Grid(rank, SINGLE, rank, world)
        copies = world // tensor_parallel
        mine: dict[str, Any] = {}
        for copy in range(copies):
            members = [copy * tensor_parallel + place for place in range(tensor_parallel)]
            group = torch.distributed.new_group(members)
            if rank in members:
                mine["tensor"] = group
        for place in range(tensor_parallel):
            members = [copy * tensor_parallel + place for copy in range(copies)]
            group = torch.distributed.new_group(members)
            if rank in members:
                mine["data"] = group
        data_rank, place = divmod(rank, tensor_parallel)
        return Grid(rank, Ranks(place, tensor_parallel, mine["tensor"]), data_rank, copies, mine["data"])

    def sum_over_copies(self, tensor: torch.Tensor) -> torch.Tensor:
        """In place."""
        if self.data_size > 1:
            torch.distributed.all_reduce(tensor, group=self.data_group)
        return tensor

    # DeepSpeed's names

    def get_model_parallel_rank(self) -> int:
        return self.tensor.rank

    def get_model_parallel_world_size(self) -> int:
        return self.tensor.size

    def get_model_parallel_group(self) -> Any:
        return self.tensor.group

    def get_data_parallel_rank(self) -> int:
        return self.data_rank

    def get_data_parallel_world_size(self) -> int:
        return self.data_size

    def get_data_parallel_group(self) -> Any:
        return self.data_group
