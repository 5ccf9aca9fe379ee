"""The review desk over HTTP: /api/admin/runs with the queue, one run with all that is kept of it, its review and corrected spans;
/api/admin/tags and /api/admin/facets for its filters. For reviewers and administrators.

Every change names the version of the review that the person saw. Whoever comes second gets 409 with the review as it is now:
{"error", "review", "spans"}. Positions count characters (code points) of the output as the model wrote it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from app.admin import review_views as views
from app.admin.access import staff_of
from app.admin.fills import fills
from app.admin.review_bodies import FillsBody, ReviewBody, SpanBody, read
from app.admin.span_context import readable, span_context
from app.errors import Problem, problem
from storage import StorageError
from storage.queue import PAGE_LIMIT
from storage.reviews import ReviewConflict
from storage.run_details import RunDetails
from storage.run_filter import RunFilter

if TYPE_CHECKING:
    from app.service import Service

PAGING = ("order", "limit", "after", "before")


def routes(service: Service) -> APIRouter:
    """All routes of this file, for one service."""
    router = APIRouter()
    record = service.record

    @router.get("/api/admin/runs")
    async def queue(
        request: Request,
        order: str = "newest",
        limit: int = Query(50, ge=1, le=PAGE_LIMIT),
        after: str | None = None,
        before: str | None = None,
    ) -> dict[str, Any]:
        """A page of the queue; besides these, the fields of a RunFilter."""
        await staff_of(request, service)
        page = await record.queue(filter_of(request), order, limit=limit, after=after, before=before)
        return views.page(page)

    @router.get("/api/admin/runs/count")
    async def count(request: Request) -> dict[str, Any]:
        """How many runs meet the filter, up to 10,000."""
        await staff_of(request, service)
        found = await record.count_queue(filter_of(request))
        return {"count": found.count, "capped": found.capped, "complete": found.complete}

    @router.get("/api/admin/facets")
    async def facets(request: Request) -> dict[str, Any]:
        """What filters can ask for, with counts."""
        await staff_of(request, service)
        return await record.facets()

    @router.get("/api/admin/tags")
    async def tags(
        request: Request, q: str = Query("", max_length=100), limit: int = Query(20, ge=1, le=PAGE_LIMIT)
    ) -> dict[str, Any]:
        """The tags in use that begin with `q`, the most used first."""
        await staff_of(request, service)
        return {"tags": await record.tags(q.casefold(), limit)}

    @router.get("/api/admin/runs/{id}")
    async def one(id: str, request: Request) -> dict[str, Any]:
        """All that is kept of one run. Audited."""
        staff = await staff_of(request, service)
        details = await record.run_details(id)
        await record.audit(staff.name, "read", "run", id)
        return views.details(details, service.models.tokenizer)

    @router.put("/api/admin/runs/{id}/review")
    async def review(id: str, request: Request) -> Response:
        """Save stars, flag, status, note, tags, a rewrite: what is left out stays."""
        staff = await staff_of(request, service)
        body: ReviewBody = await read(request, ReviewBody)
        changes = body.changes()
        if not changes:
            raise Problem("bad_request", "Give something to change.", field="rating")
        try:
            state = await record.save_review(id, body.version, staff.id, **changes)
        except ReviewConflict as conflict:
            return _conflict(conflict)
        await record.audit(staff.name, "review", "run", id, {"version": state.version, "changed": sorted(changes)})
        return JSONResponse(views.state(state))

    @router.post("/api/admin/runs/{id}/fills")
    async def offer(id: str, request: Request) -> dict[str, Any]:
        """What the model would write in place of a span of the output, likeliest first."""
        staff = await staff_of(request, service)
        body: FillsBody = await read(request, FillsBody)
        details = await _correctable(id, body.end)
        return await fills(service, staff, details.run, details.review.spans, body)

    @router.post("/api/admin/runs/{id}/spans")
    async def put_span(id: str, request: Request) -> Response:
        """Correct a span of the output, or change what was chosen for it."""
        staff = await staff_of(request, service)
        body: SpanBody = await read(request, SpanBody)
        details = await _correctable(id, body.end)
        config, tokenizer = service.models.config, service.models.tokenizer
        place: dict[str, Any] = {}
        if config is not None and tokenizer is not None:
            place["fits"] = readable(tokenizer, config.positions - len(tokenizer.encode_plain(body.chosen)) - 4)
        context = span_context(details.run, body.start, body.end, config.chat if config else None, **place)
        try:
            state, span = await record.put_span(
                id,
                body.version,
                staff.id,
                start=body.start,
                end=body.end,
                chosen=body.chosen,
                source=body.source,
                text=context.text,
                alternatives=[one.model_dump() for one in body.alternatives],
                logprob=body.logprob,
                replace=body.replace,
            )
        except ReviewConflict as conflict:
            return _conflict(conflict)
        place = {"start": body.start, "end": body.end, "source": body.source, "version": state.version}
        await record.audit(staff.name, "correct", "run", id, place)
        return JSONResponse(views.state(state) | {"span": span})

    @router.delete("/api/admin/runs/{id}/spans/{span}")
    async def remove_span(id: str, span: str, request: Request, version: int = Query(ge=0)) -> Response:
        """Take a corrected span back."""
        staff = await staff_of(request, service)
        try:
            state = await record.remove_span(id, version, span, staff.id)
        except ReviewConflict as conflict:
            return _conflict(conflict)
        await record.audit(staff.name, "take correction back", "run", id, {"version": state.version})
        return JSONResponse(views.state(state))

    async def _correctable(id: str, end: int) -> RunDetails:
        details = await record.run_details(id)
        if details.run.output is None or details.run.deleted is not None:
            raise StorageError("not_found", "This run has no output that could be corrected.")
        if end > len(details.run.output):
            most = len(details.run.output)
            raise Problem("bad_request", f"The output has {most} characters.", field="end", limit=most)
        return details

    return router


def filter_of(request: Request, leave_out: tuple[str, ...] = PAGING) -> RunFilter:
    """The filter in a query string. Raises StorageError `bad_request` with the field."""
    given = request.query_params
    return RunFilter.parse({name: given.getlist(name) for name in given if name not in leave_out})


def _conflict(conflict: ReviewConflict) -> Response:
    refusal = problem(conflict)
    return JSONResponse({"error": refusal.as_dict()} | views.state(conflict.state), refusal.entry.status)
