"""Datasets: what a selection would give to learn from, freezing it (administrators), the list, the rows (all staff)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field, StringConstraints, TypeAdapter

from app.admin.access import staff_of
from app.admin.facts import dataset_facts
from app.bodies import json_body
from app.schemas import Body, validated
from app.service import Service
from storage.datasets import NAME_CHARACTERS, DatasetSummary
from storage.run_filter import RunFilter
from storage.training_tables import DatasetRow

BODY_BYTES = 64 * 1024


class SelectionBody(Body):
    """filters: of a RunFilter. sources: corrected spans, corrected answers, answers that were liked as they are."""

    filters: dict[str, Any] = {}
    held_out_share: float = Field(0.1, ge=0, le=0.5)
    sources: list[Literal["span", "answer", "good"]] = Field(["span", "answer"], min_length=1, max_length=3)
    redact: bool = True


class FreezeBody(SelectionBody):
    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=NAME_CHARACTERS)]


_SELECTION: TypeAdapter[SelectionBody] = TypeAdapter(SelectionBody)
_FREEZE: TypeAdapter[FreezeBody] = TypeAdapter(FreezeBody)


def routes(service: Service) -> APIRouter:
    """The routes under /api/admin/datasets."""
    router = APIRouter()
    record = service.record

    @router.get("/api/admin/datasets")
    async def listed(
        request: Request, after: str | None = None, limit: int = Query(50, ge=1, le=200)
    ) -> dict[str, Any]:
        """The newest first; `next` goes into `after` for the next page."""
        await staff_of(request, service)
        page = await record.list_datasets(limit=limit, after=after)
        return {"datasets": [summary(row) for row in page.rows], "next": page.next}

    @router.post("/api/admin/datasets/preview")
    async def preview(request: Request) -> dict[str, Any]:
        """What freezing would give: counts, what is left out and why, the first rows."""
        staff = await staff_of(request, service, role="admin")
        body: SelectionBody = validated(_SELECTION, await json_body(request, BODY_BYTES))
        found = await record.preview_dataset(RunFilter.parse(body.filters), **_options(body))
        await record.audit(staff.name, "preview dataset", "runs", "", {"rows": found.rows})
        return {
            "runs": found.runs,
            "rows": found.rows,
            "train": found.train,
            "held_out": found.held_out,
            "sources": found.sources,
            "left_out": found.left_out,
            "hash": found.hash,
            "first": [
                {"content": row.content, "part": row.part, "source": row.source, "run": row.run_id}
                for row in found.first
            ],
        }

    @router.post("/api/admin/datasets")
    async def freeze(request: Request) -> dict[str, Any]:
        """Freeze a selection as the next version of a dataset: {"name", "filters", "held_out_share", "sources", "redact"}."""
        staff = await staff_of(request, service, role="admin")
        body: FreezeBody = validated(_FREEZE, await json_body(request, BODY_BYTES))
        filter = RunFilter.parse(body.filters)
        dataset = await record.freeze_dataset(body.name, filter, by=staff.id, **_options(body))
        details = {"name": dataset.name, "version": dataset.version, "rows": dataset.rows, "hash": dataset.hash}
        await record.audit(staff.name, "freeze", "dataset", dataset.id, details)
        return summary(await record.get_dataset(dataset.id))

    @router.get("/api/admin/datasets/{id}")
    async def one(id: str, request: Request) -> dict[str, Any]:
        """One dataset."""
        await staff_of(request, service)
        return summary(await record.get_dataset(id))

    @router.get("/api/admin/datasets/{id}/rows")
    async def rows(
        id: str,
        request: Request,
        part: Literal["train", "held_out"] | None = None,
        after: int = Query(-1, ge=-1),
        limit: int = Query(20, ge=1, le=200),
    ) -> dict[str, Any]:
        """Rows in their order, tombstones too; `next` goes into `after` for the next page."""
        staff = await staff_of(request, service)
        page = await record.dataset_rows(id, part, limit=limit, after=after)
        await record.audit(staff.name, "read rows", "dataset", id, {"rows": len(page.rows)})
        return {"rows": [_row(row) for row in page.rows], "next": page.next}

    return router


def summary(found: DatasetSummary) -> dict[str, Any]:
    """A dataset as JSON."""
    row = found.dataset
    return dataset_facts(row) | {
        "train": found.train,
        "held_out": found.held_out,
        "removed": found.removed,
        "filters": row.filters,
        "parameters": row.parameters,
    }


def _row(row: DatasetRow) -> dict[str, Any]:
    return {
        "index": row.index,
        "part": row.part,
        "hash": row.hash,
        "run": row.run_id,
        "content": row.content,
        "removed": row.removed.isoformat() if row.removed else None,
    }


def _options(body: SelectionBody) -> dict[str, Any]:
    return {"held_out_share": body.held_out_share, "sources": body.sources, "redact": body.redact}
