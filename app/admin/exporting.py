"""Taking the record away as data, for administrators: what an export would hold, the export itself as a download, former ones.

The file is streamed while the runs are read, a batch at a time, so that any number of them takes the same memory; its manifest is
known when it is over, and stays with the audit.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from app.admin.access import Staff, staff_of
from app.admin.reviewing import filter_of
from app.errors import Problem
from app.service import Service
from storage import StorageError
from storage.export import FORMATS, Export, Selection, file_name

PREVIEW_ROWS = 5
FORMER = 20  # exports in the list
OWN_FIELDS = ("format", "redact", "limit", "after", "order")

logger = logging.getLogger(__name__)


def routes(service: Service) -> APIRouter:
    """The routes under /api/admin/export."""
    router = APIRouter()
    record = service.record

    @router.get("/api/admin/formats")
    async def formats(request: Request) -> dict[str, Any]:
        """The formats, with the ending of their files."""
        await staff_of(request, service, role="admin")
        return {"formats": [{"name": one.name, "extension": one.extension} for one in FORMATS.values()]}

    @router.get("/api/admin/export/preview")
    async def preview(request: Request, format: str, redact: bool = Query(True)) -> dict[str, Any]:
        """How many runs are selected, and the first rows as they would be written. Besides these, the fields of a RunFilter."""
        staff = await staff_of(request, service, role="admin")
        job = _job(service, request, format, redact)
        runs = await job.count()
        rows = await job.first_rows(PREVIEW_ROWS)
        await record.audit(staff.name, "preview export", "runs", "", {"format": format, "redaction": redact})
        return {"runs": runs, "rows": [_shown(row) for row in rows], "looked_at": job.tally.runs}

    @router.get("/api/admin/export")
    async def export(request: Request, format: str, redact: bool = Query(True)) -> Response:
        """The file. Besides these, the fields of a RunFilter."""
        staff = await staff_of(request, service, role="admin")
        job = _job(service, request, format, redact)
        name = file_name(job.format, job.selection.until)
        asked = {"format": format, "filters": job.selection.filter.as_dict(), "redaction": redact}
        await record.audit(staff.name, "begin export", "runs", name, asked)
        download = _Download(service, staff, job, name)
        return StreamingResponse(
            download.parts(),
            media_type=job.format.media_type,
            headers={
                "Content-Disposition": f'attachment; filename="{name}"',
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
            },
        )

    @router.get("/api/admin/exports")
    async def former(request: Request) -> dict[str, Any]:
        """The last complete exports, from the page and the command line, each with its manifest."""
        await staff_of(request, service, role="admin")
        page = await record.list_audit(subject="export", limit=FORMER)
        return {
            "exports": [
                {"id": row.id, "by": row.actor, "moment": row.moment.isoformat(), "manifest": row.details}
                for row in page.rows
            ]
        }

    @router.get("/api/admin/exports/{id}/manifest")
    async def manifest(id: int, request: Request) -> Response:
        """The manifest of a former export, as a file."""
        await staff_of(request, service, role="admin")
        page = await record.list_audit(subject="export", limit=1, after=str(id + 1))
        if not page.rows or page.rows[0].id != id:
            raise Problem("not_found", "There is no such export.")
        name = f"{page.rows[0].details['file']}.manifest.json"
        return JSONResponse(page.rows[0].details, headers={"Content-Disposition": f'attachment; filename="{name}"'})

    return router


class _Download:
    """An export on its way to a browser."""

    def __init__(self, service: Service, staff: Staff, job: Export, name: str) -> None:
        self.service = service
        self.staff = staff
        self.job = job
        self.name = name

    async def parts(self) -> AsyncIterator[bytes]:
        """The file in pieces. Where the database fails in the middle, the connection breaks, so that nobody takes it for whole."""
        try:
            async for data in self.job.stream():
                yield data
        except StorageError as error:
            logger.warning("an export was broken off: %s", error)
            raise
        # Before the end is sent: who has the file finds its manifest.
        manifest = await self.job.manifest(self.name)
        await self.service.record.audit(self.staff.name, "export", "export", self.name, manifest)


def _job(service: Service, request: Request, format: str, redact: bool) -> Export:
    if format not in FORMATS:
        raise Problem("bad_request", f"format: one of {', '.join(FORMATS)}.", field="format")
    selection = Selection(filter_of(request, OWN_FIELDS), service.record.clock(), redact)
    return Export(service.database, FORMATS[format], selection)


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON, whatever the format."""
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}
