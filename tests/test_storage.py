"""storage: the same promises kept on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import math
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import text

from storage import Database, FilledBlank, Record, compact
from storage.address import Address
from storage.models import FINAL
from tests import databases
from tests.databases import STARTED, accept, refused

ROOT = Path(__file__).parent.parent

# The fixtures of this file, each on SQLite and on PostgreSQL.
address, record = databases.address, databases.record


async def test_a_run_from_acceptance_to_its_end(record: Record):
    version = await record.ensure_model_version("sha", "embedded", {"layers": 8})
    conversation = await record.create_conversation("ann", "blanks", "A title")
    await accept(
        record,
        mode="fill",
        prompt="The capital of [MASK] is [sMASK].",
        parameters={"temperature": 0.7, "stop": ["\n"], "top_k": 0},
        conversation=conversation,
        seed=2**64 - 1,
        model_version=version,
        client="api",
    )
    run = await record.get_run("run", "ann")
    assert (run.status, run.output, run.blanks, run.started, run.finished) == ("accepted", None, [], None, None)
    assert run.created == STARTED + timedelta(seconds=3) and run.created.utcoffset() == timedelta(0)

    assert await record.start_run("run")
    assert not await record.start_run("run"), "it runs already"
    assert (await record.get_run("run", "ann")).status == "running"

    blanks = [
        FilledBlank(
            1, "[sMASK]", "Tokyo", (7, 2**31 - 1), (-0.25, -math.inf), [{"text": "Kyoto", "logprob": -math.inf}]
        ),
        FilledBlank(0, "[MASK]", "Japan", (0, 150_000), (-0.5, -1.5), [{"text": "Japan", "logprob": -2.0}]),
    ]
    assert await record.finalise_run(
        "run",
        "done",
        output="The capital of Japan is Tokyo.",
        blanks=blanks,
        finish_reason="stop",
        prompt_tokens=11,
        new_tokens=4,
        largest_batch=16,
        queue_milliseconds=1.5,
        first_token_milliseconds=20.25,
        fingerprint={"weights_hash": "sha", "precision": "fp32"},
    )
    run = await record.get_run("run", "ann")
    assert (run.status, run.output, run.finish_reason) == ("done", "The capital of Japan is Tokyo.", "stop")
    assert (run.prompt, run.parameters) == (
        "The capital of [MASK] is [sMASK].",
        {"temperature": 0.7, "stop": ["\n"], "top_k": 0},
    )
    assert (run.seed, run.client, run.mode, run.repaired) == (2**64 - 1, "api", "fill", False)
    assert (run.prompt_tokens, run.new_tokens, run.largest_batch) == (11, 4, 16)
    assert (run.queue_milliseconds, run.first_token_milliseconds, run.total_milliseconds) == (1.5, 20.25, 3000.0)
    assert run.fingerprint == {"weights_hash": "sha", "precision": "fp32"}
    assert run.created < run.started < run.finished
    assert run.model_version.name == "embedded" and run.model_version.config == {"layers": 8}
    assert [(blank.index, blank.kind, blank.text) for blank in run.blanks] == [
        (0, "[MASK]", "Japan"),
        (1, "[sMASK]", "Tokyo"),
    ]
    assert run.blanks[1].token_ids == (7, 2**31 - 1) and run.blanks[1].logprobs == (-0.25, -math.inf)
    assert run.blanks[0].alternatives == [{"text": "Japan", "logprob": -2.0}]
    assert run.blanks[1].alternatives == [{"text": "Kyoto", "logprob": None}], "JSON has no infinity"
    assert run.mean_logprob is None, "an infinite mean can't be sorted"


async def test_mean_logprob_is_over_all_tokens_of_all_blanks(record: Record):
    await accept(record)
    blanks = [
        FilledBlank(0, "[MASK]", "a", (1,), (-1.0,)),
        FilledBlank(1, "[MASK]", "b c d", (2, 3, 4), (-2.0, -3.0, -4.0)),
    ]
    await record.finalise_run("run", "done", blanks=blanks)
    assert (await record.get_run("run", None)).mean_logprob == -2.5


@pytest.mark.parametrize("status", FINAL)
async def test_a_second_end_changes_nothing(record: Record, status: str):
    await accept(record)
    assert await record.finalise_run("run", status, output="first", error_kind="kind", error_message="A sentence.")
    for second in FINAL:
        assert not await record.finalise_run(
            "run", second, output="second", blanks=[FilledBlank(0, "[MASK]", "late")], seed=3, new_tokens=1
        )
    assert not await record.start_run("run")
    run = await record.get_run("run", "ann")
    assert (run.status, run.output, run.blanks, run.seed, run.new_tokens) == (status, "first", [], None, None)
    assert (run.error_kind, run.error_message) == ("kind", "A sentence.")


async def test_ends_that_race_have_one_winner(record: Record, address: str):
    other = Database(address)  # as a second process would
    records = [record, Record(other)]
    for attempt in range(5):
        await accept(record, f"run {attempt}")
        ends = [
            records[number % 2].finalise_run(
                f"run {attempt}",
                FINAL[number % len(FINAL)],
                output=str(number),
                blanks=[FilledBlank(0, "[gMASK]", str(number), (number,), (-1.0,))],
            )
            for number in range(16)
        ]
        won = await asyncio.gather(*ends)
        assert won.count(True) == 1
        run = await record.get_run(f"run {attempt}", None)
        winner = won.index(True)
        assert (run.status, run.output) == (FINAL[winner % len(FINAL)], str(winner))
        assert [blank.token_ids for blank in run.blanks] == [(winner,)]
    await other.close()


async def test_many_runs_at_once(record: Record):
    conversation = await record.create_conversation("ann", "chat")

    async def whole_run(number: int) -> bool:
        await accept(record, f"run {number}", conversation=conversation if number % 2 else None, seed=number)
        await record.start_run(f"run {number}")
        seen = await record.get_run(f"run {number}", "ann")
        assert seen.status == "running" and seen.seed == number
        return await record.finalise_run(
            f"run {number}", "done", output="x" * number, blanks=[FilledBlank(0, "[gMASK]", "x", (number,), (-1.0,))]
        )

    assert all(await asyncio.gather(*map(whole_run, range(200))))
    counts = await record.counts()
    assert (counts["runs"], counts["runs_by_status"]["done"], counts["blanks"]) == (200, 200, 200)
    assert len((await record.get_conversation(conversation, "ann")).runs) == 100


async def test_an_unfinished_blank_list_leaves_the_run_unfinished(record: Record):
    await accept(record)
    twice = [FilledBlank(0, "[MASK]", "a"), FilledBlank(0, "[MASK]", "b")]
    assert await refused(record.finalise_run("run", "done", output="text", blanks=twice)) == "conflict"
    run = await record.get_run("run", None)
    assert (run.status, run.output, run.blanks) == ("accepted", None, []), "one transaction: all of it or nothing"
    assert await record.finalise_run("run", "error", error_kind="internal")


async def test_cancelling_the_caller_does_not_lose_the_end(record: Record):
    await accept(record)
    await accept(record, "second")
    for id in ("run", "second"):
        task = asyncio.create_task(
            record.finalise_run(id, "done", output="whole", blanks=[FilledBlank(0, "[MASK]", "a")])
        )
        await asyncio.sleep(0)  # the write has been asked for
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await record.database.close()  # waits for it
    for id in ("run", "second"):
        run = await record.get_run(id, None)
        assert (run.status, run.output, len(run.blanks)) == ("done", "whole", 1)


async def test_identities(record: Record):
    await accept(record)
    assert await refused(accept(record)) == "conflict"
    assert await refused(accept(record, "other", model_version=99)) == "not_found"
    assert await refused(accept(record, "other", conversation="none")) == "not_found"
    assert await refused(record.finalise_run("never accepted", "done")) == "not_found"
    assert not await record.start_run("never accepted")
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="seed"):
            await accept(record, "other", seed=seed)
    assert await refused(record.get_run("other", None)) == "not_found", "a refused run leaves no row"
    id = await record.create_conversation("ann", "api", id="mine")
    assert id == "mine" and await refused(record.create_conversation("ann", "api", id="mine")) == "conflict"
    drawn = {await record.create_conversation("ann", "chat") for _ in range(3)}
    assert len(drawn) == 3


async def test_a_seed_drawn_later(record: Record):
    await accept(record, seed=None)
    await record.finalise_run("run", "done", seed=2**63)
    assert (await record.get_run("run", None)).seed == 2**63


async def test_model_versions_are_one_for_each_hash(record: Record):
    ids = await asyncio.gather(*(record.ensure_model_version("a", f"name {n}", {"n": n}) for n in range(8)))
    assert len(set(ids)) == 1
    child = await record.ensure_model_version("b", "tuned", {}, parent=ids[0])
    assert child != ids[0] and (await record.counts())["model_versions"] == 2
    assert await refused(record.ensure_model_version("c", "orphan", {}, parent=12345)) == "not_found"


async def test_feedback_is_one_and_can_change(record: Record):
    await accept(record)
    first = await record.add_feedback("run", "ann", rating=1)
    assert (first.rating, first.comment) == (1, "")
    second = await record.add_feedback("run", "ann", comment="好")
    assert (second.rating, second.comment) == (1, "好")
    assert second.created == first.created and second.updated > first.updated
    assert (await record.add_feedback("run", "ann", rating=-1)).rating == -1
    assert (await record.add_feedback("run", "ann", rating=0, comment="")).rating is None
    assert len((await record.get_run("run", "ann")).feedback) == 1
    many = await asyncio.gather(*(record.add_feedback("run", "ann", rating=1) for _ in range(8)))
    assert [row.rating for row in many] == [1] * 8
    assert await refused(record.add_feedback("none", "ann", rating=1)) == "not_found"


TEXTS = {
    "Chinese": "床前明月光，疑是地上霜。",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈 𠮷野家",
    "quotes": "'; DROP TABLE run; -- \" \\ \\u0000 %s :name {}",
    "controls": "\x01\x1f\x7f\r\n\t\u2028\ufeff\ufffe",
    "long": "长text🙂" * 130_000,
}


@pytest.mark.parametrize("name", TEXTS)
async def test_texts_come_back_as_they_were(record: Record, name: str):
    value = TEXTS[name]
    assert name != "long" or len(value.encode()) > 1_000_000
    conversation = await record.create_conversation("ann", "chat", value)
    await accept(
        record,
        prompt=[{"role": "user", "content": value}],
        parameters={"stop": [value], value[:50]: 1},
        conversation=conversation,
    )
    blanks = [FilledBlank(0, "[gMASK]", value, (), (), [{"text": value, "logprob": -1.25}])]
    await record.finalise_run("run", "done", output=value, blanks=blanks)
    run = await record.get_run("run", "ann")
    assert run.prompt == [{"role": "user", "content": value}] and run.output == value
    assert run.parameters == {"stop": [value], value[:50]: 1}
    assert run.blanks[0].text == value and run.blanks[0].alternatives == [{"text": value, "logprob": -1.25}]
    assert (await record.get_conversation(conversation, "ann")).title == value[:200]
    assert (await record.add_feedback("run", "ann", comment=value)).comment == value
    assert run.repaired is False


async def test_characters_that_cannot_be_stored_are_replaced_and_told(record: Record):
    broken = "a\x00b\ud83dc"
    shown = "a\u2400b\ufffdc"
    await accept(record, "prompt", prompt=[{"role": "user", "content": broken}], parameters={"stop": [broken]})
    await accept(record, "output")
    assert not (await record.get_run("output", None)).repaired
    await record.finalise_run("output", "done", output=broken, blanks=[FilledBlank(0, "[MASK]", broken, (1, 0, 2), ())])
    prompt, output = await record.get_run("prompt", None), await record.get_run("output", None)
    assert prompt.prompt == [{"role": "user", "content": shown}] and prompt.parameters == {"stop": [shown]}
    assert prompt.repaired and output.repaired
    assert output.output == shown and output.blanks[0].text == shown and output.blanks[0].token_ids == (1, 0, 2)
    conversation = await record.create_conversation("ann", "chat", broken)
    assert (await record.get_conversation(conversation, "ann")).title == shown


async def test_token_ids_and_logprobs(record: Record):
    ids = tuple(range(-3, 5000)) + (2**31 - 1, -(2**31))
    logprobs = tuple(-number / 64 for number in range(5000)) + (-math.inf,)
    await accept(record)
    await record.finalise_run("run", "done", blanks=[FilledBlank(0, "[gMASK]", "", ids, logprobs)])
    blank = (await record.get_run("run", None)).blanks[0]
    assert blank.token_ids == ids and blank.logprobs == logprobs
    assert compact.pack_ids([1, -2, 150_527]) == bytes.fromhex("01000000 feffffff ff4b0200")
    assert compact.pack_floats([1.0, -0.5]) == bytes.fromhex("0000803f 000000bf")
    assert math.isnan(compact.unpack_floats(compact.pack_floats([math.nan]))[0])
    with pytest.raises(OverflowError):
        compact.pack_ids([2**31])
    with pytest.raises(ValueError):
        compact.unpack_ids(b"12345")


async def test_moments_keep_their_instant(record: Record):
    east = Record(record.database, lambda: datetime(2025, 1, 1, 3, 0, 0, 1, tzinfo=timezone(timedelta(hours=8))))
    await accept(east)
    created = (await record.get_run("run", None)).created
    assert created == datetime(2024, 12, 31, 19, 0, 0, 1, tzinfo=UTC) and created.tzinfo == UTC
    with pytest.raises(Exception, match="time zone"):
        await accept(Record(record.database, lambda: datetime(2025, 1, 1)), "naive")


async def test_leftovers_become_interrupted(record: Record):
    await accept(record, "accepted")
    await accept(record, "running")
    await record.start_run("running")
    await accept(record, "done")
    await record.finalise_run("done", "done", output="text")
    neighbour = Record(record.database, record.clock, server="neighbour")
    await accept(neighbour, "neighbour's")

    assert await record.interrupt_unfinished() == 2
    assert await record.interrupt_unfinished() == 0
    for id in ("accepted", "running"):
        run = await record.get_run(id, "ann")
        assert (run.status, run.error_kind) == ("interrupted", "interrupted")
        assert run.finished > run.created and run.error_message.endswith(".")
        assert not await record.finalise_run(id, "done", output="late")
    assert (await record.get_run("done", "ann")).output == "text"
    assert (await record.get_run("neighbour's", "ann")).status == "accepted"
    assert await neighbour.interrupt_unfinished() == 1


async def test_addresses(tmp_path: Path):
    file = tmp_path / "glm.sqlite3"
    for address in (file, str(file), f"sqlite:///{file}", f"sqlite+aiosqlite:///{file}"):
        assert Address.parse(address).file == file
    assert Address.parse("glm.sqlite3").file == Path.cwd() / "glm.sqlite3"
    server = Address.parse("postgres://user:secret@host/name")
    assert server.server.drivername == "postgresql+psycopg" and server.server.password == "secret"
    assert "secret" not in str(server)


async def test_a_sqlite_file_is_private_and_in_wal_mode(tmp_path: Path):
    file = tmp_path / "made" / "for it" / "glm.sqlite3"
    database = Database(file)
    await database.migrate()
    await accept(Record(database))

    async def pragmas(session) -> list:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [await session.scalar(text(f"PRAGMA {name}")) for name in names]

    assert await database.write(pragmas) == ["wal", 1, 1]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()}
    assert modes["glm.sqlite3"] == modes["glm.sqlite3-wal"] == 0o600 and set(modes.values()) == {0o600}
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    await database.close()


async def test_reads_cannot_write(record: Record):
    async def sneak(session) -> None:
        await session.execute(text("DELETE FROM run"))
        await session.commit()

    await accept(record)
    assert await refused(record.database.read(sneak)) == "database_unavailable"
    assert (await record.counts())["runs"] == 1


async def test_importing_storage_imports_nothing_heavy():
    program = "import storage, sys; print(*sorted({'torch', 'gradio', 'fastapi', 'app', 'engine'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "\n"), result.stderr
