"""The routes of share links: /api/shares to publish, list, revoke, read and report; /s/TOKEN, the page that a link opens.

What is published is built here from the visitor's own stored runs (app/shared_content.py) after they saw it in a preview. A page
that never was, is revoked or has expired is `not_found` under /api; as a page it says which (404 or 410).
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Request
from pydantic import TypeAdapter
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from app import shared_content
from app.access import RateLimit, address_of, check_origin, visitor_of
from app.bodies import json_body
from app.errors import Problem
from app.schemas import (
    HIDDEN_CHARACTERS,
    HIDDEN_WORDS,
    REASON_CHARACTERS,
    TEXT_CHARACTERS,
    ReportBody,
    ShareBody,
    SharePreviewBody,
    validated,
)
from app.service import Service
from app.ui import shared_page
from storage import StorageError, redaction
from storage.models import Run, Share
from storage.shares import Published

# A character takes up to 6 bytes as JSON.
SHARE_BYTES = 64 * 1024 + 6 * (TEXT_CHARACTERS + HIDDEN_WORDS * HIDDEN_CHARACTERS)
REPORT_BYTES = 4096 + 6 * REASON_CHARACTERS
PUBLISH_RATE = 60  # publishings and reports from one address in a minute
PREVIEW_RATE = 300
_PREVIEW: TypeAdapter[SharePreviewBody] = TypeAdapter(SharePreviewBody)
_SHARE: TypeAdapter[ShareBody] = TypeAdapter(ShareBody)
_REPORT: TypeAdapter[ReportBody] = TypeAdapter(ReportBody)

logger = logging.getLogger(__name__)


def routes(service: Service) -> APIRouter:
    """All routes of this file, for one service."""
    router = APIRouter()
    record = service.record
    publishing, previewing = RateLimit(PUBLISH_RATE), RateLimit(PREVIEW_RATE)

    def check(request: Request, limit: RateLimit | None = None) -> None:
        check_origin(request, service.settings.allowed_origins)
        if limit is not None and (wait := limit.wait(address_of(request))):
            raise Problem("rate_limited", limit=limit.per_minute, retry_after_s=round(wait, 2))

    @router.post("/api/shares/preview")
    async def preview(request: Request) -> dict[str, Any]:
        """What would be public: {"runs", "text", "title", "hidden"} of one's own runs, and what is worth hiding in it."""
        check(request, previewing)
        body: SharePreviewBody = validated(_PREVIEW, await json_body(request, SHARE_BYTES))
        rows = await record.runs_to_share(body.runs, visitor_of(request).id)
        return await asyncio.to_thread(_preview, rows, body)

    @router.post("/api/shares", status_code=201)
    async def publish(request: Request) -> dict[str, Any]:
        """Publish runs of one's own under a new link: {"runs", "text", "title", "expires_seconds", "hidden"}."""
        check(request, publishing)
        body: ShareBody = validated(_SHARE, await json_body(request, SHARE_BYTES))
        visitor = visitor_of(request).id
        rows = await record.runs_to_share(body.runs, visitor)
        content = await asyncio.to_thread(shared_content.build, rows, body.text, body.hidden)
        expires = None
        if body.expires_seconds is not None:
            expires = record.clock() + timedelta(seconds=body.expires_seconds)
        share = await record.create_share(
            visitor,
            conversation=shared_content.conversation_of(rows),
            title=redaction.hide(body.title, body.hidden),
            content=content,
            expires=expires,
        )
        return {"token": share.token, "path": f"s/{share.token}", "title": share.title} | _moments(share)

    @router.get("/api/shares")
    async def mine(request: Request) -> dict[str, Any]:
        """The visitor's own pages, the newest first, those that are over included."""
        pages = await record.list_shares(visitor_of(request).id)
        return {
            "shares": [
                {
                    "token": page.token,
                    "path": f"s/{page.token}",
                    "title": page.title,
                    "kind": page.kind,
                    "revoked": page.revoked.isoformat() if page.revoked else None,
                }
                | _moments(page)
                for page in pages
            ]
        }

    @router.get("/api/shares/{token}")
    async def read(token: str) -> dict[str, Any]:
        """A page as anybody with its link may read it."""
        share = await record.get_share(token)
        return {"token": share.token, "title": share.title, "content": share.content} | _moments(share)

    @router.delete("/api/shares/{token}", status_code=204)
    async def revoke(token: str, request: Request) -> Response:
        """Take a page of one's own back; its content is erased. From this site's pages only."""
        check(request)
        await record.revoke_share(token, visitor_of(request).id)
        return Response(status_code=204)

    @router.post("/api/shares/{token}/report", status_code=204)
    async def report(token: str, request: Request) -> Response:
        """Say why a page shouldn't be there: {"reason"}. JSON from this site's pages only."""
        check(request, publishing)
        body: ReportBody = validated(_REPORT, await json_body(request, REPORT_BYTES))
        count = await record.report_share(token, visitor_of(request).id, body.reason)
        # Without the reason, which quotes; the whole token would let a reader of the log read the page.
        logger.warning("the shared page %s… was reported; it has %d reports", token[:6], count)
        return Response(status_code=204)

    @router.api_route("/s/{token:path}", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(token: str, request: Request) -> Response:
        headers = shared_page.headers(request.headers.get("host", ""))
        language = _language(request)
        try:
            share = await record.get_share(token)
        except StorageError as error:
            if error.kind != "not_found":
                raise
            over = await record.was_shared(token)
            document = shared_page.gone("over" if over else "missing", language, "../" * (1 + token.count("/")))
            return HTMLResponse(document, 410 if over else 404, headers)
        return HTMLResponse(shared_page.page(share, language), headers=headers)

    @router.get("/robots.txt", include_in_schema=False)
    async def robots(request: Request) -> Response:
        root = request.scope.get("root_path", "")
        rules = f"User-agent: *\nDisallow: {root}/s/\nDisallow: {root}/api/\n"
        return PlainTextResponse(rules, headers={"Cache-Control": "max-age=86400"})

    return router


def _preview(rows: list[Run], body: SharePreviewBody) -> dict[str, Any]:
    content = shared_content.build(rows, body.text, body.hidden)
    title = body.title or shared_content.title_of(rows)
    found = shared_content.findings(rows, body.text, title)
    return {
        "title": redaction.hide(title, body.hidden),
        "content": content,
        "findings": [asdict(finding) for finding in found],
    }


def _moments(share: Share | Published) -> dict[str, str | None]:
    return {
        "created": share.created.isoformat(),
        "expires": share.expires.isoformat() if share.expires else None,
    }


def _language(request: Request) -> str:
    """The reader's language for what stands there before the page's own script decides."""
    return "zh" if request.headers.get("accept-language", "").lower().startswith("zh") else "en"
