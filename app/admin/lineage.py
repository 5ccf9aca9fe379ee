"""Lineage for all staff: from an output to weights, datasets, source runs and reviewers, and from a run to what contains it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Query, Request

from app.admin.access import staff_of
from app.admin.facts import dataset_facts, version_facts
from app.service import Service
from storage.lineage import VersionStep


def routes(service: Service) -> APIRouter:
    """The routes under /api/admin/lineage."""
    router = APIRouter()
    record = service.record

    @router.get("/api/admin/lineage/run/{id}")
    async def run(id: str, request: Request) -> dict[str, Any]:
        """Which weights wrote a run's output, with all before them; which datasets and models contain the run."""
        await staff_of(request, service)
        found = await record.run_lineage(id)
        return {
            "run": found.run,
            "deleted": found.deleted.isoformat() if found.deleted else None,
            "written_by": [_step(step) for step in found.written_by],
            "datasets": [
                dataset_facts(one.dataset)
                | {"train": one.train, "held_out": one.held_out, "removed": one.removed, "reviewers": one.reviewers}
                for one in found.datasets
            ],
            "models": [version_facts(version) for version in found.models],
            "more_models": found.more_models,
        }

    @router.get("/api/admin/lineage/version/{id}")
    async def version(id: int, request: Request) -> dict[str, Any]:
        """A model version with its ancestors, and what was made from it."""
        await staff_of(request, service)
        found = await record.version_lineage(id)
        return {
            "steps": [_step(step) for step in found.steps],
            "made_from_it": [version_facts(one) for one in found.made_from_it],
            "more_made": found.more_made,
            "runs": found.runs,
        }

    @router.get("/api/admin/lineage/dataset/{id}")
    async def dataset(id: str, request: Request) -> dict[str, Any]:
        """Who reviewed a dataset's rows, which versions wrote them, which were trained on them."""
        await staff_of(request, service)
        found = await record.dataset_lineage(id)
        return {
            "dataset": dataset_facts(found.dataset),
            "reviewers": [{"name": name, "rows": rows} for name, rows in found.reviewers],
            "written_by": [version_facts(one) | {"rows": rows} for one, rows in found.written_by],
            "versions": [version_facts(one) for one in found.versions],
        }

    @router.get("/api/admin/lineage/dataset/{id}/sources")
    async def sources(
        id: str, request: Request, after: int = Query(-1, ge=-1), limit: int = Query(50, ge=1, le=500)
    ) -> dict[str, Any]:
        """The runs that a dataset was made from, row by row; `next` goes into `after` for the next page."""
        await staff_of(request, service)
        page = await record.dataset_sources(id, limit=limit, after=after)
        return {
            "sources": [
                {
                    "index": row.index,
                    "part": row.part,
                    "hash": row.hash,
                    "run": row.run,
                    "removed": row.removed.isoformat() if row.removed else None,
                    "reviewer": row.reviewer,
                    "model_version": row.model_version,
                }
                for row in page.rows
            ],
            "next": page.next,
        }

    return router


def _step(step: VersionStep) -> dict[str, Any]:
    return version_facts(step.version) | {
        "dataset": None if step.dataset is None else dataset_facts(step.dataset),
        "training_run": step.training_run,
        "removed_rows": step.removed_rows,
    }
