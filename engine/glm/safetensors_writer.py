"""Write a safetensors file from front to back, tensor by tensor, with no tensor whole in memory. Torch-free.

The format: eight bytes with the length of a JSON header (name -> dtype, shape, range of bytes), the header, the tensors' bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

_ALIGNMENT = 8


class Described(Protocol):
    """A tensor to be written: dtype as the format names it, `nbytes` = numbers x bytes each."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...


Tensor = TypeVar("Tensor", bound=Described)


def header(tensors: Sequence[Described]) -> bytes:
    """The first bytes of a file of these tensors, in this order."""
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        described[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def file_size(tensors: Sequence[Described]) -> int:
    return len(header(tensors)) + sum(tensor.nbytes for tensor in tensors)


def write(
    path: Path,
    tensors: Sequence[Tensor],
    blocks: Callable[[Tensor], Iterable[memoryview]],
    written: Callable[[memoryview], None],
) -> None:
    """Write a file and make sure that it is on the disk. `written` is told every block, the header's first."""
    with path.open("wb") as file:
        start = header(tensors)
        file.write(start)
        written(memoryview(start))
        for tensor in tensors:
            count = 0
            for block in blocks(tensor):
                file.write(block)
                written(block)
                count += block.nbytes
            assert count == tensor.nbytes, tensor.name
        file.flush()
        os.fsync(file.fileno())
