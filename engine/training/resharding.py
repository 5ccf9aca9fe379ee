"""A saved state of tensor parallel ranks, cut anew for another number of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.glm.parallel import Ranks, join, partition, slices


def resharded(paths: Sequence[Path], names: Sequence[str], ranks: Ranks) -> dict[str, Any]:
    """One rank's {"model", "optimizer"} of what so many ranks saved, in their order.

    names: of the parameters, as the optimizer counts them. Its states that have a parameter's shape are split as it is. The files
    are mapped: beside the result one whole tensor is in memory. GLMError unsupported where the sizes don't come out even.
    """
    parts = [torch.load(path, map_location="cpu", weights_only=True, mmap=True) for path in paths]

    def cut(name: str, tensors: list[Tensor]) -> Tensor:
        if tensors[0].dim() == 0:  # a counter of steps
            return tensors[0]
        how = partition(name)
        whole = join(how, tensors)
        return torch.cat([whole[piece] for piece in slices(how, whole.shape, ranks.rank, ranks.size)])

    states = [part["optimizer"]["state"] for part in parts]
    return {
        "model": {name: cut(name, [part["model"][name] for part in parts]) for name in parts[0]["model"]},
        "optimizer": {
            "state": {
                index: {key: cut(names[index], [state[index][key] for state in states]) for key in states[0][index]}
                for index in states[0]
            },
            "param_groups": parts[0]["optimizer"]["param_groups"],
        },
    }
