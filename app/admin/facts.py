"""What several pages of /admin tell of one row of the database, as JSON."""

from __future__ import annotations

from typing import Any

from storage.models import ModelVersion
from storage.training_tables import Dataset


def version_facts(row: ModelVersion) -> dict[str, Any]:
    """A model version; `tainted`: since when a run that it was trained on is deleted."""
    return {
        "id": row.id,
        "name": row.name,
        "weights_hash": row.weights_hash,
        "created": row.created.isoformat(),
        "tainted": row.tainted.isoformat() if row.tainted else None,
    }


def dataset_facts(row: Dataset) -> dict[str, Any]:
    """A dataset without its rows."""
    return {
        "id": row.id,
        "name": row.name,
        "version": row.version,
        "hash": row.hash,
        "rows": row.rows,
        "created": row.created.isoformat(),
    }
