"""What administrators delete, and how long texts are kept: /api/admin/visitors/delete, …/runs/ID, …/retention."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field, TypeAdapter, model_validator
from starlette.responses import Response

from app import privacy
from app.access import check_origin
from app.admin.access import staff_of
from app.bodies import json_body
from app.schemas import Body, RunId, validated
from app.service import Service
from storage.visitors import visitor_id

BODY_BYTES = 4096
Name = Annotated[str, Field(min_length=1, max_length=200)]


class VisitorBody(Body):
    """One of: the value of the visitor's cookie, the visitor's id, a page that they shared, a run of theirs."""

    cookie: Name | None = None
    visitor: Name | None = None
    share: Name | None = None
    run: RunId | None = None

    @model_validator(mode="after")
    def _one(self) -> VisitorBody:
        if sum(value is not None for value in (self.cookie, self.visitor, self.share, self.run)) != 1:
            raise ValueError("say who it is by one of cookie, visitor, share, run")
        return self


_VISITOR: TypeAdapter[VisitorBody] = TypeAdapter(VisitorBody)


def routes(service: Service) -> APIRouter:
    """All routes of this file, for one service."""
    router = APIRouter()
    record = service.record

    @router.post("/api/admin/visitors/delete")
    async def delete_visitor(request: Request) -> dict[str, Any]:
        """Delete all of one visitor's data, on their request; the answer is the receipt for them."""
        staff = await staff_of(request, service, role="admin")
        check_origin(request, service.settings.allowed_origins)
        body: VisitorBody = validated(_VISITOR, await json_body(request, BODY_BYTES))
        visitor = body.visitor
        if body.cookie is not None:
            visitor = visitor_id(body.cookie)
        elif visitor is None:
            visitor = await record.find_visitor(share=body.share, run=body.run)
        return (await privacy.delete_visitor(service, visitor, staff.name)).as_dict()

    @router.delete("/api/admin/runs/{run}", status_code=204)
    async def delete_run(run: str, request: Request) -> Response:
        """Delete every text of one run; its row with counts and timings stays."""
        staff = await staff_of(request, service, role="admin")
        check_origin(request, service.settings.allowed_origins)
        await record.delete_runs([run], by=staff.name)
        service.hub.forget(run=run)
        return Response(status_code=204)

    @router.get("/api/admin/retention")
    async def retention(request: Request) -> dict[str, Any]:
        """How long texts are kept, how many runs are over now by status, and what was erased last."""
        await staff_of(request, service)
        policy = service.retention.policy
        done = (await record.list_audit(subject="runs", limit=20)).rows
        last = next((entry for entry in done if entry.action == "prune"), None)
        return {
            **policy.as_dict(),
            "due": await record.count_due(policy.rules()),
            "last": None
            if last is None
            else {"moment": last.moment.isoformat(), "by": last.actor, "erased": last.details["erased"]},
        }

    return router
