"""What happens when processes are killed and the database fails: no answer lost in silence, no run without an end."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import NullPool, create_engine, text
from websockets.exceptions import ConnectionClosed

from app.settings import Settings
from storage.address import Address
from storage.columns import clean_text
from tests import postgres
from tests.server import LIVELY, TERMINAL, Client, Program, Thread, eventually, rows, serving, text_of

pytest_plugins = ("tests.server",)

UNFINISHED = "SELECT count(*) FROM run WHERE status NOT IN ('done', 'cancelled', 'error', 'interrupted')"


def story(seed: int, tokens: int) -> dict[str, Any]:
    sampling = {**LIVELY, "seed": seed, "min_new_tokens": tokens, "max_new_tokens": tokens}
    return {"type": "generate", "text": f"Story {seed}:", "parameters": sampling}


async def test_a_killed_worker_costs_no_client_its_answer_or_its_reason(server: Thread, database: Path) -> None:
    """16 streams, the model's process killed in the middle: each client gets a whole answer or one error."""
    first_worker = server.service.pool.status()["replicas"][0]["pid"]
    begun: asyncio.Queue[None] = asyncio.Queue()

    async def one(seed: int) -> list[dict[str, Any]]:
        async with Client(server) as client:
            await client.send(story(seed, tokens=1000))
            events = await client.until("delta")
            begun.put_nowait(None)
            (rest,) = (await client.all()).values()
            return events + rest

    streams = [asyncio.create_task(one(seed)) for seed in range(16)]
    for _ in range(16):
        await begun.get()
    psutil.Process(first_worker).kill()
    # Work that comes while there is no worker waits for the new one.
    async with Client(server) as client:
        late = await client.run(story(99, tokens=5))
    assert late[-1]["type"] == "done"

    ended = await asyncio.gather(*streams)
    for events in ended:
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert [event["type"] for event in events if event["type"] in TERMINAL] == [events[-1]["type"]]
        if events[-1]["type"] == "done":
            assert text_of(events) == events[-1]["text"] and events[-1]["usage"]["new_tokens"] == 1000
        else:
            assert (events[-1]["type"], events[-1]["kind"]) == ("error", "worker_died")
            assert events[-1]["message"] and events[-1]["retry_after_s"]
            (row,) = rows(database, "SELECT status, error_kind, output FROM run WHERE id = ?", events[0]["run"])
            assert row == ("error", "worker_died", text_of(events)), "what there was is kept"
    assert any(events[-1]["type"] == "error" for events in ended), "the kill came in the middle"
    status = server.service.pool.status()["replicas"][0]
    assert status["state"] == "ready" and status["pid"] != first_worker and server.get("/readyz").status_code == 200
    assert rows(database, UNFINISHED) == [(0,)]


def look(address: str, query: str) -> list[tuple]:
    """What a database of either kind holds, read beside the server."""
    engine = create_engine(
        Address.parse(address).server or f"sqlite:///{Address.parse(address).file}", poolclass=NullPool
    )
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.heavy)])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an empty database."""
    if request.param == "sqlite":
        yield str(tmp_path / "glm.db")
    else:
        address = postgres.new_database()
        yield address
        postgres.drop_database(address)


async def test_a_killed_server_leaves_interrupted_runs_and_no_processes(
    long_model: Path, address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """64 streams, the web process killed in the middle: each accepted run has its row, and an end after the next start."""
    monkeypatch.setenv("GLM_SPOOL", str(tmp_path / "spool"))
    running = Program(long_model, address, "--slots", "64")
    try:
        running.wait_until_ready()
        workers = running.workers()
        async with Client(running) as client:
            done = await client.run(story(1, tokens=5))
            for seed in range(64):
                await client.send(story(seed, tokens=4000))
            runs: set[str] = set()
            while len(runs) < 64:
                event = await client.receive()
                if event["type"] == "delta":
                    runs.add(event["run"])
            running.process.send_signal(signal.SIGKILL)
            with pytest.raises(ConnectionClosed):
                while True:
                    await client.receive()
            cookie = client.cookie
        running.stop()
        assert workers and eventually(
            lambda: not any(worker.is_running() for worker in workers), "the workers leave too"
        )
        assert look(address, UNFINISHED) == [(64,)], "each run was written before it began"
    finally:
        running.stop(signal.SIGKILL)

    running = Program(long_model, address)
    try:
        assert look(address, UNFINISHED) == [(0,)]
        assert look(address, "SELECT status, count(*) FROM run GROUP BY status ORDER BY status") == [
            ("done", 1),
            ("interrupted", 64),
        ]
        assert look(address, "SELECT count(*) FROM model_version") == [(1,)]
        async with Client(running, cookie) as client:
            for run in sorted(runs)[:8]:
                told = await client.ask({"type": "resume", "run": run, "after": 4})
                assert (told["type"], told["kind"], told["run"], told["seq"]) == ("error", "interrupted", run, 5)
            kept = await client.ask({"type": "resume", "run": done[0]["run"], "after": 0})
            assert (kept["type"], kept["text"]) == ("done", done[-1]["text"])
    finally:
        output, errors = running.stop(signal.SIGTERM)
    assert (output, running.process.returncode) == ("", 0)
    assert errors.count("\n") == 1 and "64 runs were interrupted" in errors


async def test_a_killed_database_costs_no_stream_its_answer_or_its_row(long_model: Path) -> None:
    """64 streams, PostgreSQL killed in the middle and started again: every answer arrives, and stands in the database."""
    machine = postgres.own_server(durable=True)
    address = machine.url.render_as_string(hide_password=False)
    try:
        running = Thread(Settings.create(model=str(long_model), database=address, slots=64, spool=str(machine.folder)))
        try:
            running.wait_until_ready()
            begun: asyncio.Queue[None] = asyncio.Queue()

            async def one(seed: int) -> list[dict[str, Any]]:
                async with Client(running) as client:
                    await client.send(story(seed, tokens=300))
                    events = await client.until("delta")
                    begun.put_nowait(None)
                    (rest,) = (await client.all()).values()
                    return events + rest

            streams = [asyncio.create_task(one(seed)) for seed in range(64)]
            for _ in range(64):
                await begun.get()
            machine.kill()
            async with Client(running) as client:
                refused = await client.ask(story(99, tokens=5))
                assert (refused["type"], refused["kind"]) == ("error", "database_unavailable")
            ended = await asyncio.gather(*streams)
            assert [events[-1]["type"] for events in ended] == ["done"] * 64, "the model doesn't need the database"
            assert running.service.hub.counts()["unwritten"] >= 1, "the kill came in the middle"
            machine.start()
            eventually(lambda: running.service.hub.counts()["unwritten"] == 0, "every end is written")
            assert look(address, UNFINISHED) == [(0,)]
            found = {id: (status, output) for id, status, output in look(address, "SELECT id, status, output FROM run")}
            assert found == {events[0]["run"]: ("done", clean_text(events[-1]["text"])) for events in ended}
            assert look(address, "SELECT count(*) FROM blank") == [(64,)]
            async with Client(running) as client:
                assert (await client.run(story(99, tokens=5)))[-1]["type"] == "done"
        finally:
            running.stop()
    finally:
        machine.remove()


@contextmanager
def broken(database: Path) -> Iterator[None]:
    """The database without its table of runs, as if it were damaged, until the block ends."""

    def execute(statement: str) -> None:
        with closing(sqlite3.connect(database, timeout=30)) as connection:
            connection.execute(statement)
            connection.commit()

    execute("ALTER TABLE run RENAME TO lost")
    try:
        yield
    finally:
        execute("ALTER TABLE lost RENAME TO run")


@pytest.fixture(scope="module")
def fragile_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fragile") / "glm.db"


@pytest.fixture(scope="module")
def fragile(long_model: Path, fragile_database: Path) -> Iterator[Thread]:
    """A server whose database may be broken."""
    with serving(Settings.create(model=str(long_model), database=str(fragile_database))) as running:
        yield running


async def test_without_its_record_a_request_is_refused_and_nothing_runs(
    fragile: Thread, fragile_database: Path
) -> None:
    async with Client(fragile) as client:
        with broken(fragile_database):
            refused = await client.ask(story(1, tokens=5) | {"id": "mine"})
            assert (refused["type"], refused["kind"], refused["id"]) == ("error", "database_unavailable", "mine")
            assert (refused["run"], fragile.service.hub.counts()["running"]) == (None, 0)
            assert fragile.get("/api/runs/any").json()["error"]["kind"] == "database_unavailable"
        assert (await client.run(story(1, tokens=5)))[-1]["type"] == "done", "and it recovers by itself"


async def test_an_end_that_cant_be_written_is_written_later(fragile: Thread, fragile_database: Path) -> None:
    """The client has its answer in any case."""
    query = "SELECT status, output FROM run WHERE id = ?"
    async with Client(fragile) as client:
        await client.send(story(2, tokens=4000))
        events = await client.until("delta")
        run = events[0]["run"]
        assert eventually(lambda: rows(fragile_database, query, run)[0][0] == "running", "its start is written")
        with broken(fragile_database):
            await client.send({"type": "cancel", "run": run})
            (rest,) = (await client.all()).values()
            assert rest[-1]["type"] == "cancelled"
            assert fragile.service.hub.counts()["unwritten"] == 1
        assert eventually(lambda: rows(fragile_database, query, run)[0][0] == "cancelled", "the end is written")
        assert rows(fragile_database, query, run) == [("cancelled", rest[-1]["text"])]
        assert eventually(lambda: fragile.service.hub.counts()["unwritten"] == 0, "and nothing waits any more")


async def test_a_request_that_kills_its_connection_is_still_accepted_wholly(
    fragile: Thread, fragile_database: Path
) -> None:
    """The client goes away in the very moment of asking: there is a run with an end, or there is none."""
    async with Client(fragile) as client:
        for seed in range(10):
            await client.send(story(seed, tokens=3))
        client.socket.transport.abort()
    # A request that is on its way into the record is no run yet, so both are looked at.
    eventually(
        lambda: (
            fragile.service.hub.counts() | {"kept": 0} == {"running": 0, "kept": 0, "unwritten": 0}
            and rows(fragile_database, UNFINISHED) == [(0,)]
        ),
        "all has ended",
    )
