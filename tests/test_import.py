"""Import of the own JSON lines: lossless, twice without harm, damaged lines refused by number, nothing erased comes back."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from storage import Database, Record, StorageError
from storage.export import FORMATS, Export, Selection, write_export
from storage.models import Blank
from storage.own_import import ImportResult, import_file
from storage.run_filter import RunFilter
from tests import databases, postgres
from tests.databases import Clock
from tests.reviewed import add, fill_record, finish

# Each on SQLite and on PostgreSQL.
address, record = databases.address, databases.record


async def exported(record: Record, path: Path, **filters: Any) -> bytes:
    """The bytes of an export of everything, or of what meets `filters`."""
    selection = Selection(RunFilter.parse(filters), record.clock() + timedelta(days=1), redact=False)
    await write_export(Export(record.database, FORMATS["jsonl"], selection), path)
    return path.read_bytes()


@pytest.fixture
async def other(address: str, tmp_path: Path):
    """An empty record in another database of the same kind."""
    second = postgres.new_database() if address.startswith("postgres") else f"sqlite:///{tmp_path}/second.sqlite3"
    database = Database(second)
    await database.migrate()
    yield Record(database, Clock())
    await database.close()
    if address.startswith("postgres"):
        postgres.drop_database(second)


async def test_everything_comes_back(record: Record, other: Record, tmp_path: Path):
    await fill_record(record)
    parent = await record.ensure_model_version("b" * 64, "tuned", {"layers": 2}, parent=1)
    await finish(
        record, "odd", "\u2028 \x00 \ud800 𝄞", " 中\t文", seed=2**64 - 1, model_version=parent, client="openai"
    )
    await add(
        record,
        Blank(run_id="odd", index=0, kind="[gMASK]", text="x", token_ids=(-1, 2**31 - 1), logprobs=(float("nan"),)),
    )
    before = await exported(record, tmp_path / "a.jsonl")
    done = []
    result = await import_file(other, tmp_path / "a.jsonl", lambda *numbers: done.append(numbers))
    assert result == ImportResult(runs=9)
    assert await exported(other, tmp_path / "b.jsonl") == before
    # What the review desk looks at is there, too.
    for words, ids in (("Paris", ["capital"]), ("首都", ["good", "twice", "worse"])):
        found = await other.queue(RunFilter.parse({"words": words}), "oldest")
        assert [row.run.id for row in found.rows] == ids, words
    assert [row.run.id for row in (await other.queue(RunFilter.parse({"thumbs": "down"}), "oldest")).rows] == ["worse"]
    run = await other.get_run("capital", None)
    assert (run.stars, run.corrected, run.language) == (2, True, "en")
    rita = await other.find_staff("rita")
    assert rita is not None and rita.disabled is not None and rita.password is None, "nobody gets in by an import"
    assert await import_file(other, tmp_path / "a.jsonl") == ImportResult(known=9)
    assert await exported(other, tmp_path / "c.jsonl") == before
    assert (await record.get_run("odd", None)).seed == (await other.get_run("odd", None)).seed


async def test_an_import_adds_to_what_is_there_and_brings_nothing_erased_back(
    record: Record, other: Record, tmp_path: Path
):
    await fill_record(record)
    await exported(record, tmp_path / "chats.jsonl", modes="chat")
    await exported(record, tmp_path / "all.jsonl")
    assert await import_file(other, tmp_path / "chats.jsonl") == ImportResult(runs=5)
    (conversation,) = (await other.list_conversations("ann")).rows
    await other.delete_conversation(conversation.id, "ann")
    assert await import_file(other, tmp_path / "all.jsonl") == ImportResult(runs=3, known=5)
    assert (await other.get_run("capital", None)).prompt is None
    # A round that the database never had, of a conversation that was deleted here, stays out, too.
    chat = (await record.list_conversations("ann")).rows[0].id
    await finish(record, "third", "x", "y", conversation=chat)
    await exported(record, tmp_path / "more.jsonl")
    assert await import_file(other, tmp_path / "more.jsonl") == ImportResult(known=9)


async def test_damaged_lines_are_refused_by_their_number(record: Record, other: Record, tmp_path: Path):
    await fill_record(record)
    lines = (await exported(record, tmp_path / "a.jsonl")).decode().splitlines()
    assert len(lines) == 10
    run = json.loads(lines[2])

    def changed(**values: Any) -> str:
        return json.dumps(run | values)

    blank = run["blanks"][0]
    cases = [
        (3, lines[2][:-20]),
        (3, "null"),
        (3, ""),
        (3, changed(kind="walk")),
        (3, changed(extra=1)),
        (3, changed(status="running")),
        (3, changed(created="2024-02-30T00:00:00Z")),
        (3, changed(created="2024-02-20T00:00:00")),
        (3, changed(seed=2**64)),
        (3, changed(seed="7")),
        (3, changed(prompt="and messages")),
        (3, changed(model="c" * 64)),
        (3, changed(blanks=[blank, blank])),
        (3, changed(blanks=[blank | {"token_ids": [2**31]}])),
        (3, changed(review=run["review"] | {"rating": 6})),
        (3, changed(review=run["review"] | {"tags": ["a", "a"]})),
        (3, changed(votes=[{"first_run_id": "x"}])),
        (2, lines[1].replace('"parent":null', f'"parent":"{"d" * 64}"')),
        (1, lines[1]),
        (1, lines[0].replace('"version":1', '"version":2')),
        (4, "\x00"),
    ]
    path = tmp_path / "damaged.jsonl"
    for number, line in cases:
        path.write_text("\n".join([*lines[: number - 1], line, *lines[number:]]), encoding="utf-8")
        with pytest.raises(StorageError, match=rf"^Line {number} can't be imported \(") as caught:
            await import_file(other, path)
        assert caught.value.kind == "bad_request"
        assert "Lyon" not in str(caught.value), "no text of a visitor in an error"
    path.write_bytes(b"")
    with pytest.raises(StorageError, match="Line 1 .*empty"):
        await import_file(other, path)
    path.write_bytes("\n".join(lines).encode()[:-3])
    with pytest.raises(StorageError, match="Line 10 "):
        await import_file(other, path)
    path.write_bytes(b"\xff\n")
    with pytest.raises(StorageError, match="Line 1 "):
        await import_file(other, path)
    assert (await other.counts())["runs"] == 0 and (await other.counts())["model_versions"] == 0, "nothing was changed"


async def test_a_vote_whose_other_run_is_missing_is_left_out(record: Record, other: Record, tmp_path: Path):
    await fill_record(record)
    lines = (await exported(record, tmp_path / "a.jsonl")).decode().splitlines()
    (tmp_path / "b.jsonl").write_text("\n".join(line for line in lines if '"id":"good"' not in line), encoding="utf-8")
    assert await import_file(other, tmp_path / "b.jsonl") == ImportResult(runs=7, votes_left_out=1)
