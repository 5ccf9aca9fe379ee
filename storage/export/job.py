"""One export: the selected runs in one format, as a stream of bytes for a browser.

    export = Export(database, FORMATS["csv"], Selection(filter, record.clock()))
    async for data in export.stream(): ...
    manifest = await export.manifest("runs.csv")           # when the stream is over

`storage.export.file` writes the same to a file, and goes on with it after a break.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from storage import migration
from storage.database import Database
from storage.export import encoders, own
from storage.export.flat import COLUMNS
from storage.export.formats import Format
from storage.export.parquet import ParquetStream
from storage.export.walk import Item, Selection, walk
from storage.models import Run
from storage.program import PROGRAM_VERSION
from storage.run_batches import SIZE, Cursor

PREVIEW_RUNS = 2000  # that are looked at for the first rows


@dataclass(slots=True)
class Tally:
    """What went out: runs that were looked at, rows that they became, how many were redacted, runs by hash and name of the model,
    parts of them (of the own format)."""

    runs: int = 0
    rows: int = 0
    redacted_runs: int = 0
    models: Counter[str] = field(default_factory=Counter)
    parts: Counter[str] = field(default_factory=Counter)

    def add(self, items: list[Item], rows: int) -> None:
        """Count a batch."""
        self.runs += len(items)
        self.rows += rows
        for item in items:
            self.redacted_runs += bool(item.hidden)
            version = item.entry.run.model_version
            if version is not None:
                self.models[f"{version.weights_hash} {version.name}"] += 1
            for name in ("blanks", "feedback", "votes"):
                self.parts[name] += len(item.document[name])
            if (review := item.document["review"]) is not None:
                self.parts["reviews"] += 1
                self.parts["spans"] += len(review["spans"])

    def as_dict(self) -> dict[str, Any]:
        """As JSON; `Tally.read` makes the same of it."""
        return {
            "runs": self.runs,
            "rows": self.rows,
            "redacted_runs": self.redacted_runs,
            "models": dict(self.models),
            "parts": dict(self.parts),
        }

    @classmethod
    def read(cls, values: dict[str, Any]) -> Tally:
        """The inverse of `as_dict`."""
        counts = {name: Counter(values[name]) for name in ("models", "parts")}
        return cls(values["runs"], values["rows"], values["redacted_runs"], **counts)


@dataclass(slots=True)
class Batch:
    """Rows of some runs, and where to go on behind them."""

    rows: list[dict[str, Any]]
    cursor: Cursor


class Export:
    """Of `selection` in `format`. `tally` counts what went out, `bytes` and `hash` what the stream gave."""

    def __init__(self, database: Database, format: Format, selection: Selection) -> None:
        self.database = database
        self.format = format
        self.selection = selection
        self.tally = Tally()
        self.bytes = 0
        self.hash = hashlib.sha256()

    async def batches(self, after: Cursor | None = None, size: int = SIZE) -> AsyncIterator[Batch]:
        """The rows behind a cursor, a batch of runs at a time."""
        async for items in walk(self.database, self.selection, self.format.needs, after=after, size=size):
            rows = await asyncio.to_thread(self._rows, items)
            self.tally.add(items, len(rows))
            yield Batch(rows, items[-1].entry.cursor)

    def _rows(self, items: list[Item]) -> list[dict[str, Any]]:
        return [row for item in items for row in self.format.rows(item)]

    async def head(self) -> bytes:
        """What the file begins with."""
        if self.format.name == "jsonl":
            return encoders.json_lines(await own.head(self.database))
        return encoders.csv_head(COLUMNS) if self.format.encoding == "csv" else b""

    def encoded(self, rows: list[dict[str, Any]]) -> bytes:
        """Rows of a text format as bytes."""
        if self.format.encoding == "csv":
            return encoders.csv_lines(rows, tuple(COLUMNS))
        return encoders.json_lines(rows)

    async def stream(self) -> AsyncIterator[bytes]:
        """The whole file in pieces. Whoever stops reading ends the export."""
        parquet = await asyncio.to_thread(ParquetStream) if self.format.encoding == "parquet" else None
        yield self._seen(await self.head())
        async for batch in self.batches():
            data = await asyncio.to_thread(parquet.add if parquet else self.encoded, batch.rows)
            yield self._seen(data)
        if parquet:
            yield self._seen(await asyncio.to_thread(parquet.close))

    def _seen(self, data: bytes) -> bytes:
        self.hash.update(data)
        self.bytes += len(data)
        return data

    async def count(self) -> int:
        """How many runs are selected."""
        conditions = self.selection.conditions(self.database.dialect)

        async def work(session: AsyncSession) -> int:
            return await session.scalar(select(func.count()).select_from(Run).where(*conditions)) or 0

        return await self.database.read(work)

    async def first_rows(self, wanted: int) -> list[dict[str, Any]]:
        """The first rows, looked for in the first PREVIEW_RUNS runs."""
        rows: list[dict[str, Any]] = []
        async for batch in self.batches(size=max(20, wanted)):
            rows += batch.rows
            if len(rows) >= wanted or self.tally.runs >= PREVIEW_RUNS:
                break
        return rows[:wanted]

    async def manifest(self, file: str) -> dict[str, Any]:
        """What stands beside the file: what it is, of which runs, from which program, and how to check that it is whole."""
        models = []
        for key, runs in sorted(self.tally.models.items()):
            weights_hash, _, name = key.partition(" ")
            models.append({"weights_hash": weights_hash, "name": name, "runs": runs})
        return {
            "file": file,
            "format": self.format.name,
            "sha256": self.hash.hexdigest(),
            "bytes": self.bytes,
            "rows": self.tally.rows,
            "runs": self.tally.runs,
            "parts": dict(self.tally.parts),
            "filters": self.selection.filter.as_dict(),
            "runs_until": self.selection.until.isoformat(),
            "redaction": self.selection.redact,
            "redacted_runs": self.tally.redacted_runs,
            "model_versions": models,
            "schema_revision": await asyncio.to_thread(migration.newest),
            "program_version": PROGRAM_VERSION,
        }


def file_name(format: Format, moment: datetime) -> str:
    """A name for a download."""
    return f"glm-{format.name}-{moment:%Y%m%d-%H%M%S}{format.extension}"
