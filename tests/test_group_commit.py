"""storage.group_commit: writes of one moment share a transaction; each has its own answer, and none pays for its neighbour."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, event, make_url, text

from storage import FilledBlank, Record, StorageError
from storage.group_commit import GroupCommit
from tests import databases
from tests.databases import accept

# The fixtures of this file, each on SQLite and on PostgreSQL.
address, record = databases.address, databases.record


def commits(record: Record) -> list[None]:
    """Grows with each commit of writes that go together."""
    seen: list[None] = []
    event.listen(record.database._together, "commit", lambda connection: seen.append(None))
    return seen


async def test_runs_of_one_moment_share_a_commit(record: Record) -> None:
    seen = commits(record)
    await asyncio.gather(*(accept(record, f"run {number}") for number in range(100)))
    assert len(seen) <= 3 and (await record.counts())["runs"] == 100
    await accept(record, "alone")
    assert (await record.get_run("alone", None)).status == "accepted"


async def test_a_bad_row_fails_alone(record: Record) -> None:
    mine = await record.create_conversation("ann", "chat")
    await accept(record, "taken")
    bad: dict[str, Any] = {
        "taken": {},
        "of nobody's conversation": {"conversation": "none"},
        "of no version": {"model_version": 12345},
        "nonsense": {"parameters": {1: object()}},
    }
    good = {f"run {number}": {"conversation": mine} for number in range(8)}
    named = list((good | bad).items())
    named = named[:2] + named[8:] + named[2:8]
    results = dict(
        zip(
            [name for name, _ in named],
            await asyncio.gather(*(accept(record, name, **values) for name, values in named), return_exceptions=True),
            strict=True,
        )
    )
    assert {name: results[name] for name in good} == dict.fromkeys(good)
    kinds = {name: getattr(results[name], "kind", type(results[name]).__name__) for name in bad}
    assert kinds.pop("nonsense") in ("StatementError", "TypeError")
    assert kinds == {"taken": "conflict", "of nobody's conversation": "not_found", "of no version": "not_found"}
    assert {run.id for run in (await record.get_conversation(mine, "ann")).runs} == set(good)
    assert (await record.counts())["runs"] == 9

    blank = FilledBlank(0, "[MASK]", "text", (1,), (-1.0,))
    ends = [record.finalise_run(name, "done", output=name, blanks=[blank]) for name in good]
    twice = [FilledBlank(0, "[MASK]", "one"), FilledBlank(0, "[MASK]", "two")]
    doubled = record.finalise_run("taken", "done", blanks=twice)
    *won, lost = await asyncio.gather(*ends, doubled, return_exceptions=True)
    assert won == [True] * 8 and isinstance(lost, StorageError)
    assert (await record.get_run("taken", None)).status == "accepted", "nothing of it is half written"
    assert (await record.get_run("run 3", None)).blanks[0].token_ids == (1,)


async def test_a_refusal_before_any_change_costs_the_others_nothing(record: Record) -> None:
    """Anybody can name a conversation that isn't theirs: that must not undo the work of a whole group."""
    seen = commits(record)
    asked = [accept(record, f"run {number}", conversation="none" if number % 2 else None) for number in range(40)]
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert [getattr(result, "kind", None) for result in results] == [None, "not_found"] * 20
    assert len(seen) <= 3


async def test_a_writer_whose_caller_is_gone_is_carried_through(record: Record) -> None:
    for number in range(3):
        task = asyncio.create_task(accept(record, f"run {number}"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await record.database.close()
    assert (await record.counts())["runs"] == 3


async def test_who_waits_for_a_lock_waits_alone(record: Record, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if record.database.dialect == "sqlite":
        pytest.skip("SQLite has one lock for all: see the test of a locked file")
    monkeypatch.setattr("storage.group_commit.LOCK_MILLISECONDS", 100)
    for number in range(10):
        await accept(record, f"run {number}")
    engine = create_engine(make_url(address).set(drivername="postgresql+psycopg"))

    def hold(connection: Connection) -> None:
        connection.execute(text("SELECT id FROM run WHERE id = 'run 3' FOR UPDATE"))

    with engine.connect() as holder:
        hold(holder)
        ends = [
            asyncio.create_task(record.finalise_run(f"run {number}", "done", output=str(number)))
            for number in range(10)
        ]
        done, waiting = await asyncio.wait(ends[:3] + ends[4:])
        assert all(task.result() for task in done) and not waiting
        assert not ends[3].done() and (await record.get_run("run 9", None)).output == "9"
        holder.rollback()
        assert await ends[3]
    engine.dispose()


async def test_a_database_that_is_gone_refuses_a_group_at_once() -> None:
    """Each waiting for itself would take as many times as long."""
    calls = []

    async def gone(work: Any) -> None:
        calls.append(work)
        raise StorageError("database_unavailable", "It is gone.")

    groups = GroupCommit(gone, locks=False)
    answers = await asyncio.gather(*(groups.ask(lambda connection: None) for _ in range(20)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["It is gone."] * 20 and len(calls) == 1
