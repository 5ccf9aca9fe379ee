"""storage.retention: what is over by age and status goes, in small steps beside other writes; what is under way or newer stays."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import select

from app.retention import RetentionJob
from storage import Record, __main__
from storage.erasure import Erased
from storage.models import Conversation, Run
from storage.retention import Policy, Rule, parse_age
from storage.review_tables import Review
from tests import databases
from tests.databases import STARTED, accept, refused
from tests.test_erasure import add, fetch, freeze, places

# The fixtures of this file, each on SQLite and on PostgreSQL.
address, record = databases.address, databases.record

DAY = timedelta(days=1)
TEXT = "nightingale"


async def grow(record: Record) -> None:
    """Runs of a hundred days, one in ten days, each named by how many days old it is at the end, and how it ended."""
    for age in range(100, 0, -10):
        for status in ("done", "error"):
            await accept(record, f"{status} {age}", prompt=f"{TEXT} {age}")
            await record.finalise_run(f"{status} {age}", status, output=TEXT)
        record.clock.now += 10 * DAY
    for age in (95, 75):
        at = STARTED + (100 - age - 5) * DAY
        review = Review(
            run_id=f"done {age + 5}", version=1, status="done", flagged=False, note="", created=at, updated=at
        )
        await add(record, review)
    await freeze(record, "frozen", ("error 70", "train", TEXT))


async def kept(record: Record) -> list[str]:
    return list(await fetch(record, select(Run.id).where(Run.deleted.is_(None)).order_by(Run.created, Run.id)))


def test_ages_and_policies():
    assert parse_age("90d") == 90 * DAY and parse_age(" 12h ") == DAY / 2 and parse_age("2w") == 14 * DAY
    for wrong in ("", "0d", "90", "d", "-1d", "1.5d", "90 days", "1000000d"):
        with pytest.raises(ValueError, match="90d"):
            parse_age(wrong)
    assert Policy.parse() == Policy(None, None, None) and Policy.parse().rules() == ()
    assert Policy.parse("90d") == Policy(90 * DAY, 90 * DAY, 90 * DAY)
    assert Policy.parse("", "7d") == Policy(None, 7 * DAY, None)
    assert Policy.parse("90d", "7d", "forever") == Policy(90 * DAY, 7 * DAY, None)
    assert Policy.parse("90d", "7d").as_dict() == {
        "kept_seconds": 7776000.0,
        "failed_seconds": 604800.0,
        "reviewed_seconds": 7776000.0,
    }


async def test_age_status_and_review_decide(record: Record, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("storage.retention.BATCH", 3)
    await grow(record)
    rules = Policy.parse("45d", "15d", "85d").rules()
    due = await record.count_due(rules)
    assert due == {"done": 5, "error": 8}
    before = await kept(record)
    pruned = await record.prune(rules, by="server", pause=0)
    after = await kept(record)
    assert pruned.runs == sum(due.values()) == len(before) - len(after) and pruned.dataset_rows == 0
    # Reviewed: 80 days old and younger than 85; in a dataset: 70.
    assert after == ["done 80", "error 70", "done 40", "done 30", "done 20", "done 10", "error 10"]
    assert await record.count_due(rules) == {} and await record.prune(rules, by="server", pause=0) == Erased()
    (told,) = (await record.list_audit(subject="runs")).rows
    assert (told.actor, told.action, told.details["erased"]["runs"]) == ("server", "prune", 13)
    # Later the reviewed ones, too.
    record.clock.now += 20 * DAY
    pruned = await record.prune(rules, by="server", pause=0)
    assert (pruned.runs, pruned.dataset_rows) == (5, 1)
    assert await kept(record) == ["done 20", "done 10"]
    record.clock.now += 100 * DAY
    await record.prune(rules, by="server", pause=0)
    assert await kept(record) == [] and await places(record, TEXT) == []


async def test_a_run_under_way_and_a_conversation_in_use_stay(record: Record):
    old = await record.create_conversation("ann", "chat", f"{TEXT} old")
    both = await record.create_conversation("ann", "chat", f"{TEXT} both")
    await record.create_conversation("ann", "chat", f"{TEXT} never used")
    await accept(record, "first", conversation=old)
    await record.finalise_run("first", "done", output=TEXT)
    await accept(record, "second", conversation=both)
    await record.finalise_run("second", "done", output=TEXT)
    await accept(record, "long", prompt="still being worked on")
    expired = await record.create_share(
        "ann", conversation=both, title=TEXT, content={"items": []}, expires=record.clock() + DAY
    )
    record.clock.now += 10 * DAY
    await accept(record, "third", conversation=both)
    await record.finalise_run("third", "done", output="new")
    pruned = await record.prune([Rule(5 * DAY)], by="server")
    assert (pruned.runs, pruned.conversations) == (2, 2)
    assert await kept(record) == ["long", "third"]
    titles = dict(await _rows(record, select(Conversation.id, Conversation.title)))
    assert titles[both] == "" and set(titles.values()) == {""}
    assert [run.id for run in (await record.get_conversation(both, "ann")).runs] == ["third"]
    assert [one.id for one in (await record.list_conversations("ann")).rows] == [both]
    assert await refused(record.get_share(expired.token)) == "not_found"
    assert await places(record, TEXT) == []


async def test_expired_pages_are_erased_without_any_rule(record: Record):
    page = await record.create_share(
        "ann", conversation=None, title=TEXT, content={"items": [TEXT]}, expires=record.clock() + DAY
    )
    assert await record.prune([], by="server") == Erased()
    record.clock.now += 2 * DAY
    assert await record.prune([], by="server") == Erased(shared_pages=1)
    assert await places(record, TEXT) == [] and await record.was_shared(page.token)


async def test_others_write_while_much_is_erased(record: Record, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("storage.retention.BATCH", 5)
    for number in range(40):
        await accept(record, f"old {number}")
        await record.finalise_run(f"old {number}", "done", output="x")
    record.clock.now += 10 * DAY
    pruning = asyncio.create_task(record.prune([Rule(5 * DAY)], by="server", pause=0))
    beside = 0
    while not pruning.done():
        await accept(record, f"new {beside}")
        beside += 1
    assert (await pruning).runs == 40
    assert beside >= 4, "writes come between the batches"
    assert len(await kept(record)) == beside


async def test_the_server_does_it_at_its_start_and_when_much_was_deleted(
    record: Record, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("app.retention.SOON_SECONDS", 0)
    await grow(record)
    policy = Policy.parse("45d")
    job = RetentionJob(record, policy)
    job.start()
    async with asyncio.timeout(60):
        while await record.count_due(policy.rules()):
            pass
        record.clock.now += 20 * DAY
        assert await record.count_due(policy.rules())
        job.soon()
        while await record.count_due(policy.rules()):
            pass
    await job.stop()
    assert {entry.actor for entry in (await record.list_audit(subject="runs")).rows} == {"server"}


async def test_from_the_command_line(address: str, record: Record, capsys):
    await grow(record)
    await record.database.close()

    async def command(*arguments: str) -> str:
        assert await asyncio.to_thread(__main__.main, [*arguments, "--database", address]) == 0
        return " ".join(capsys.readouterr().out.split())

    # The command's clock is the real one: all runs are old.
    assert "would be erased 17" in await command("prune", "--older-than", "30d", "--dry-run")
    assert "runs error 9" in await command("prune", "--older-than", "30d", "--status", "error", "--dry-run")
    assert len(await kept(record)) == 20
    assert "runs 9" in await command("prune", "--older-than", "4w", "--status", "error")
    assert len(await kept(record)) == 11
    assert "dataset rows 1" in await command("prune", "--older-than", "30d", "--reviewed")
    assert await kept(record) == []
    with pytest.raises(SystemExit):
        __main__.main(["prune", "--older-than", "soon", "--database", address])
    assert "write an age as 90d" in capsys.readouterr().err


async def _rows(record: Record, statement):
    async def work(session):
        return list((await session.execute(statement)).tuples())

    return await record.database.read(work)
