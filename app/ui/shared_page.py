"""The page behind a share link: a small document without Gradio, its content as data that static/share.js draws as text.

`page(share)` gives the HTML of a page that can be read, `gone(state)` of one that can't. Nothing in it is script from a text: the
content stands in a JSON block, which no browser runs and the strict content security policy allows.
"""

from __future__ import annotations

import html
import json
import re
from typing import Any

from app.errors import sentences
from app.schemas import Parameters
from app.ui.texts import LANGUAGES, TEXTS
from storage.models import Share

#: Scripts of static/ that the page needs, fetched at once; static/share.js imports the others
SCRIPTS = (
    "share.js",
    "shared_view.js",
    "rerun.js",
    "answer.js",
    "dom.js",
    "language.js",
    "markdown.js",
    "socket.js",
)
STYLES = ("share.css", "shared_view.css")
#: Beginnings of the text keys that the page needs, and single keys
FAMILIES = ("shared.", "fingerprint.")
KEYS = (
    "title",
    "language",
    "close",
    "cancel",
    "copy",
    "copied",
    "copy.failed",
    "copy.code",
    "retry",
    "stop",
    "stopping",
    "waiting",
    "queued",
    "queued.eta",
    "error.retry_after",
    "error.retrying",
    "blanks.nothing",
    "model",
)
#: Kinds of errors that a run or a report from this page can end in
ERRORS = (
    "bad_request",
    "too_large",
    "prompt_too_long",
    "unsupported",
    "not_found",
    "forbidden",
    "rate_limited",
    "queue_full",
    "overloaded",
    "not_ready",
    "worker_died",
    "non_finite_logits",
    "timeout",
    "interrupted",
    "database_unavailable",
    "disk_full",
    "internal",
)
_HOST = re.compile(r"[A-Za-z0-9.-]+(?::\d+)?|\[[0-9A-Fa-f:.]+\](?::\d+)?")


def headers(host: str) -> dict[str, str]:
    """Of every answer under /s/; `host` is the request's Host header."""
    # Older browsers don't count the websocket of the same host as 'self'.
    socket = f" ws://{host} wss://{host}" if _HOST.fullmatch(host) else ""
    policy = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self'",
        "connect-src": f"'self'{socket}",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Robots-Tag": "noindex, nofollow",
        "Cache-Control": "no-store",  # a page that was taken back is gone at once
    }


def page(share: Share, language: str) -> str:
    """The HTML of a page that can be read; `language` is the reader's, as far as a header tells."""
    data = {
        "state": "open",
        "token": share.token,
        "title": share.title,
        "created": share.created.isoformat(),
        "expires": share.expires.isoformat() if share.expires else None,
        "content": share.content,
    }
    return _document(data, share.title, [TEXTS[language]["shared.notice"]], _sketch(share.content), language)


def gone(state: str, language: str, up: str = "../") -> str:
    """The HTML for a page that never was ("missing") or is over ("over"); `up` is the way to the site's root."""
    texts = TEXTS[language]
    title = {"missing": texts["shared.missing"], "over": texts["shared.over"]}[state]
    return _document({"state": state}, title, [texts[f"shared.{state}.help"]], "", language, up)


def _document(data: dict[str, Any], title: str, remarks: list[str], sketch: str, language: str, up: str = "../") -> str:
    """The whole document. What a browser shows at once, and without scripts for good, is the title, the remarks and the sketch."""
    texts = {
        code: {key: text for key, text in known.items() if key in KEYS or key.startswith(FAMILIES)}
        for code, known in TEXTS.items()
    }
    told = sentences()
    page_data = {"texts": texts, "errors": {kind: told[kind] for kind in ERRORS}, "languages": LANGUAGES}
    data = data | {"root": up, "parameters": list(Parameters.model_fields)}
    home = f'<a class="glm-shared-home" href="{up}">{html.escape(TEXTS[language]["title"])}</a>'
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="{"zh-CN" if language == "zh" else language}">',
            '<head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="robots" content="noindex, nofollow"><meta name="color-scheme" content="light dark">',
            f"<title>{html.escape(title)}</title>",
            f'<link rel="icon" type="image/svg+xml" href="{up}static/favicon.svg">',
            *(f'<link rel="stylesheet" href="{up}static/{name}">' for name in STYLES),
            *(f'<link rel="modulepreload" href="{up}static/{name}">' for name in SCRIPTS),
            "</head><body>",
            f'<div id="glm-shared-page"><header class="glm-shared-header">{home}</header>',
            f'<main data-state="{data["state"]}"><h1 dir="auto">{html.escape(title)}</h1>',
            *(f'<p class="glm-shared-notice">{html.escape(remark)}</p>' for remark in remarks),
            f'<div class="glm-shared">{sketch}</div></main></div>',
            _block("glm-texts", page_data),
            _block("glm-shared-data", data),
            f'<script type="module" src="{up}static/{SCRIPTS[0]}"></script></body></html>',
        ]
    )


def _block(name: str, data: Any) -> str:
    # "<" is the only character that could end the script element from within a JSON string.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", r"\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _sketch(content: dict[str, Any]) -> str:
    """The texts alone, as static/shared_view.js draws them but without colours and Markdown."""
    if content["kind"] != "chat":
        texts = [content["text"]] if content["edited"] else []
        for item in content["items"]:
            texts.append(f"{item['prompt']}{item['output'] or ''}" if item["mode"] == "generate" else item["output"])
        return "".join(_element("glm-shared-card", text or "") for text in texts)
    parts = []
    for number, item in enumerate(content["items"]):
        messages = item["prompt"] if number == 0 else item["prompt"][-1:]
        parts += [_element(f"glm-shared-message glm-shared-{one['role']}", one["content"]) for one in messages]
        parts.append(_element("glm-shared-message glm-shared-assistant", item["output"] or ""))
    return "".join(parts)


def _element(name: str, text: str) -> str:
    body = f'<div class="glm-shared-body glm-shared-plain" dir="auto">{html.escape(text)}</div>'
    return f'<article class="{name}">{body}</article>'
