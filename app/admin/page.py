"""The page at /admin: a small document without Gradio, under a strict content security policy. static/admin/shell.js draws it.

Who isn't logged in gets the same document without a member in it, and sees the login. Each tab is static/admin/TAB.js with
static/admin/TAB.css if there is one; a tab whose script isn't there isn't shown, nor one that the member's role doesn't open.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from app.admin.access import Staff, staff_of
from app.admin.account_bodies import PASSWORD_LEAST, PASSWORD_MOST
from app.admin.texts import merged
from app.errors import Problem, sentences
from app.service import Service
from app.ui.shared_page import headers
from app.ui.texts import LANGUAGES
from storage.staff import NAME_CHARACTERS

FILES = Path(__file__).resolve().parents[2] / "static" / "admin"
#: Tabs in their order, and the role that opens each
TABS = {
    "review": "reviewer",
    "data": "reviewer",
    "training": "admin",
    "evaluation": "reviewer",
    "statistics": "reviewer",
    "people": "admin",
    "audit": "admin",
}
SCRIPTS = ("admin/shell.js", "admin/login.js", "admin/parts.js", "admin/ask.js", "dom.js", "language.js")


def routes(service: Service) -> APIRouter:
    """The page, and the same address with a slash at its end."""
    router = APIRouter(include_in_schema=False)

    @router.get("/admin")
    async def page(request: Request) -> Response:
        try:
            staff = await staff_of(request, service)
        except Problem as problem:
            if problem.kind != "login_needed":
                raise
            staff = None
        return HTMLResponse(document(staff, _language(request)), headers=headers(request.headers.get("host", "")))

    @router.get("/admin/")
    async def with_slash() -> Response:
        # The page's addresses are relative, so that a proxy may serve the site under a path.
        return RedirectResponse("../admin")

    return router


def tabs() -> list[dict[str, Any]]:
    """The tabs that are there: name, the role that opens it, whether it has a style sheet."""
    return [
        {"name": name, "role": role, "styled": (FILES / f"{name}.css").is_file()}
        for name, role in TABS.items()
        if (FILES / f"{name}.js").is_file()
    ]


def document(staff: Staff | None, language: str) -> str:
    """The whole HTML; nothing in it is script but what comes from static/."""
    data = {
        "texts": merged(),
        "languages": LANGUAGES,
        "errors": sentences(),
        "staff": {"id": staff.id, "name": staff.name, "role": staff.role} if staff else None,
        "tabs": tabs(),
        "limits": {"least": PASSWORD_LEAST, "most": PASSWORD_MOST, "name": NAME_CHARACTERS},
    }
    texts = merged()[language]
    # "<" is the only character that could end the script element from within a JSON string.
    block = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", r"\u003c")
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="{"zh-CN" if language == "zh" else language}">',
            '<head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="robots" content="noindex, nofollow"><meta name="color-scheme" content="light dark">',
            f"<title>{html.escape(texts['title'])}</title>",
            '<link rel="icon" type="image/svg+xml" href="static/favicon.svg">',
            '<link rel="stylesheet" href="static/admin/admin.css">',
            *(f'<link rel="modulepreload" href="static/{name}">' for name in SCRIPTS),
            "</head><body>",
            f"<noscript><p>{html.escape(texts['shell.noscript'])}</p></noscript>",
            '<div id="glm-admin"></div>',
            f'<script type="application/json" id="glm-texts">{block}</script>',
            f'<script type="module" src="static/{SCRIPTS[0]}"></script></body></html>',
        ]
    )


def _language(request: Request) -> str:
    wanted = request.headers.get("accept-language", "").lower()
    return "zh" if wanted.startswith("zh") else "en"
