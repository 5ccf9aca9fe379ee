"""Files read as one: seekable, read-only bytes of several files in a row, or of a range of them. Torch-free.

A tar archive that was cut into chunks (`glm-130b-sat.tar.part_aa`, `.part_ab`, ...) is read so, and the members in it, without
joining or extracting anything.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path

from engine.errors import GLMError

_CHUNK = re.compile(r"(?P<stem>.+\.tar(?:[._-]part)?[._-]?|.+[._-]part[._-]?)(?P<number>\d+|[a-z]{2,})")
_LETTERS = 26


class Parts(contextlib.AbstractContextManager):
    """The bytes of files, one behind the other; their sizes are those at the start."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = [Path(path) for path in paths]
        self.sizes: list[int] = []
        self.identity: list[tuple[str, int, int]] = []  # name, size, time of change in ns
        self._starts: list[int] = []
        self._open: dict[int, int] = {}
        self.size = 0
        for path in self.paths:
            about = path.stat()
            self._starts.append(self.size)
            self.sizes.append(about.st_size)
            self.identity.append((path.name, about.st_size, about.st_mtime_ns))
            self.size += about.st_size

    def read_at(self, offset: int, buffer: memoryview) -> int:
        """Fill a buffer of bytes from `offset` on; returns how many there were. GLMError bad_model if a file shrank."""
        done = 0
        index = bisect_right(self._starts, offset) - 1
        while done < len(buffer) and index < len(self.paths):
            within = offset + done - self._starts[index]
            if within >= self.sizes[index]:
                index += 1
                continue
            if index not in self._open:
                self._open[index] = os.open(self.paths[index], os.O_RDONLY | os.O_CLOEXEC)
            count = os.preadv(self._open[index], [buffer[done : done + self.sizes[index] - within]], within)
            if not count:
                raise GLMError("bad_model", f"{self.paths[index]} became shorter while it was read.", field="input")
            done += count
        return done

    def view(self) -> View:
        return View(self, 0, self.size)

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def __exit__(self, *_: object) -> None:
        self.close()


class View(io.RawIOBase):
    """A range of parts as a file. Closing it closes no file: `Parts` does."""

    def __init__(self, parts: Parts, start: int, size: int) -> None:
        super().__init__()
        self.parts, self.start, self.size = parts, start, size
        self._position = 0

    def window(self, offset: int, size: int) -> View:
        """A range of this one."""
        assert offset >= 0 and offset + size <= self.size
        return View(self.parts, self.start + offset, size)

    def read_at(self, offset: int, buffer: memoryview) -> int:
        """As `Parts.read_at`, within the range and without moving the position."""
        room = max(0, self.size - offset)
        return self.parts.read_at(self.start + offset, buffer[:room]) if room else 0

    def bytes_at(self, offset: int, count: int) -> bytes:
        """At most `count` bytes."""
        buffer = bytearray(min(count, max(0, self.size - offset)))
        return bytes(buffer[: self.read_at(offset, memoryview(buffer))])

    def readinto(self, buffer) -> int:  # type: ignore[override]  # what io.RawIOBase.read and BufferedReader call
        count = self.read_at(self._position, memoryview(buffer).cast("B"))
        self._position += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError("before the start of the file")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def is_chunk(path: Path) -> bool:
    """Whether a file's name is that of a chunk: `....tar.part_aa`, `.part_00`, `....tar.aa`, `....part00`."""
    return _CHUNK.fullmatch(path.name) is not None


def chunks(paths: Iterable[Path]) -> list[Path]:
    """Chunks of one archive in their order. GLMError bad_model if one is missing or they are of several archives."""
    found: dict[int, Path] = {}
    stems, widths = set(), set()
    for path in paths:
        match = _CHUNK.fullmatch(path.name)
        if match is None:
            raise GLMError("bad_model", f"{path} is not named as a chunk of an archive is (.part_aa).", field="input")
        stems.add((path.parent, match["stem"]))
        letters = not match["number"].isdigit()
        widths.add((letters, len(match["number"])))
        if letters:
            number = sum((ord(letter) - ord("a")) * _LETTERS**i for i, letter in enumerate(reversed(match["number"])))
        else:
            number = int(match["number"])
        found[number] = path
    if len(stems) > 1 or len({letters for letters, _ in widths}) > 1:
        names = sorted(f"{stem}*" for _, stem in stems)
        raise GLMError("bad_model", f"These are chunks of several archives: {', '.join(names)}.", field="input")
    ((_, stem),) = stems
    letters, width = max(widths, key=lambda kind: kind[1])
    first = 0 if 0 in found or letters or not _begins_archive(found[min(found)]) else 1
    missing = [number for number in range(first, max(found)) if number not in found]
    if missing:
        names = ", ".join(stem + _suffix(number, letters, width) for number in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise GLMError("bad_model", f"The chunk {names}{more} is missing in {path.parent}.", field="input")
    return [found[number] for number in sorted(found)]


def _suffix(number: int, letters: bool, width: int) -> str:
    if not letters:
        return f"{number:0{width}}"
    return "".join(chr(ord("a") + number // _LETTERS**place % _LETTERS) for place in reversed(range(width)))


def _begins_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(512)[257:262] == b"ustar"
