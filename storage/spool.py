"""Writes that the database can't take now wait in files, one JSON object a line, in the order in which they were asked for.

    spool = Spool(folder, limit=1 << 30)
    spool.open()                        # takes the folder; StorageError if another process has it
    spool.append([{...}, {...}])        # on the disk when it returns
    while entries := spool.read():      # the oldest ones; again the same until `done`
        ...
        spool.done()

A folder belongs to one process at a time (`lock`). Its files are segments, `000001.jsonl` ...; one is removed when all of its
lines are written elsewhere, so a crash meanwhile gives some lines again: whoever replays them must bear that. Half a last line,
which a crash or a full disk leaves, was never promised to anybody; it is counted and left out, as are lines that can't be read
(both are kept in `damaged.txt`). `reserve` is room on the disk that the first segment uses up, so that a full disk can be bridged
from the disk that is full. Only the owner can read the files: they hold what visitors typed. Every call may block for the disk.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from storage.errors import StorageError
from storage.locks import take

SEGMENT_BYTES = 8 << 20  # a segment that is longer is followed by a new one
READ_BYTES = 1 << 20  # about as much is read at once
LOCK, RESERVE, DAMAGED = "lock", "reserve", "damaged.txt"

Given = ParamSpec("Given")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


def _one_at_a_time(
    method: Callable[Concatenate[Spool, Given], Result],
) -> Callable[Concatenate[Spool, Given], Result]:
    @wraps(method)
    def alone(self: Spool, *positional: Given.args, **named: Given.kwargs) -> Result:
        with self._one_thread:
            return method(self, *positional, **named)

    return alone


class Spool:
    """`limit`: bytes that may wait. `reserve`: bytes of the disk that are kept for it in advance."""

    def __init__(self, folder: Path, limit: int, reserve: int = 0) -> None:
        self.folder = folder
        self.limit = limit
        self.damaged = 0  # lines that couldn't be read
        self._reserve = reserve
        self._one_thread = threading.RLock()
        self._lock: int | None = None
        self._segments: dict[int, int] = {}  # number -> bytes of whole lines
        self._file: int | None = None  # the last segment, if it is one of this process
        self._position = (0, 0)  # segment and byte of the first line that is not done
        self._ahead = (0, 0)  # the same behind what was read last
        self._lines = 0  # how many were read last
        self._unreadable: list[bytes] = []  # among them
        self.waiting = 0  # lines that are not done

    @_one_at_a_time
    def open(self) -> None:
        """Take the folder, made if it is missing, and look what waits there. Raises `StorageError`."""
        with _named():
            for folder in (self.folder.parent, self.folder):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = take(self.folder / LOCK)
            if self._lock is None:
                raise StorageError(
                    "database_unavailable",
                    "Another process uses the folder of unwritten runs: give each server a name of its own "
                    "(--server-name).",
                )
            for path in sorted(self.folder.glob("[0-9]*.jsonl")):
                content = path.read_bytes().partition(b"\0")[0]
                whole, newline, half = content.rpartition(b"\n")
                if half:
                    self._set_aside(half)
                if not whole:
                    path.unlink()
                    continue
                self._segments[int(path.stem)] = len(whole) + len(newline)
                self.waiting += content.count(b"\n")
                os.truncate(path, len(whole) + len(newline))
            self._position = self._ahead = (min(self._segments, default=0), 0)
            self._keep_reserve()

    @_one_at_a_time
    def close(self) -> None:
        """Give the folder back; one that holds nothing is removed."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._lock is not None:
            for number in [number for number, length in self._segments.items() if not length]:
                self._path(number).unlink(missing_ok=True)
                del self._segments[number]
            if not self._segments:
                for name in (RESERVE, LOCK):
                    (self.folder / name).unlink(missing_ok=True)
                with suppress(OSError):  # not empty: what couldn't be read is kept
                    self.folder.rmdir()
            os.close(self._lock)
            self._lock = None

    @_one_at_a_time
    def append(self, entries: Sequence[dict[str, Any]]) -> None:
        """All of them, or none. Raises `StorageError("disk_full")` where the limit or the disk is reached."""
        data = b"".join(_line(entry) for entry in entries)
        if sum(self._segments.values()) + len(data) > self.limit:
            raise StorageError("disk_full", "As many unwritten runs wait as may wait.")
        with _named():
            if self._file is None or self._segments[max(self._segments)] >= SEGMENT_BYTES:
                self._begin_segment()
            assert self._file is not None
            number = max(self._segments)
            length = self._segments[number]
            try:
                written = 0
                while written < len(data):
                    written += os.pwrite(self._file, data[written:], length + written)
                os.fsync(self._file)
            except OSError:
                # What was written in part must not stand before the next line.
                os.ftruncate(self._file, length)
                raise
            self._segments[number] = length + len(data)
            self.waiting += len(entries)

    @_one_at_a_time
    def read(self) -> list[dict[str, Any]]:
        """The oldest entries that are not done, about a megabyte of them; none if there are none. Raises `StorageError`."""
        number, begin = self._position
        self._ahead, self._lines, self._unreadable = self._position, 0, []
        if self._segments.get(number, 0) <= begin:
            return []
        with _named(), self._path(number).open("rb") as file:
            file.seek(begin)
            data = file.read(min(READ_BYTES, self._segments[number] - begin))
            data += b"" if data.endswith(b"\n") else file.readline()
        self._ahead, lines = (number, begin + len(data)), data.splitlines()
        self._lines = len(lines)
        entries = []
        for line in lines:
            try:
                entries.append(json.loads(line.decode("utf-8", "surrogatepass")))
            except ValueError:
                self._unreadable.append(line)
        if not entries:
            self.done()
            return self.read()
        return entries

    @_one_at_a_time
    def done(self) -> None:
        """What `read` gave last is written elsewhere for good. Raises `StorageError`."""
        for line in self._unreadable:
            self._set_aside(line)
        number, end = self._position = self._ahead
        self.waiting, self._lines, self._unreadable = self.waiting - self._lines, 0, []
        if number in self._segments and end >= self._segments[number]:
            with _named():
                if number == max(self._segments) and self._file is not None:
                    os.close(self._file)
                    self._file = None
                self._path(number).unlink()
                self._sync_folder()
                del self._segments[number]
                self._position = self._ahead = (min(self._segments, default=0), 0)
                self._keep_reserve()

    @_one_at_a_time
    def set_aside(self, entry: dict[str, Any]) -> None:
        """Keep an entry that can't be written to the database in `damaged.txt`."""
        self._set_aside(_line(entry).rstrip())

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.jsonl"

    def _begin_segment(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        number = max(self._segments, default=0) + 1
        with suppress(FileNotFoundError):
            (self.folder / RESERVE).rename(self._path(number))
        self._file = os.open(self._path(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._sync_folder()
        self._segments[number] = 0
        if self._position[0] not in self._segments:
            self._position = self._ahead = (number, 0)

    def _keep_reserve(self) -> None:
        """Take room on the disk in advance; where there is none, at the next occasion."""
        if not self._reserve or (self.folder / RESERVE).exists():
            return
        handle = os.open(self.folder / RESERVE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(handle, 0, self._reserve)
        except OSError as error:
            logger.warning("no room can be kept for unwritten runs: %s", error.strerror)
            (self.folder / RESERVE).unlink()
        finally:
            os.close(handle)

    def _set_aside(self, line: bytes) -> None:
        self.damaged += 1
        logger.error("a line of the unwritten runs can't be used; it is kept in %s", self.folder / DAMAGED)
        handle = os.open(self.folder / DAMAGED, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(handle, line + b"\n")
        finally:
            os.close(handle)

    def _sync_folder(self) -> None:
        handle = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _named() -> Iterator[None]:
    """Errors of the file system as `StorageError`s."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError("disk_full", "The disk that holds the unwritten runs is full.") from error
        raise StorageError("database_unavailable", "The folder for unwritten runs can't be used.") from error


def _line(entry: dict[str, Any]) -> bytes:
    # Half of a surrogate pair may be among what visitors type; the database's own columns deal with it later.
    return (json.dumps(entry, ensure_ascii=False, separators=(",", ":")) + "\n").encode("utf-8", "surrogatepass")
