"""app.record_keeper: the record as a server keeps it, without a model: names, quota, spool, forecast."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from app.errors import Problem
from app.outcome import Outcome
from app.record_keeper import RecordKeeper
from app.settings import Settings
from storage import Database, Record, StorageError
from storage.disk import DiskState, lines, parse_size
from storage.presence import Presence
from tests import databases
from tests.databases import accept

VALUES = {"visitor": "ann", "mode": "generate", "prompt": "Hello", "parameters": {}}

# The fixtures of this file, each on SQLite and on PostgreSQL.
address, record = databases.address, databases.record


@asynccontextmanager
async def kept(address: str, folder: Path, **settings: Any) -> AsyncIterator[RecordKeeper]:
    """A server's record from its start to its end. The spool always in `folder`: PostgreSQL's would be the user's own."""
    database = Database(address)
    keeper = RecordKeeper(Settings.create(database=address, spool=str(folder / "spool"), **settings), database)
    await keeper.prepare()
    try:
        yield keeper
    finally:
        await keeper.ledger.close()
        await keeper.stop()
        await database.close()


def told(output: str) -> Outcome:
    outcome = Outcome(("[gMASK]",))
    outcome.end("done", output)
    return outcome


async def test_a_quota_that_is_reached_refuses(address: str, tmp_path: Path) -> None:
    async with kept(address, tmp_path, quota="1KiB") as keeper:
        with pytest.raises(Problem, match="quota of 1 KiB") as caught:
            await keeper.ledger.accept("run", **VALUES)
        assert caught.value.kind == "disk_full" and caught.value.retry_after_s
        assert keeper.state() == {"state": "refusing", "reason": "The server's record has reached its quota of 1 KiB."}
        assert (await keeper.record.counts())["runs"] == 0


async def test_what_a_quota_kept_out_waits_for_the_next_start(address: str, tmp_path: Path) -> None:
    async with kept(address, tmp_path, quota="1KiB", when_unwritable="answer") as keeper:
        conversation = await keeper.ledger.open_conversation("ann", "chat", "A title")
        for run in ("ended", "under way"):
            await keeper.ledger.accept(run, **VALUES, conversation=conversation)
        keeper.ledger.started("ended")
        await keeper.ledger.finalise("ended", told("雪"))
        assert keeper.state()["state"] == "waiting" and keeper.ledger.unwritten >= 4
        assert (await keeper.record.counts())["runs"] == 0
    async with kept(address, tmp_path, quota="1GiB") as keeper:
        assert keeper.state() == {"state": "writing", "reason": None} and keeper.ledger.unwritten == 0
        found = await keeper.record.get_conversation(conversation, "ann")
        assert [(run.id, run.status, run.output) for run in found.runs] == [
            ("ended", "done", "雪"),
            ("under way", "interrupted", None),
        ]
    assert not any((tmp_path / "spool").glob("*/*"))


async def test_a_spool_that_is_full_refuses_and_loses_no_end(address: str, tmp_path: Path) -> None:
    async with kept(address, tmp_path, quota="1KiB", when_unwritable="answer", spool_limit="1KiB") as keeper:
        await keeper.ledger.accept("run", **VALUES)
        with pytest.raises(Problem, match="quota"):
            await keeper.ledger.accept("second", **{**VALUES, "prompt": "x" * 1000})
        await keeper.ledger.finalise("run", told("x" * 2000))
        keeper.disk._quota = 0  # as if there were room again
    async with kept(address, tmp_path) as keeper:
        found = await keeper.record.get_run("run", None)
        assert (found.status, found.output) == ("done", "x" * 2000), "its end waited in memory"
        assert (await keeper.record.counts())["runs"] == 1


async def test_servers_leave_each_others_runs_alone(address: str, tmp_path: Path) -> None:
    async with kept(address, tmp_path, server_name="one") as first:
        await first.ledger.accept("of one", **VALUES)
        async with kept(address, tmp_path, server_name="two") as second:
            await second.ledger.accept("of two", **VALUES)
        assert (await first.record.get_run("of one", None)).status == "accepted"
        if first.record.database.dialect == "sqlite":
            async with kept(address, tmp_path, server_name="one") as third:
                assert third.record.server == "one#2"
                assert (await third.record.get_run("of one", None)).status == "accepted"
                assert (await third.record.get_run("of two", None)).status == "interrupted", "its server has ended"
        else:
            with pytest.raises(StorageError, match="--server-name"):
                async with kept(address, tmp_path, server_name="one"):
                    pass
        assert (await first.record.get_run("of one", None)).status == "accepted"
    async with kept(address, tmp_path, server_name="one") as again:
        assert again.record.server == "one"
        assert (await again.record.get_run("of one", None)).status == "interrupted"


async def test_what_is_left_for_a_day_is_ended_wherever_it_ran(record: Record) -> None:
    elsewhere = Record(record.database, record.clock, server="elsewhere")
    await accept(elsewhere, "old", moment=record.clock() - timedelta(days=2))
    await accept(elsewhere, "new")
    record.server = "here"
    assert await record.interrupt_unfinished() == 1
    assert (await record.get_run("old", None)).status == "interrupted"
    assert (await record.get_run("new", None)).status == "accepted"
    assert await record.interrupt_unfinished({"elsewhere"}) == 0
    assert await record.interrupt_unfinished(set()) == 1


def test_a_name_is_taken_until_its_server_ends(tmp_path: Path) -> None:
    place = Database(tmp_path / "glm.db").address
    one, two, three = (Presence(place, "host:7860") for _ in range(3))
    assert (one.enter(), two.enter(), three.enter()) == ("host:7860", "host:7860#2", "host:7860#3")
    assert three.others() == {"host:7860", "host:7860#2"}
    two.leave()
    assert one.others() == {"host:7860#3"}
    one.leave()
    three.leave()


async def test_the_room_and_the_forecast(record: Record) -> None:
    empty = await record.disk_state()
    assert empty.used == await record.used_bytes() > 10_000 and empty.free and empty.days_left is None
    text = "x" * 10_000
    for number in range(120):
        await accept(record, f"run {number}", prompt=text, moment=record.clock() - timedelta(hours=number))
    state = await record.disk_state(quota=1 << 30)
    assert state.used > empty.used and state.runs == 120
    assert state.runs_a_day == pytest.approx(24, rel=0.05) and state.bytes_a_run == pytest.approx(state.used / 120)
    assert state.bytes_a_day == pytest.approx(24 * state.used / 120, rel=0.05)
    room = min(state.free, (1 << 30) - state.used)
    assert state.days_left == pytest.approx(room / state.bytes_a_day) and state.warning is None
    tight = await record.disk_state(quota=state.used + int(3 * state.bytes_a_day))
    assert tight.days_left == pytest.approx(3, rel=0.1) and "reach its quota in 3.0 days" in tight.warning
    over = await record.disk_state(quota=1000)
    assert over.days_left == 0 and "has reached its quota" in over.warning
    assert dict(lines(tight))["days until full"] == "3"


async def test_deleted_rows_make_room_again(record: Record) -> None:
    if record.database.dialect != "sqlite":
        pytest.skip("PostgreSQL keeps the room until it is vacuumed")
    conversation = await record.create_conversation("ann", "chat")
    for number in range(50):
        await accept(record, f"run {number}", prompt="x" * 20_000, conversation=conversation)
    await record.database.scrub()
    before = await record.used_bytes()
    await record.delete_conversation(conversation, "ann")
    await record.database.scrub()
    assert await record.used_bytes() < before - 500_000


async def test_the_warning_is_said_once(address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "app.disk_watch"):
        async with kept(address, tmp_path, quota="1KiB") as keeper:
            for _ in range(3):
                await keeper.disk.forecast()
            assert keeper.disk.state.as_dict()["warning"] in caplog.text
    assert caplog.text.count("has reached its quota") == 1


def test_warnings_and_sizes() -> None:
    def state(**changes: Any) -> DiskState:
        plenty = {"used": 10 << 30, "free": 500 << 30, "quota": 0, "runs": 1000, "days_left": 400.0}
        rates = {"bytes_a_run": 1e4, "runs_a_day": 1e5, "bytes_a_day": 1e9}
        return DiskState(**{**plenty, **rates, **changes})

    assert state().warning is None
    assert state(free=1 << 20).warning == "The disk of the record has only 1.0 MiB free."
    assert state(days_left=2.25).warning == "The record will fill its disk in 2.2 days: it grows by 953.7 MiB a day."
    assert state(quota=11 << 30).warning == "The record takes 10.0 GiB of its quota of 11.0 GiB."
    assert state(free=None, days_left=None).warning is None
    for text, size in {"200GiB": 200 << 30, "1.5 TB": 1_500_000_000_000, "800000": 800_000, "1kib": 1024}.items():
        assert parse_size(text) == size
    for wrong in ("", "x", "1 PB", "-1", "1GiBs"):
        with pytest.raises(ValueError, match="200GiB"):
            parse_size(wrong)
