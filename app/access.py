"""Who is asking and what they may do; the same code for HTTP and for the websocket.

A visitor is whoever shows the cookie `glm_visitor`: 192 random bits, unreadable for scripts, sent to no other site. Only its
hash is kept in the database and in memory, so that reading them lets nobody take a visitor's place. A page of another
site may not act for a visitor (`check_origin`); programs send no Origin header and are let in.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import Problem
from storage.identifier import new_id
from storage.visitors import visitor_id

COOKIE = "glm_visitor"
COOKIE_SECONDS = 365 * 24 * 3600
#: What the playground may load and run. Gradio makes functions from strings for its listeners in the browser ('unsafe-eval') and
#: writes styles and scripts into the page ('unsafe-inline'); nothing comes from or goes to another host.
PAGE_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self'",
        "font-src 'self'",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)
_TOKEN = re.compile(r"[A-Za-z0-9_-]{32}")
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


@dataclass(frozen=True, slots=True)
class Visitor:
    """`id` stands in the database; `token` is the cookie's value; `is_new` says that the cookie has yet to be set."""

    id: str
    token: str
    is_new: bool


def visitor_of(connection: HTTPConnection) -> Visitor:
    """The visitor of a request or a websocket handshake; the same one for every call on one connection."""
    known: Visitor | None = connection.scope.get("glm_visitor")
    if known is None:
        token = connection.cookies.get(COOKIE, "")
        is_new = not _TOKEN.fullmatch(token)
        if is_new:
            token = new_id(24)
        known = Visitor(visitor_id(token), token, is_new)
        connection.scope["glm_visitor"] = known
    return known


def cookie_header(visitor: Visitor, connection: HTTPConnection) -> str:
    """The value of the Set-Cookie header that makes a client this visitor."""
    path = connection.scope.get("root_path", "") or "/"
    secure = "; Secure" if connection.scope.get("scheme") in ("https", "wss") else ""
    return f"{COOKIE}={visitor.token}; Path={path}; Max-Age={COOKIE_SECONDS}; HttpOnly; SameSite=Lax{secure}"


def check_origin(connection: HTTPConnection, allowed: tuple[str, ...]) -> None:
    """Raises Problem `forbidden` for a page that is neither this site's own nor one of the `allowed` origins."""
    origin = connection.headers.get("origin")
    if origin is None or origin.lower() in allowed:
        return
    parts = urlsplit(origin.lower())
    host = urlsplit(f"//{connection.headers.get('host', '').lower()}")
    try:
        # The scheme is not compared, since a proxy may end TLS; a default port may be written or not.
        scheme = parts.scheme
        same = (
            scheme in ("http", "https")
            and bool(parts.hostname)
            and (parts.hostname, parts.port or _DEFAULT_PORTS[scheme])
            == (
                host.hostname,
                host.port or _DEFAULT_PORTS[scheme],
            )
        )
    except ValueError:  # a port that is no number
        same = False
    if not same:
        raise Problem("forbidden", f"A page of {origin[:200]} may not use this server.", field="Origin")


def address_of(connection: HTTPConnection) -> str:
    """The network address that limits are counted for; one IPv6 customer has a whole /64."""
    host = connection.client.host if connection.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


class RateLimit:
    """At most `per_minute` grants a minute for each key, with a whole minute's worth at once; 0 grants always.

    Memory is bounded: of more than `keys` keys, those unused for longest start anew.
    """

    def __init__(self, per_minute: int, *, keys: int = 20000, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._keys = keys
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # key -> (grants left, when that was)

    def wait(self, key: str) -> float:
        """Take one grant; returns 0, or the seconds until there is one (and takes nothing)."""
        if not self.per_minute:
            return 0.0
        now = self._clock()
        left, then = self._buckets.pop(key, (float(self.per_minute), now))
        left = min(float(self.per_minute), left + (now - then) * self.per_minute / 60)
        wait = 0.0 if left >= 1 else (1 - left) * 60 / self.per_minute
        self._buckets[key] = (left if wait else left - 1, now)
        if len(self._buckets) > self._keys:
            self._buckets.popitem(last=False)
        return wait


class Limits:
    """What one visitor, and all visitors of one address together, may start."""

    def __init__(self, rate_limit: int, address_rate_limit: int) -> None:
        self._visitors = RateLimit(rate_limit)
        self._addresses = RateLimit(address_rate_limit)

    def admit(self, visitor: Visitor, address: str) -> None:
        """Count one run. Raises Problem `rate_limited` with the seconds to wait."""
        # A refused visitor costs the address nothing, so that one can't use up what its neighbours behind a NAT have.
        for limit, key, who in ((self._visitors, visitor.id, "visitor"), (self._addresses, address, "address")):
            if wait := limit.wait(key):
                raise Problem(
                    "rate_limited",
                    f"One {who} may start {limit.per_minute} runs in a minute.",
                    limit=limit.per_minute,
                    retry_after_s=round(wait, 2),
                )


class AccessMiddleware:
    """ASGI: gives pages and API answers the visitor's cookie, and every answer the headers that keep browsers careful."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        visitor = visitor_of(connection)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        # Who only reads a shared page gets none.
        is_page = "text/html" in connection.headers.get("accept", "") and not path.startswith("/s/")
        wants_cookie = visitor.is_new and (path.startswith("/api/") or is_page)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if wants_cookie:
                    headers.append("Set-Cookie", cookie_header(visitor, connection))
                    headers.setdefault("Cache-Control", "private, no-cache")
                if path.startswith("/api/"):
                    headers.setdefault("Cache-Control", "no-store")
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Referrer-Policy", "same-origin")
                headers.setdefault("Content-Security-Policy", PAGE_POLICY)
            await send(message)

        await self.app(scope, receive, with_headers)
