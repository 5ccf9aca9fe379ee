"""The database takes no writes: what visitors are told, what they still get, and that the record is whole afterwards."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings
from tests import databases
from tests.server import LIVELY, Client, Program, Thread, eventually, rows

pytest_plugins = ("tests.server",)

WRITING = {"state": "writing", "reason": None}


def story(seed: int, tokens: int, **more: Any) -> dict[str, Any]:
    sampling = {**LIVELY, "seed": seed, "min_new_tokens": tokens, "max_new_tokens": tokens}
    return {"type": "generate", "text": f"Story {seed}:", "parameters": sampling, **more}


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Another program holds the file until the block ends."""
    with closing(sqlite3.connect(database, isolation_level=None, timeout=60)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            holder.execute("ROLLBACK")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A locked file is given up sooner, so that nothing here waits for seconds."""
    monkeypatch.setattr("storage.database.BUSY_SECONDS", 0.3)
    monkeypatch.setattr("app.ledger.SPOOL_SECONDS", 0.6)
    monkeypatch.setattr("app.ledger.LONGEST_PAUSE", 0.5)


@contextmanager
def serving(model: Path, database: Path | str, **settings: Any) -> Iterator[Thread]:
    running = Thread(Settings.create(model=str(model), database=str(database), **settings))
    try:
        # Not /readyz, which also asks whether runs are taken.
        eventually(lambda: running.get("/api/info").json()["ready"], "the model is ready")
        yield running
    finally:
        running.stop()


def state(server: Thread | Program) -> dict[str, Any]:
    return server.get("/api/info").json()["record"]


async def test_a_locked_database_is_named_and_nothing_runs(long_model: Path, tmp_path: Path) -> None:
    database = tmp_path / "glm.db"
    with serving(long_model, database) as server:
        async with Client(server) as client:
            with locked(database):
                refused = await client.ask(story(1, tokens=5))
                assert (refused["type"], refused["kind"], refused["run"]) == ("error", "database_unavailable", None)
                assert refused["message"] == "Another program holds the database." and refused["retry_after_s"]
                assert state(server) == {"state": "refusing", "reason": "Another program holds the database."}
                ready = server.get("/readyz")
                assert (ready.status_code, ready.json()["reason"]) == (503, "Another program holds the database.")
                assert not list(tmp_path.glob("glm.db.spool/*/*.jsonl")), "nothing of a refused request is kept"
            assert (await client.run(story(1, tokens=5)))[-1]["type"] == "done", "and it recovers by itself"
        assert eventually(lambda: state(server) == WRITING, "the state is told")
        assert server.get("/readyz").json() == {"status": "ready", "record": WRITING}
        assert server.service.hub.counts()["unwritten"] == 0
    assert rows(database, "SELECT status FROM run") == [("done",)]


async def test_a_locked_database_is_bridged_where_the_host_allows_it(long_model: Path, tmp_path: Path) -> None:
    database = tmp_path / "glm.db"
    with serving(long_model, database, when_unwritable="answer") as server:
        async with Client(server) as client, Client(server) as patient:
            before = await client.run(story(0, tokens=5))
            await patient.send(story(1, tokens=4000))
            begun = await patient.until("delta")
            with locked(database):
                answered = await client.run(story(2, tokens=5))
                assert answered[-1]["type"] == "done"
                talk = answered[0]["conversation"]
                again = await client.run(story(3, tokens=5, conversation=talk))
                assert again[-1]["type"] == "done", "a conversation that isn't in the database yet goes on"
                old = await client.run(story(4, tokens=5, conversation=before[0]["conversation"]))
                assert old[-1]["type"] == "done"
                assert state(server) == {"state": "waiting", "reason": "Another program holds the database."}
                assert server.get("/readyz").json() == {"status": "ready", "record": state(server)}
                await patient.send({"type": "cancel", "run": begun[0]["run"]})
                (cancelled,) = (await patient.all()).values()
                assert rows(database, "SELECT count(*) FROM run") == [(2,)]
                assert server.service.hub.counts()["unwritten"] >= 8
            assert eventually(lambda: state(server) == WRITING, "everything is written")
            assert server.service.hub.counts()["unwritten"] == 0
            after = await client.run(story(5, tokens=5))
    found = {row[0]: row[1:] for row in rows(database, "SELECT id, status, output, conversation_id FROM run")}
    assert len(found) == 6
    for events in (before, answered, again, old, after):
        assert found[events[0]["run"]] == ("done", events[-1]["text"], events[0]["conversation"])
    assert found[begun[0]["run"]][:2] == ("cancelled", cancelled[-1]["text"])
    assert rows(database, "SELECT title, visitor != '' FROM conversation WHERE id = ?", talk) == [("Story 2:", 1)]
    assert rows(database, "SELECT count(*) FROM run WHERE started IS NULL OR created > started") == [(0,)]
    assert not (tmp_path / "glm.db.spool").exists()


async def test_a_server_killed_meanwhile_leaves_its_runs_to_the_next(long_model: Path, tmp_path: Path) -> None:
    database = tmp_path / "glm.db"
    running = Program(long_model, database, "--when-unwritable", "answer")
    try:
        running.wait_until_ready()
        async with Client(running) as client:
            with locked(database):
                done = await client.run(story(1, tokens=5))
                await client.send(story(2, tokens=4000))
                begun = await client.until("delta")
                running.process.send_signal(signal.SIGKILL)
                await asyncio.to_thread(running.process.wait)
        assert rows(database, "SELECT count(*) FROM run") == [(0,)]
    finally:
        running.stop(signal.SIGKILL)
    (segment,) = tmp_path.glob("glm.db.spool/*/*.jsonl")
    content = segment.read_bytes().rstrip(b"\0")
    segment.write_bytes(content + b'{"op": "finalise", "run": "half of a l')
    with serving(long_model, database):
        found = {row[0]: row[1:] for row in rows(database, "SELECT id, status, output FROM run")}
        assert found == {
            done[0]["run"]: ("done", done[-1]["text"]),
            begun[0]["run"]: ("interrupted", None),
        }
    assert rows(database, "SELECT count(*) FROM conversation") == [(2,)]


@pytest.mark.heavy
async def test_a_really_full_disk_is_bridged(long_model: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    flags = ("--when-unwritable", "answer", "--spool-limit", "1MiB", "--finished-runs", "0")
    running = Program(long_model, disk / "glm.db", *flags, before=databases.small_disk(disk, "24m"))
    try:
        running.wait_until_ready()
        inside = Path(f"/proc/{running.process.pid}/root{disk}")
        async with Client(running) as client:
            with open(inside / "filler", "wb", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
                while True:
                    filler.write(bytes(4096))
            ended = [await client.run(story(seed, tokens=100)) for seed in range(6)]
            assert [events[-1]["type"] for events in ended] == ["done"] * 6
            assert state(running) == {"state": "waiting", "reason": "The disk that holds the database is full."}
            (inside / "filler").unlink()
            assert eventually(lambda: state(running) == WRITING, "everything is written")
            for path in inside.glob("glm.db*"):
                if path.is_file():
                    shutil.copy(path, tmp_path)  # SQLite itself would look for it outside
            found = dict(rows(tmp_path / "glm.db", "SELECT id, output FROM run WHERE status = 'done'"))
            assert found == {events[0]["run"]: events[-1]["text"] for events in ended}
            assert rows(tmp_path / "glm.db", "SELECT count(*) FROM blank") == [(6,)]
    finally:
        _, errors = running.stop()
    assert "is full" in errors and "Story" not in errors and "Traceback" not in errors
