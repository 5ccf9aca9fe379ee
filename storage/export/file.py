"""An export into a file that is there whole or not at all, and that goes on where it was broken off.

    manifest = await write_export(export, Path("runs.jsonl"))

While it is being made, FILE.part holds what is complete and FILE.part.json says how far that goes and which selection it is of;
both are replaced by the file and FILE.manifest.json at the end. Whatever ends the process in between, the same command goes on
behind the last complete part, to the same bytes as without a break. Parquet can't be continued: its parts are files of their own,
FILE.part.0, FILE.part.1 ..., that are joined at the end.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from storage.errors import StorageError
from storage.export import parquet
from storage.export.job import Export, Tally
from storage.locks import take
from storage.run_batches import SIZE, Cursor

SAVED_RUNS = 2000  # between two states
CHUNK_BYTES = 1 << 20

Progress = Callable[[Tally], None]


@dataclass(slots=True)
class _State:
    """How far FILE.part goes: its `bytes` (or `pieces`), the last run in it."""

    until: datetime
    cursor: Cursor | None = None
    bytes: int = 0
    pieces: int = 0
    tally: Tally = field(default_factory=Tally)


async def write_export(
    export: Export,
    path: Path,
    *,
    restart: bool = False,
    progress: Progress | None = None,
    saved_runs: int = SAVED_RUNS,
    size: int = SIZE,
) -> dict[str, Any]:
    """Write the file and the manifest beside it; the manifest. `restart` throws away what there is of a former one.

    Raises `StorageError`: `conflict` if the file is there already, is being written by another process, or if a part of another
    selection or format lies there; `disk_full`; OSError for the folder.
    """
    if path.exists():
        raise StorageError("conflict", f"{path.name} is there already. Move it away, or name another file.")
    lock = take(_beside(path, ".part.lock"))
    if lock is None:
        raise StorageError("conflict", f"Another process is writing {path.name}.")
    try:
        work = _Work(export, path, saved_runs, size)
        await work.write(restart, progress)
        manifest = await work.finish()
        _beside(path, ".part.lock").unlink()
        return manifest
    finally:
        os.close(lock)


class _Work:
    def __init__(self, export: Export, path: Path, saved_runs: int, size: int) -> None:
        self.export = export
        self.path = path
        self.part = _beside(path, ".part")
        self.state_file = _beside(path, ".part.json")
        self.saved_runs = saved_runs
        self.size = size
        self.columnar = export.format.encoding == "parquet"
        self.state = _State(export.selection.until)

    async def write(self, restart: bool, progress: Progress | None) -> None:
        """All rows into parts."""
        found = None if restart else self._read_state()
        if found is None:
            self._remove_parts()
            if not self.columnar:
                self.part.write_bytes(await self.export.head())
                self.state.bytes = self.part.stat().st_size
            self._save_state()
        else:
            self.state = found
            self.export.selection = replace(self.export.selection, until=found.until)
            self.export.tally = found.tally
            if not self.columnar:
                os.truncate(self.part, found.bytes)
        rows: list[dict[str, Any]] = []
        cursor, saved = self.state.cursor, self.export.tally.runs
        async for batch in self.export.batches(cursor, size=self.size):
            rows += batch.rows
            cursor = batch.cursor
            if self.export.tally.runs - saved >= self.saved_runs:
                await asyncio.to_thread(self._save, rows, cursor)
                rows, saved = [], self.export.tally.runs
                if progress is not None:
                    progress(self.export.tally)
        if rows or cursor != self.state.cursor:
            await asyncio.to_thread(self._save, rows, cursor)

    async def finish(self) -> dict[str, Any]:
        """The file and its manifest in their places."""
        await asyncio.to_thread(self._join)
        manifest = await self.export.manifest(self.path.name)
        written = _beside(self.path, ".manifest.json")
        _replace(written, json.dumps(manifest, ensure_ascii=False, indent=2).encode() + b"\n")
        self.part.replace(self.path)
        self._remove_parts()
        return manifest

    def _save(self, rows: list[dict[str, Any]], cursor: Cursor | None) -> None:
        if self.columnar:
            if rows:
                piece = self._piece(self.state.pieces)
                parquet.write_piece(rows, piece)
                _sync(piece)
                self.state.pieces += 1
        else:
            with self.part.open("ab") as file:
                file.write(self.export.encoded(rows))
                file.flush()
                os.fsync(file.fileno())
                self.state.bytes = file.tell()
        self.state.cursor = cursor
        self._save_state()

    def _join(self) -> None:
        if self.columnar:
            parquet.join_pieces(map(self._piece, range(self.state.pieces)), self.part)
            _sync(self.part)
        self.export.hash, self.export.bytes = hashlib.sha256(), self.part.stat().st_size
        with self.part.open("rb") as file:
            while data := file.read(CHUNK_BYTES):
                self.export.hash.update(data)

    def _request(self) -> dict[str, Any]:
        """What must be the same for going on."""
        selection = self.export.selection
        return {
            "format": self.export.format.name,
            "filters": selection.filter.as_dict(),
            "redaction": selection.redact,
        }

    def _save_state(self) -> None:
        state = self.state
        values = {
            "request": self._request(),
            "until": state.until.isoformat(),
            "cursor": None if state.cursor is None else [state.cursor[0].isoformat(), state.cursor[1]],
            "bytes": state.bytes,
            "pieces": state.pieces,
            "tally": self.export.tally.as_dict(),
        }
        _replace(self.state_file, json.dumps(values, ensure_ascii=False).encode())

    def _read_state(self) -> _State | None:
        """What there is to go on with, None for nothing."""
        if not self.state_file.exists() or not (self.part.exists() or self._piece(0).exists()):
            return None
        try:
            values = json.loads(self.state_file.read_bytes())
            cursor = values["cursor"]
            state = _State(
                datetime.fromisoformat(values["until"]),
                None if cursor is None else (datetime.fromisoformat(cursor[0]), cursor[1]),
                values["bytes"],
                values["pieces"],
                Tally.read(values["tally"]),
            )
            request = values["request"]
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise self._other(f"{self.state_file.name} can't be read") from error
        if request != self._request():
            raise self._other(f"{self.part.name} is of another selection or format")
        complete = (
            all(self._piece(number).exists() for number in range(state.pieces))
            if self.columnar
            else self.part.exists() and self.part.stat().st_size >= state.bytes
        )
        if not complete:
            raise self._other(f"{self.part.name} is shorter than it was")
        return state

    def _other(self, why: str) -> StorageError:
        return StorageError(
            "conflict", f"{why}: it can't be gone on with. Begin anew with --restart, or name another file."
        )

    def _remove_parts(self) -> None:
        for file in [self.part, self.state_file, *self.path.parent.glob(_escaped(self.part.name) + ".[0-9]*")]:
            file.unlink(missing_ok=True)

    def _piece(self, number: int) -> Path:
        return _beside(self.part, f".{number}")


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _escaped(name: str) -> str:
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in name)


def _replace(path: Path, data: bytes) -> None:
    """Write a small file in one step, on the disk before anything that follows."""
    unfinished = _beside(path, ".new")
    unfinished.write_bytes(data)
    _sync(unfinished)
    unfinished.replace(path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
