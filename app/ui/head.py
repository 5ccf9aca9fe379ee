"""What stands in the head of the playground's HTML from its first byte: texts, styles, scripts to fetch at once.

Gradio would add its `head` by a script, seconds later: until then the page would show Gradio's own styles, one of which loads
pictures that the page's policy forbids. `PageHead` puts it into the document that Gradio renders, and takes out what a page of
this project has no use for: Gradio's own descriptions for link previews, which name other hosts.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.ui.texts import TEXTS

_PREVIEWS = re.compile(r'<meta\s+(?:property="og:|name="twitter:)[^>]*>\s*')


def head(data: Mapping[str, Any], styles: Sequence[str], scripts: Sequence[str]) -> str:
    """The elements: `data` as JSON for static/language.js, links to `styles` and `scripts` of static/."""
    # "<" is the only character that could end the script element from within a JSON string.
    texts = json.dumps(data, ensure_ascii=False).replace("<", r"\u003c")
    preview = {"og:title": TEXTS["en"]["title"], "og:description": TEXTS["en"]["tagline"], "og:type": "website"}
    return "".join(
        (
            f'<script type="application/json" id="glm-texts">{texts}</script>',
            *(f'<link rel="stylesheet" href="static/{name}">' for name in styles),
            *(f'<link rel="modulepreload" href="static/{name}">' for name in scripts),
            '<link rel="icon" type="image/svg+xml" href="static/favicon.svg">',
            *(f'<meta property="{name}" content="{html.escape(text)}">' for name, text in preview.items()),
        )
    )


class PageHead:
    """ASGI: adds `head` to the page at the site's root; everything else passes as it is."""

    def __init__(self, app: ASGIApp, head: str) -> None:
        self.app = app
        self.head = head

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = scope["type"] == "http" and scope["method"] == "GET"
        if not asked or scope["path"].removeprefix(scope.get("root_path", "")) not in ("", "/"):
            await self.app(scope, receive, send)
            return
        start: Message | None = None
        body = b""

        async def watched(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                # Compressed or other content can't be added to.
                headers = Headers(raw=message["headers"])
                if headers.get("content-type", "").startswith("text/html") and "content-encoding" not in headers:
                    start = message
                    return
            if start is None or message["type"] != "http.response.body":
                await send(message)
                return
            body += message.get("body", b"")
            if message.get("more_body", False):
                return
            text = _PREVIEWS.sub("", body.decode())
            body = text.replace("</head>", f"{self.head}</head>", 1).encode()
            if "content-length" in Headers(raw=start["headers"]):
                MutableHeaders(raw=start["headers"])["content-length"] = str(len(body))
            await send(start)
            start = None
            await send(message | {"body": body})

        await self.app(scope, receive, watched)
