"""The HTTP routes: /healthz and /readyz for whoever watches the server, /api/* for pages and programs; JSON, errors too.

An error's body is {"error": {"kind", "message", "retry_after_s", "field"?, "limit"?}} with the status of its kind in
app.errors. Runs and conversations are shown to the visitor whose they are; to everybody else they don't exist.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from app import privacy, sharing
from app.access import check_origin, visitor_of
from app.bodies import json_body, read_body
from app.errors import Problem, problem
from app.schemas import (
    COMMENT_CHARACTERS,
    MESSAGE_CHARACTERS,
    FeedbackBody,
    TitleBody,
    VoteBody,
    read_estimable,
    validated,
)
from app.service import Service
from engine.errors import GLMError
from storage import StorageError
from storage.models import Conversation as ConversationRow
from storage.models import Run as RunRow

ESTIMATE_BYTES = 4 * MESSAGE_CHARACTERS  # what UTF-8 needs for the longest message
BODY_BYTES = 64 * 1024 + 6 * COMMENT_CHARACTERS
_FEEDBACK: TypeAdapter[FeedbackBody] = TypeAdapter(FeedbackBody)
_TITLE: TypeAdapter[TitleBody] = TypeAdapter(TitleBody)
_VOTE: TypeAdapter[VoteBody] = TypeAdapter(VoteBody)
_STATUS_KINDS = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}


def routes(service: Service) -> APIRouter:
    """All routes of this file, for one service."""
    router = APIRouter()

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """200 as long as the process answers."""
        return {"status": "ok"}

    @router.get("/readyz")
    async def readyz() -> Response:
        """200 when a replica is ready and runs are taken, 503 with the reason otherwise. `record`: if they are written at once."""
        reason = service.why_not_ready()
        if reason is None:
            return JSONResponse({"status": "ready", "record": service.keeper.state()})
        return JSONResponse({"status": service.state, "reason": reason}, 503, {"Retry-After": "2"})

    @router.get("/api/info")
    async def info() -> dict[str, Any]:
        """The model, its limits, the defaults, the notice, every error kind with its sentence."""
        return service.info()

    @router.get("/api/runs/{run}")
    async def run(run: str, request: Request) -> dict[str, Any]:
        """One run of this visitor, with its blanks and the visitor's rating and comment."""
        visitor = visitor_of(request).id
        row = await service.record.get_run(run, visitor)
        return _run(row) | _opinion(row, visitor) | {"blanks": [_blank(blank) for blank in row.blanks]}

    @router.get("/api/conversations")
    async def conversations(
        request: Request,
        limit: int = Query(50, ge=1, le=200),
        after: str | None = None,
        kind: str | None = None,
        q: str | None = Query(None, max_length=200),
    ) -> dict[str, Any]:
        """The visitor's conversations, the last used first; `next` goes into `after` for the next page. `q`: words that the title
        or an answer contains."""
        visitor = visitor_of(request).id
        page = await service.record.list_conversations(visitor, kind=kind, words=q, limit=limit, after=after)
        return {"conversations": [_conversation(row) for row in page.rows], "next": page.next}

    @router.get("/api/conversations/{conversation}")
    async def conversation(conversation: str, request: Request) -> dict[str, Any]:
        """One conversation of this visitor with its runs in order of time, each with the visitor's rating and comment."""
        visitor = visitor_of(request).id
        row = await service.record.get_conversation(conversation, visitor)
        return _conversation(row) | {"runs": [_run(run) | _opinion(run, visitor) for run in row.runs]}

    @router.patch("/api/conversations/{conversation}")
    async def rename(conversation: str, request: Request) -> dict[str, Any]:
        """Give one of this visitor's conversations another title: {"title"}. JSON from this site's pages only."""
        check_origin(request, service.settings.allowed_origins)
        body: TitleBody = validated(_TITLE, await json_body(request, BODY_BYTES))
        await service.record.rename_conversation(conversation, visitor_of(request).id, body.title)
        return {"id": conversation, "title": body.title}

    @router.delete("/api/conversations/{conversation}", status_code=204)
    async def forget(conversation: str, request: Request) -> Response:
        """Delete one of this visitor's conversations with all its texts. From this site's pages only."""
        check_origin(request, service.settings.allowed_origins)
        await service.record.delete_conversation(conversation, visitor_of(request).id)
        service.hub.forget(conversation=conversation)
        return Response(status_code=204)

    @router.post("/api/estimate")
    async def cost(request: Request) -> dict[str, Any]:
        """What a message of the websocket (chat, fill, generate) would take: tokens, room, time. Nothing is run or stored. JSON
        from this site's pages only."""
        check_origin(request, service.settings.allowed_origins)
        return asdict(await service.estimate(read_estimable(await read_body(request, ESTIMATE_BYTES))))

    @router.post("/api/feedback")
    async def feedback(request: Request) -> dict[str, Any]:
        """Rate or comment a run of one's own: {"run", "rating": -1|0|1, "comment"}. JSON from this site's pages only."""
        check_origin(request, service.settings.allowed_origins)
        body: FeedbackBody = validated(_FEEDBACK, await json_body(request, BODY_BYTES))
        if body.rating is None and body.comment is None:
            raise Problem("bad_request", "Give a rating, a comment or both.", field="rating")
        row = await service.record.add_feedback(
            body.run, visitor_of(request).id, rating=body.rating, comment=body.comment
        )
        return {"run": row.run_id, "rating": row.rating or 0, "comment": row.comment}

    @router.post("/api/votes")
    async def vote(request: Request) -> dict[str, Any]:
        """Say which of two runs of one's own is better, or change that: {"first", "second", "choice": "first"|"second"|"tie"|
        "neither", "blind"}. The answer is the vote as it is stored. JSON from this site's pages only."""
        check_origin(request, service.settings.allowed_origins)
        body: VoteBody = validated(_VOTE, await json_body(request, BODY_BYTES))
        visitor = visitor_of(request).id
        row = await service.record.vote(body.first, body.second, visitor, body.choice, blind=body.blind)
        return {"first": row.first_run_id, "second": row.second_run_id, "choice": row.choice, "blind": row.blind}

    return router


def install(app: FastAPI, service: Service) -> None:
    """Add the routes to `app`, a JSON 404 or 405 for all else under /api, and the answers to errors."""
    app.include_router(routes(service))
    app.include_router(sharing.routes(service))
    app.include_router(privacy.routes(service))

    @app.api_route("/api/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    async def nothing(request: Request) -> Response:
        for route in app.router.routes:
            if route.matches(request.scope)[0] is Match.PARTIAL:
                raise Problem("method_not_allowed")
        raise Problem("not_found", "There is no such address.")

    @app.exception_handler(Problem)
    @app.exception_handler(StorageError)
    @app.exception_handler(GLMError)
    async def failed(request: Request, error: Exception) -> Response:
        return answer(problem(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = str(first["loc"][-1])
        limit = next((value for name, value in first.get("ctx", {}).items() if name in ("ge", "le")), None)
        return answer(Problem("bad_request", f"{field}: {first['msg'].lower()}.", field=field, limit=limit))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        kind = _STATUS_KINDS.get(error.status_code, "internal" if error.status_code >= 500 else "bad_request")
        response = answer(Problem(kind))
        response.status_code = error.status_code
        return response


def answer(refusal: Problem) -> JSONResponse:
    """The HTTP answer to a problem."""
    headers = {}
    if refusal.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(refusal.retry_after_s)))
    return JSONResponse({"error": refusal.as_dict()}, refusal.entry.status, headers)


def _run(row: RunRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "conversation": row.conversation_id,
        "mode": row.mode,
        "prompt": row.prompt,
        "parameters": row.parameters,
        "seed": row.seed,
        "status": row.status,
        "output": row.output,
        "finish_reason": row.finish_reason,
        "error_kind": row.error_kind,
        "error_message": row.error_message,
        "prompt_tokens": row.prompt_tokens,
        "new_tokens": row.new_tokens,
        "fingerprint": row.fingerprint,
        "created": row.created.isoformat(),
        "finished": row.finished.isoformat() if row.finished else None,
    }


def _opinion(row: RunRow, visitor: str) -> dict[str, Any]:
    own = next((feedback for feedback in row.feedback if feedback.visitor == visitor), None)
    return {"rating": (own.rating if own else None) or 0, "comment": own.comment if own else ""}


def _blank(row: Any) -> dict[str, Any]:
    return {
        "index": row.index,
        "kind": row.kind,
        "text": row.text,
        "ids": list(row.token_ids),
        "logprobs": list(row.logprobs),
        "alternatives": row.alternatives,
    }


def _conversation(row: ConversationRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "kind": row.kind,
        "title": row.title,
        "created": row.created.isoformat(),
        "updated": row.updated.isoformat(),
    }
