"""Votes between two answers: storage.votes on SQLite and PostgreSQL, and POST /api/votes on a real server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from storage import Database, Record
from storage.models import Vote
from tests import databases
from tests.databases import accept, refused
from tests.server import PATIENCE, Client, Thread, rows

pytest_plugins = ("tests.server",)

# Each on SQLite and on PostgreSQL.
address, record = databases.address, databases.record


async def votes(record: Record) -> list[tuple[str, str, str, str, bool]]:
    """Every vote that is stored."""

    async def work(session: AsyncSession) -> list[Vote]:
        return list(await session.scalars(select(Vote).order_by(Vote.created)))

    found = await record.database.read(work)
    return [(row.first_run_id, row.second_run_id, row.visitor, row.choice, row.blind) for row in found]


async def test_a_vote_is_kept_and_can_be_changed(record: Record):
    for id in ("b", "a", "c"):
        await accept(record, id)
    stored = await record.vote("b", "a", "ann", "second", blind=True)
    assert (stored.choice, stored.blind) == ("second", True)
    assert await votes(record) == [("b", "a", "ann", "second", True)]
    changed = await record.vote("b", "a", "ann", "neither")
    assert changed.created == stored.created < changed.updated
    await record.vote("b", "c", "ann", "tie", blind=True)
    assert await votes(record) == [("b", "a", "ann", "neither", False), ("b", "c", "ann", "tie", True)]


@pytest.mark.parametrize(
    "choice, turned", [("first", "second"), ("second", "first"), ("tie", "tie"), ("neither", "neither")]
)
async def test_a_pair_voted_the_other_way_round_is_the_same_pair(record: Record, choice: str, turned: str):
    for id in ("a", "b"):
        await accept(record, id)
    await record.vote("b", "a", "ann", "tie")
    stored = await record.vote("a", "b", "ann", choice)
    assert (stored.first_run_id, stored.choice) == ("b", turned)
    assert await votes(record) == [("b", "a", "ann", turned, False)]


async def test_only_the_own_runs_can_be_voted_on(record: Record):
    await accept(record, "mine")
    await accept(record, "mine too")
    await accept(record, "bob's", visitor="bob")
    for first, second, visitor in (("mine", "bob's", "ann"), ("bob's", "mine", "ann"), ("mine", "none", "ann")):
        assert await refused(record.vote(first, second, visitor, "first")) == "not_found"
    assert await refused(record.vote("mine", "mine too", "bob", "first")) == "not_found"
    assert await votes(record) == []


async def test_votes_of_two_processes_at_the_same_moment_leave_one(record: Record, address: str):
    other = Record(Database(address))
    for number in range(10):
        first, second = f"{number} a", f"{number} b"
        await accept(record, first)
        await accept(record, second)
        await asyncio.gather(record.vote(first, second, "ann", "first"), other.vote(second, first, "ann", "first"))
    await other.database.close()
    assert len(await votes(record)) == 10


async def test_a_deleted_conversation_keeps_its_votes_and_takes_no_more(record: Record):
    conversation = await record.create_conversation("ann", "complete", "SECRET")
    for id in ("a", "b"):
        await accept(record, id, conversation=conversation, prompt="SECRET")
        await record.finalise_run(id, "done", output="SECRET")
    await record.vote("a", "b", "ann", "first", blind=True)
    await record.delete_conversation(conversation, "ann")
    assert await votes(record) == [("a", "b", "ann", "first", True)], "it holds no text"
    assert await refused(record.vote("a", "b", "ann", "second")) == "not_found"


@pytest.fixture
async def pair(server: Thread) -> tuple[dict[str, str], str, str]:
    """A visitor's cookie header and two finished runs of theirs."""
    runs = []
    async with Client(server) as client:
        for seed in (1, 2):
            parameters = {"max_new_tokens": 2, "seed": seed}
            events = await client.run({"type": "generate", "text": "Once", "parameters": parameters})
            runs.append(events[-1]["run"])
    assert client.cookie
    return {"Cookie": client.cookie}, runs[0], runs[1]


def send(server: Thread, headers: dict[str, str], **body: Any) -> httpx.Response:
    return httpx.post(server.http + "/api/votes", json=body, headers=headers, timeout=PATIENCE)


def test_a_vote_over_http(server: Thread, database: Path, pair: tuple[dict[str, str], str, str]) -> None:
    cookie, first, second = pair
    body = {"first": first, "second": second, "choice": "second", "blind": True}
    assert send(server, cookie, **body).json() == body
    assert send(server, cookie, **body | {"choice": "tie", "blind": False}).json()["choice"] == "tie"
    query = "SELECT first_run_id, second_run_id, choice, blind FROM vote WHERE first_run_id IN (?, ?)"
    assert rows(database, query, first, second) == [(first, second, "tie", 0)]


@pytest.mark.parametrize(
    "change, status, field",
    [
        ({"choice": "better"}, 422, "choice"),
        ({"choice": None}, 422, "choice"),
        ({"blind": "yes"}, 422, "blind"),
        ({"stars": 5}, 422, "stars"),
        ({"first": ""}, 422, "first"),
        ({"second": "x" * 129}, 422, "second"),
        ({"second": "none"}, 404, None),
    ],
)
def test_a_vote_that_cant_be_used_is_refused(
    server: Thread, pair: tuple[dict[str, str], str, str], change: dict[str, Any], status: int, field: str | None
) -> None:
    cookie, first, second = pair
    body = {"first": first, "second": second, "choice": "first"} | change
    refusal = send(server, cookie, **body)
    assert (refusal.status_code, refusal.json()["error"].get("field")) == (status, field)


def test_a_vote_needs_two_runs_of_ones_own_and_this_site(
    server: Thread, database: Path, pair: tuple[dict[str, str], str, str]
) -> None:
    cookie, first, second = pair
    same = send(server, cookie, first=first, second=first, choice="tie")
    assert (same.status_code, same.json()["error"]["field"]) == (422, "second")
    body = {"first": first, "second": second, "choice": "tie"}
    assert send(server, {"Cookie": "glm_visitor=" + "A" * 32}, **body).status_code == 404
    assert send(server, cookie | {"Origin": "http://evil.example"}, **body).status_code == 403
    plain = httpx.post(server.http + "/api/votes", content="{}", headers=cookie | {"Content-Type": "text/plain"})
    assert plain.status_code == 422
    assert rows(database, "SELECT * FROM vote WHERE first_run_id = ?", first) == []
