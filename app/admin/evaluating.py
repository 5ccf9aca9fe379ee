"""Evaluations for staff: which benchmarks can be measured, what is under way, what was found on each model version, the report.

All staff may read; administrators begin and stop.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field, StringConstraints, TypeAdapter
from starlette.responses import HTMLResponse, Response

from app.admin.access import staff_of
from app.bodies import json_body
from app.errors import Problem
from app.evaluations import NAME
from app.schemas import Body, validated
from app.service import Service
from storage.evaluations import EvaluationEntry

BODY_BYTES = 16 * 1024
MOST_TASKS = 100
MOST_ROWS = 10_000_000

File = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class EvaluateBody(Body):
    """tasks: files of those that are offered. limit: only the first rows of each file; null: all."""

    tasks: list[File] = Field(min_length=1, max_length=MOST_TASKS)
    limit: int | None = Field(None, ge=1, le=MOST_ROWS)


_BODY = TypeAdapter(EvaluateBody)


def routes(service: Service) -> APIRouter:
    """The routes under /api/admin/evaluations."""
    router = APIRouter()
    record, evaluations = service.record, service.evaluations

    @router.get("/api/admin/evaluations")
    async def overview(request: Request) -> dict[str, Any]:
        """Everything the page shows: tasks that can be measured, the version that serves, evaluations, the newest first."""
        await staff_of(request, service)
        current = await service.deployments.current()
        version = None if current is None else await record.get_version(current)
        return {
            "data": evaluations.data is not None,
            "tasks": [task.as_dict() for task in await evaluations.offered()],
            "current": None if version is None else {"id": version.id, "name": version.name},
            "report": evaluations.report.is_file(),
            "evaluations": [_evaluation(entry) for entry in await record.list_evaluations(NAME)],
        }

    @router.post("/api/admin/evaluations")
    async def start(request: Request) -> dict[str, Any]:
        """Measure the version that serves; its id."""
        staff = await staff_of(request, service, role="admin")
        body: EvaluateBody = validated(_BODY, await json_body(request, BODY_BYTES))
        files = list(dict.fromkeys(body.tasks))
        evaluation = await evaluations.start(files, body.limit, _own_address(request), by=staff.id)
        details = {"tasks": files, "limit": body.limit}
        await record.audit(staff.name, "start evaluation", "evaluation", evaluation.id, details)
        return {"id": evaluation.id}

    @router.post("/api/admin/evaluations/{id}/stop")
    async def stop(request: Request, id: str) -> dict[str, Any]:
        """Let it end; asked again, end it at once. What it has measured is kept."""
        staff = await staff_of(request, service, role="admin")
        await evaluations.stop(id)
        await record.audit(staff.name, "stop evaluation", "evaluation", id)
        return {"id": id}

    @router.get("/api/admin/evaluations/report")
    async def report(request: Request) -> Response:
        """The report over all that was measured, as a page of its own."""
        await staff_of(request, service)
        try:
            page = await asyncio.to_thread(evaluations.report.read_text, encoding="utf-8")
        except FileNotFoundError as error:
            raise Problem("not_found", "There is no report yet.") from error
        return HTMLResponse(page, headers={"Content-Security-Policy": report_policy(page)})

    return router


def report_policy(page: str) -> str:
    """A content security policy under which a report's own style and script run and nothing else: no other script, no request, no
    cookie (the sandbox gives it an origin of its own). Its style comes first in it and its script last, whatever is between."""
    style = page.partition("<style>")[2].partition("</style>")[0]
    script = page.rpartition("<script>")[2].partition("</script>")[0]
    rules = ("default-src 'none'", f"style-src {_hash(style)}", f"script-src {_hash(script)}", "base-uri 'none'")
    return "; ".join((*rules, "form-action 'none'", "frame-ancestors 'none'", "sandbox allow-scripts"))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _own_address(request: Request) -> str:
    """Where this process listens: the end of the connection that the request came by, whatever name was asked for."""
    host, port = request.scope["server"]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _evaluation(entry: EvaluationEntry) -> dict[str, Any]:
    evaluation = entry.evaluation
    results = evaluation.results or {}
    return {
        "id": evaluation.id,
        "version": evaluation.model_version_id,
        "name": entry.version,
        "state": evaluation.state,
        "stopping": bool(evaluation.parameters.get("stopping")),
        "tasks": evaluation.parameters["tasks"],
        "limit": evaluation.parameters["limit"],
        "progress": results.get("progress"),
        "results": results.get("tasks", []),
        "error": results.get("error"),
        "log": results.get("log", []),
        "by": entry.by,
        "created": evaluation.created.isoformat(),
        "finished": evaluation.finished.isoformat() if evaluation.finished else None,
    }
