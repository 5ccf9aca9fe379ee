"""Visitors, origins, limits: the rules by themselves, and at the door of a real server."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.requests import HTTPConnection
from websockets.exceptions import InvalidStatus

from app.access import Limits as VisitorLimits
from app.access import RateLimit, Visitor, address_of, check_origin, cookie_header, visitor_of
from app.errors import Problem
from app.settings import Settings
from tests.server import Client, Thread, rows

pytest_plugins = ("tests.server",)


def connection(headers: dict[str, str], client: str = "203.0.113.7", **scope: object) -> HTTPConnection:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return HTTPConnection({"type": "http", "headers": raw, "client": (client, 1), "scheme": "http", **scope})


@pytest.mark.parametrize(
    "origin, host, fine",
    [
        (None, "localhost:7860", True),
        ("http://localhost:7860", "localhost:7860", True),
        ("http://LOCALHOST:7860", "localhost:7860", True),
        ("https://glm.example", "glm.example", True),
        ("https://glm.example", "glm.example:443", True),
        ("http://[::1]:7860", "[::1]:7860", True),
        ("https://friend.example", "glm.example", True),
        ("http://localhost:7861", "localhost:7860", False),
        ("http://localhost", "localhost:7860", False),
        ("http://127.0.0.1:7860", "localhost:7860", False),
        ("https://glm.example.evil", "glm.example", False),
        ("https://friend.example.evil", "glm.example", False),
        ("http://friend.example", "glm.example", False),
        ("null", "localhost:7860", False),
        ("", "localhost:7860", False),
        ("file://", "localhost:7860", False),
        ("http://localhost:port", "localhost:7860", False),
        ("http://", "", False),
    ],
)
def test_only_pages_of_this_site_and_of_allowed_ones_come_in(origin: str | None, host: str, fine: bool) -> None:
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    try:
        check_origin(connection(headers), ("https://friend.example",))
        passed = True
    except Problem as problem:
        assert problem.kind == "forbidden"
        passed = False
    assert passed is fine


def test_a_visitor_is_known_by_the_cookie_and_kept_by_its_hash() -> None:
    new = visitor_of(connection({}))
    assert new.is_new and len(new.token) == 32
    known = visitor_of(connection({"cookie": f"other=1; glm_visitor={new.token}"}))
    assert known == Visitor(new.id, new.token, False)
    assert new.token not in new.id and visitor_of(connection({})).id != new.id
    for wrong in ("", "short", "x" * 33, "x" * 31 + ";", "../../../../../etc/passwd/........"):
        assert visitor_of(connection({"cookie": f"glm_visitor={wrong}"})).is_new


def test_the_cookie_is_only_for_the_browser_and_this_site() -> None:
    plain = connection({})
    assert {"Path=/", "HttpOnly", "SameSite=Lax"} <= set(cookie_header(visitor_of(plain), plain).split("; "))
    assert "Secure" not in cookie_header(visitor_of(plain), plain)
    secure = connection({}, scheme="https", root_path="/glm")
    assert {"Path=/glm", "Secure"} <= set(cookie_header(visitor_of(secure), secure).split("; "))


def test_addresses_are_counted_as_customers_have_them() -> None:
    assert address_of(connection({}, "203.0.113.7")) == "203.0.113.7"
    assert address_of(connection({}, "2001:db8:1:2:3:4:5:6")) == address_of(connection({}, "2001:db8:1:2::9"))
    assert address_of(connection({}, "2001:db8:1:3::9")) != address_of(connection({}, "2001:db8:1:2::9"))


def test_a_rate_limit_gives_a_minutes_worth_and_then_as_much_as_time_brings() -> None:
    now = 100.0
    limit = RateLimit(60, keys=2, clock=lambda: now)
    assert [limit.wait("a") for _ in range(60)] == [0.0] * 60
    assert limit.wait("a") == pytest.approx(1.0)
    assert limit.wait("b") == 0.0, "another key has its own"
    now += 0.5
    assert limit.wait("a") == pytest.approx(0.5)
    now += 0.5
    assert (limit.wait("a"), limit.wait("a") > 0) == (0.0, True)
    limit.wait("c")
    limit.wait("d")
    assert limit.wait("a") == 0.0, "only so many keys are remembered"
    assert [RateLimit(0).wait("a") for _ in range(1000)] == [0.0] * 1000


def test_a_visitor_over_the_limit_costs_the_neighbours_nothing() -> None:
    limits = VisitorLimits(rate_limit=2, address_rate_limit=3)
    greedy, modest = Visitor("greedy", "", False), Visitor("modest", "", False)
    limits.admit(greedy, "nat")
    limits.admit(greedy, "nat")
    for _ in range(5):
        with pytest.raises(Problem, match="One visitor may start 2 runs in a minute") as caught:
            limits.admit(greedy, "nat")
        assert caught.value.kind == "rate_limited" and 0 < (caught.value.retry_after_s or 0) <= 30
    limits.admit(modest, "nat")
    with pytest.raises(Problem, match="One address may start 3"):
        limits.admit(modest, "nat")


async def test_a_foreign_page_gets_no_socket(server: Thread) -> None:
    for origin in ("http://evil.example", "null", f"http://localhost:{server.port}"):
        with pytest.raises(InvalidStatus) as caught:
            async with Client(server, origin=origin):
                pass
        assert caught.value.response.status_code == 403
        assert b'"kind":"forbidden"' in caught.value.response.body
    async with Client(server, origin=server.http) as client:
        assert (await client.run({"type": "generate", "text": "a", "parameters": {"max_new_tokens": 1}}))[-1][
            "type"
        ] == "done"


async def test_the_cookie_is_given_once_and_its_value_is_nowhere_in_the_database(
    server: Thread, database: Path
) -> None:
    page = server.get("/api/info", headers={"Accept": "text/html"})
    cookie = page.headers["set-cookie"].partition(";")[0]
    assert "set-cookie" not in server.get("/api/info", headers={"Cookie": cookie}).headers
    assert "set-cookie" not in server.get("/healthz").headers
    async with Client(server, cookie) as client:
        assert client.cookie == cookie and "Set-Cookie" not in client.socket.response.headers  # type: ignore[union-attr]
        await client.run({"type": "generate", "text": "a", "parameters": {"max_new_tokens": 1}})
    token = cookie.partition("=")[2]
    assert not [
        row
        for table in ("run", "conversation")
        for row in rows(database, f"SELECT * FROM {table}")
        if token in str(row)
    ]


def test_settings_give_the_limits() -> None:
    settings = Settings.create(rate_limit=1, address_rate_limit=0)
    limits = VisitorLimits(settings.rate_limit, settings.address_rate_limit)
    limits.admit(Visitor("a", "", False), "x")
    with pytest.raises(Problem):
        limits.admit(Visitor("a", "", False), "x")
    limits.admit(Visitor("b", "", False), "x")
