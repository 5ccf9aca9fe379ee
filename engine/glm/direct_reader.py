"""Reads files past the page cache (O_DIRECT), several megabytes at a time.

Weights that are larger than memory are read once a pass: the page cache would keep the wrong half of them, and push out
everything else. O_DIRECT wants file offset, length and memory address to be multiples of ALIGNMENT: whoever wants other
bytes reads the aligned range around them. Where a file system refuses O_DIRECT, pages are read through the cache and dropped.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import torch
from torch import Tensor

from engine.errors import GLMError

log = logging.getLogger(__name__)

ALIGNMENT = 4096
PIECE = 8 << 20  # bytes a read: large enough for the disk's full rate with two readers


def round_up(size: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def aligned_bytes(size: int, *, pinned: bool = False) -> Tensor:
    """uint8 (round_up(size),) at an aligned address. pinned: page-locked, for an accelerator to copy from."""
    length = round_up(size)
    whole = torch.empty(length + ALIGNMENT, dtype=torch.uint8, pin_memory=pinned)
    start = -whole.data_ptr() % ALIGNMENT
    return whole[start : start + length]


class DirectFile:
    """An open file: it stays the same file if another takes its name. Error: bad_model if it can't be opened."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self._file = open(path, "rb", buffering=0, opener=self._open)  # noqa: SIM115 (close() closes it)
        except OSError as error:
            raise GLMError("bad_model", f"{path} can't be opened: {error.strerror}.", field="model") from error
        self.size = os.fstat(self._file.fileno()).st_size

    def _open(self, path: str, flags: int) -> int:
        self.direct = True
        try:
            return os.open(path, flags | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        log.warning("%s: this file system has no O_DIRECT, reads go through the page cache", path)
        self.direct = False
        return os.open(path, flags)

    def read(self, target: Tensor, offset: int, wanted: int) -> None:
        """The aligned range from `offset` on into target (uint8, aligned), of which the first `wanted` bytes must be there.

        Error: bad_model if the file ends before them, or the disk fails.
        """
        view = memoryview(target.numpy())
        done = 0
        while True:
            try:
                end = done + os.preadv(self._file.fileno(), [view[done:]], offset + done)
            except OSError as error:
                raise GLMError("bad_model", f"{self.path} can't be read: {error.strerror}.", field="model") from error
            if end >= wanted:
                break
            if end < done + ALIGNMENT:
                message = f"{self.path} was cut short: it ends before byte {offset + wanted}."
                raise GLMError("bad_model", message, field="model")
            done = end - end % ALIGNMENT
        if not self.direct:
            os.posix_fadvise(self._file.fileno(), offset, len(view), os.POSIX_FADV_DONTNEED)

    def part(self, offset: int, size: int) -> bytes:
        """Any few bytes. Error: bad_model as in `read`."""
        lead = offset % ALIGNMENT
        around = aligned_bytes(lead + size)
        self.read(around, offset - lead, lead + size)
        return around[lead : lead + size].numpy().tobytes()

    def close(self) -> None:
        self._file.close()
