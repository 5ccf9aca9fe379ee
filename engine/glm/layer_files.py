"""Where tensors lie in files, byte for byte, and the pieces in which they are brought into memory.

Reads the header that safetensors files begin with (8 bytes of length, then JSON). `write` makes files with the same header
whose tensors begin at multiples of ALIGNMENT: those are read straight into place. From any other file the range around a
piece is read into a small buffer first, and copied, converted if the memory is of another type.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.errors import GLMError
from engine.glm.direct_reader import ALIGNMENT, PIECE, DirectFile, round_up

TYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in TYPES.items()}
# Larger copies make torch start threads, which would take the cores from the layer that computes.
_SINGLE_THREADED = 1 << 15  # elements
_LONGEST_HEADER = 100 << 20  # bytes, as in the safetensors library


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor in a file: `offset` in bytes from the file's beginning."""

    file: DirectFile
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a tensor on its way to memory: `target`, one dimension, maybe of another type or on an accelerator.

    room: the target's own bytes, aligned and rounded up, where it lies in this process' memory; None elsewhere.
    """

    file: DirectFile
    offset: int
    dtype: torch.dtype
    target: Tensor
    room: Tensor | None

    def bring(self, staging: Tensor) -> None:
        """Read it. staging: aligned bytes, PIECE and 2 * ALIGNMENT of them. Error: bad_model (DirectFile.read)."""
        size = self.target.numel() * self.dtype.itemsize
        lead = self.offset % ALIGNMENT
        if self.room is not None and lead == 0 and self.dtype == self.target.dtype:
            self.file.read(self.room, self.offset, size)
            return
        self.file.read(staging[: round_up(lead + size)], self.offset - lead, lead + size)
        read = staging[lead : lead + size]
        if lead % self.dtype.itemsize:  # a view of another type must begin at a multiple of its size
            read = read.clone()
        copy(read.view(self.dtype), self.target)


def copy(source: Tensor, target: Tensor) -> None:
    """Source into target, both of one dimension, in this thread alone."""
    step = _SINGLE_THREADED if target.device.type == "cpu" else max(1, len(target))
    for part, place in zip(source.split(step), target.split(step), strict=True):
        place.copy_(part)


def pieces(place: Place, target: Tensor, room: Tensor | None) -> Iterator[Piece]:
    """A whole tensor. target: contiguous; room: its bytes, as in Piece."""
    flat = target.view(-1)
    step = PIECE // place.dtype.itemsize
    for start in range(0, flat.numel(), step):
        part = flat[start : start + step]
        first = start * place.dtype.itemsize
        own = None
        if room is not None and place.dtype == target.dtype:
            own = room[first : first + round_up(part.numel() * place.dtype.itemsize)]
        yield Piece(place.file, place.offset + first, place.dtype, part, own)


def places(file: DirectFile) -> dict[str, Place]:
    """The tensors of a file. Error: bad_model if it isn't a whole one."""
    problem = f"{file.path} is not a whole safetensors file"
    length = int.from_bytes(file.part(0, 8), "little")
    if length > min(_LONGEST_HEADER, file.size - 8):
        raise GLMError("bad_model", f"{problem}: its header is cut short.", field="model")
    found = {}
    try:
        header = json.loads(file.part(8, length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            first, last = entry["data_offsets"]
            place = Place(file, 8 + length + first, TYPES[entry["dtype"]], tuple(entry["shape"]))
            if place.size != last - first:
                raise ValueError(f"{name} has another size than its shape")
            found[name] = place
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GLMError("bad_model", f"{problem} ({error}).", field="model") from error
    for name, place in found.items():
        if place.offset + place.size > file.size:
            raise GLMError("bad_model", f"{file.path} was cut short: {name} ends behind it.", field="model")
    return found


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Tensors (CPU) to a file that is read straight into place. Whole or not at all; dropped from the page cache."""
    header: dict[str, object] = {}
    end = 0
    for name, tensor in tensors.items():
        start = round_up(end)
        end = start + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (round_up(8 + len(text)) - 8 - len(text))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors.values():
                file.seek(round_up(file.tell()))
                file.write(memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy()))
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def file_size(sizes: Iterable[int]) -> int:
    """About the bytes that `write` takes for tensors of so many bytes each."""
    return ALIGNMENT + sum(map(round_up, sizes))
