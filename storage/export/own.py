"""The project's own JSON lines: everything that is kept of the selected runs, so that an import restores it.

A line is an object with a `kind`: `export` (the first line, with the version of this form), `model_version` (each one that the
database knows, parents first), `run` (a document, see `storage.export.document`). Moments are ISO 8601 in UTC.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from storage.database import Database
from storage.export.walk import Item
from storage.models import ModelVersion

FORM = "glm-playground"
VERSION = 1


async def head(database: Database) -> list[dict[str, Any]]:
    """The lines before the first run."""

    async def work(session: AsyncSession) -> list[ModelVersion]:
        return list(await session.scalars(select(ModelVersion).order_by(ModelVersion.id)))

    versions = await database.read(work)
    hashes = {version.id: version.weights_hash for version in versions}
    lines: list[dict[str, Any]] = [{"kind": "export", "form": FORM, "version": VERSION}]
    for version in versions:
        lines.append(
            {
                "kind": "model_version",
                "weights_hash": version.weights_hash,
                "name": version.name,
                "config": version.config,
                "parent": hashes.get(version.parent_id or 0),
                "created": version.created.isoformat(),
                "tainted": version.tainted.isoformat() if version.tainted else None,
            }
        )
    return lines


def lines(item: Item) -> Iterator[dict[str, Any]]:
    """The line of a run."""
    yield {"kind": "run", **item.document}
