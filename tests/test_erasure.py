"""storage.erasure and storage.visitors: what is deleted is nowhere any more, in no column and in no byte of a SQLite file."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import inspect, select, text

from storage import FilledBlank, Record, __main__
from storage.models import Base, ModelVersion, Run, Share, ShareReport
from storage.review_tables import Review, ReviewTag, SpanCorrection
from storage.staff_tables import AuditEntry
from storage.training_tables import Dataset, DatasetRow
from storage.visitors import FORGOTTEN, visitor_id
from tests import databases
from tests.databases import accept, refused

# The fixtures of this file, each on SQLite and on PostgreSQL.
address, record = databases.address, databases.record

SECRET, OTHER = "zebrafinch", "kingfisher"


async def add(record: Record, *rows: object) -> None:
    async def work(session) -> None:
        for row in rows:
            session.add(row)
            await session.flush()

    await record.database.write(work)


async def fetch(record: Record, statement):
    async def work(session):
        return list(await session.scalars(statement))

    return await record.database.read(work)


async def places(record: Record, word: str) -> list[str]:
    """Every column of every table in which the word stands, the search index's too; and on SQLite the file's own bytes."""

    def look(connection) -> list[str]:
        found = []
        inspector = inspect(connection)
        for table in inspector.get_table_names():
            for column in inspector.get_columns(table):
                name = f'"{table}"."{column["name"]}"'
                cast = f"lower(CAST({name} AS text))"
                if connection.execute(text(f"SELECT 1 FROM \"{table}\" WHERE {cast} LIKE '%{word}%' LIMIT 1")).first():
                    found.append(name)
        return found

    async def work(session):
        return await (await session.connection()).run_sync(look)

    found = await record.database.read(work)
    file = record.database.address.file
    if file is not None:
        await record.purge_search(by="test", pause=0)
        assert await record.database.scrub(), "nobody reads"
        for path in (file, Path(f"{file}-wal")):
            if path.exists() and word.encode() in path.read_bytes().lower():
                found.append(path.name.rpartition(".")[2])
    return found


async def fill(record: Record, run: str, visitor: str, word: str) -> tuple[str, str]:
    """A run with its word in every text that can be kept of it; its conversation and its shared page."""
    conversation = await record.create_conversation(visitor, "chat", f"title {word}")
    prompt = [{"role": "user", "content": f"prompt {word} " * 400}]  # longer than a page of the file
    parameters = {"temperature": 0.5, "stop": [f"stop {word}"]}
    await accept(record, run, visitor=visitor, prompt=prompt, parameters=parameters, conversation=conversation)
    await record.start_run(run)
    alternatives = [{"text": f"alternative {word}", "logprob": -2.0}]
    blank = FilledBlank(0, "[gMASK]", f"blank {word}", (1, 2), (-0.5, -1.5), alternatives)
    await record.finalise_run(
        run, "error", output=f"output {word} " * 400, blanks=[blank], error_kind="internal", error_message=f"at {word}"
    )
    await record.add_feedback(run, visitor, rating=1, comment=f"comment {word}")
    content = {"items": [{"output": f"shared {word}"}]}
    share = await record.create_share(visitor, conversation=conversation, title=f"page {word}", content=content)
    await record.report_share(share.token, "somebody", f"reason {word}")
    now = record.clock()
    review = Review(run_id=run, version=3, status="done", rating=2, flagged=True, note=f"note {word}")
    review.corrected, review.created, review.updated = f"corrected {word}", now, now
    span = SpanCorrection(id=f"span {run}", run_id=run, start=0, end=3, rejected=f"rejected {word}", source="typed")
    span.chosen, span.text, span.created = f"chosen {word}", f"around {word} [MASK]", now
    span.alternatives = alternatives
    await add(record, review, ReviewTag(run_id=run, tag="wrong"), span)
    return conversation, share.token


async def freeze(record: Record, name: str, *rows: tuple[str, str, str]) -> None:
    """A dataset of rows (run, part, word)."""
    now = record.clock()
    dataset = Dataset(
        id=name, name=name, version=1, hash="whole", rows=len(rows), filters={}, parameters={}, created=now
    )
    made = [
        DatasetRow(dataset_id=name, index=at, run_id=run, part=part, hash=f"hash {at}", content={"text": f"row {word}"})
        for at, (run, part, word) in enumerate(rows)
    ]
    await add(record, dataset, *made)


async def train(record: Record, name: str, dataset: str | None, parent: int | None = None) -> int:
    version = await record.ensure_model_version(name, name, {}, parent)

    async def work(session) -> None:
        (await session.get(ModelVersion, version)).dataset_id = dataset

    await record.database.write(work)
    return version


async def test_a_deleted_conversation_is_nowhere_any_more(record: Record):
    conversation, token = await fill(record, "run", "ann", SECRET)
    await fill(record, "other", "bob", OTHER)
    await freeze(record, "mixed", ("run", "train", SECRET), ("other", "train", OTHER))
    await freeze(record, "held", ("run", "held_out", SECRET))
    await freeze(record, "clean", ("other", "train", OTHER))
    tainted = await train(record, "trained on it", "mixed")
    child = await train(record, "child", "clean", tainted)
    grandchild = await train(record, "grandchild", None, child)
    await train(record, "only measured on it", "held")
    await train(record, "clean", "clean")
    assert len(await places(record, SECRET)) >= 15, "the test itself finds what is there"

    await record.delete_conversation(conversation, "ann")

    assert await places(record, SECRET) == []
    assert len(await places(record, OTHER)) >= 15, "others' texts stay"
    (run,) = await fetch(record, select(Run).where(Run.id == "run"))
    assert (run.status, run.error_kind, run.parameters) == ("error", "internal", {"temperature": 0.5})
    assert run.deleted is not None and run.mean_logprob == -1.0
    rows = await fetch(record, select(DatasetRow).where(DatasetRow.run_id == "run"))
    assert [(row.content, row.hash) for row in rows] == [(None, "hash 0"), (None, "hash 0")]
    assert all(row.removed == run.deleted for row in rows)
    marked = await fetch(record, select(ModelVersion.id).where(ModelVersion.tainted.is_not(None)))
    assert sorted(marked) == [tainted, child, grandchild]
    (review,) = await fetch(record, select(Review).where(Review.run_id == "run"))
    assert (review.corrected, review.note, review.rating, review.version) == (None, "", 2, 4)
    assert await refused(record.get_share(token)) == "not_found" and await record.was_shared(token)
    (told,) = (await record.list_audit(subject="conversation")).rows
    assert (told.actor, told.action, told.subject_id) == ("visitor", "delete", conversation)
    assert told.details == {
        "runs": 1,
        "conversations": 1,
        "blanks": 1,
        "comments": 1,
        "shared_pages": 1,
        "reviews": 1,
        "spans": 1,
        "dataset_rows": 2,
        "tainted_models": 3,
    }


async def test_a_visitor_is_forgotten_with_a_receipt(record: Record, monkeypatch: pytest.MonkeyPatch):
    ann = visitor_id("the cookie of ann")
    monkeypatch.setattr("storage.visitors.BATCH", 2)
    _, token = await fill(record, "run", ann, SECRET)
    for number in range(3):
        await accept(record, f"more {number}", visitor=ann, prompt=SECRET)
        await record.finalise_run(f"more {number}", "done", output=SECRET)
    await record.vote("more 0", "more 1", ann, "first")
    await accept(record, "under way", visitor=ann, prompt=SECRET)
    _, theirs = await fill(record, "other", "bob", OTHER)
    await record.report_share(theirs, ann, f"I am {SECRET}")
    await record.create_conversation(ann, "chat", f"never used {SECRET}")
    assert await record.visitor_counts(ann) == {"runs": 5, "conversations": 2, "shared_pages": 1}
    assert await record.find_visitor(share=token) == await record.find_visitor(run="more 2") == ann

    receipt = await record.delete_visitor(ann)
    # The run that was under way ends later, and leaves nothing.
    late = FilledBlank(0, "[gMASK]", SECRET, (1,), (-1.0,))
    assert await record.finalise_run("under way", "error", output=SECRET, error_message=SECRET, blanks=[late])

    assert await places(record, SECRET) == [] and await places(record, ann) == []
    assert await record.visitor_counts(ann) == {"runs": 0, "conversations": 0, "shared_pages": 0}
    assert receipt.erased["runs"] == 5 and receipt.erased["conversations"] == 2
    assert (receipt.erased["comments"], receipt.erased["shared_pages"], receipt.erased["reports"]) == (1, 1, 1)
    assert await record.check_receipt(receipt.id) == (receipt, 0)
    assert json.loads(json.dumps(receipt.as_dict()))["hash"] == receipt.hash
    assert await refused(record.find_visitor(share=token)) == await refused(record.find_visitor(run="x")) == "not_found"
    assert await refused(record.check_receipt("x")) == "not_found"
    reports = await fetch(record, select(ShareReport.visitor).where(ShareReport.token == theirs))
    assert sorted(reports) == sorted([FORGOTTEN + receipt.id, "somebody"]), "that it was reported stays known"
    assert len(await fetch(record, select(Share.token).where(Share.visitor == "bob"))) == 1
    # The same visitor goes on, and may delete again.
    await accept(record, "new", visitor=ann, prompt=SECRET)
    again = await record.delete_visitor(ann, by="root")
    assert again.erased["runs"] == 1 and again.id != receipt.id and await places(record, SECRET) == []
    told = (await record.list_audit(subject="visitor")).rows
    assert [(entry.actor, entry.subject_id) for entry in told] == [("root", again.id), ("visitor", receipt.id)]
    assert told[0].details == {"erased": again.erased, "hash": again.hash}


async def test_no_text_hides_from_this_test():
    """A new table with texts must be thought of here."""
    known = {
        "conversation", "run", "blank", "feedback", "model_version", "share", "share_report", "vote", "staff",
        "staff_key", "invitation", "audit_entry", "review", "review_tag", "span_correction", "dataset", "dataset_row",
        "training_run", "deployment", "evaluation",
    }  # fmt: skip
    assert set(Base.metadata.tables) - known == set()


async def test_visitors_are_deleted_from_the_command_line(address: str, record: Record, capsys):
    await fill(record, "run", visitor_id("c" * 32), SECRET)
    await fill(record, "by run", "bob", OTHER)
    await record.database.close()

    def command(*arguments: str) -> int:
        return __main__.main([*arguments, "--database", address])

    assert await asyncio.to_thread(command, "delete-visitor", "--cookie", "c" * 32) == 0
    receipt = json.loads(capsys.readouterr().out)
    assert receipt["erased"]["runs"] == 1 and receipt["by"] == "command line"
    assert await asyncio.to_thread(command, "receipt", receipt["id"]) == 0
    said = capsys.readouterr().out
    assert receipt["hash"] in said and "0 texts" in said
    assert await asyncio.to_thread(command, "delete-visitor", "--run", "by run") == 0
    assert json.loads(capsys.readouterr().out)["erased"]["runs"] == 1
    assert await asyncio.to_thread(command, "delete-visitor", "--share", "none") == 1
    assert "nothing of this name" in capsys.readouterr().err
    assert await places(record, SECRET) == await places(record, OTHER) == []
    assert len(await fetch(record, select(AuditEntry).where(AuditEntry.action == "delete"))) == 2


async def test_runs_of_one_conversation_are_erased_apart(record: Record):
    """As retention does it: the older runs go, the conversation stays with the younger."""
    conversation, token = await fill(record, "run", "ann", SECRET)
    record.clock.now += timedelta(days=1)
    await accept(record, "young", conversation=conversation, prompt=OTHER)
    young = await record.create_share("ann", conversation=conversation, title="young", content={"items": [OTHER]})
    erased = await record.delete_runs(["young", "none"], by="root")
    assert (erased.runs, erased.conversations, erased.shared_pages) == (1, 0, 1)
    assert [run.id for run in (await record.get_conversation(conversation, "ann")).runs] == ["run"]
    assert len((await record.get_conversation(conversation, None)).runs) == 2, "staff see that there was one"
    assert await refused(record.get_share(young.token)) == "not_found"
    assert (await record.get_share(token)).title == f"page {SECRET}", "it is older than what was erased"
    erased = await record.delete_runs(["run"], by="root")
    assert erased.conversations == 1 and await places(record, SECRET) == []
    assert await refused(record.get_conversation(conversation, "ann")) == "not_found"
    assert await refused(record.delete_runs(["run"], by="root")) == "not_found"
    told = (await record.list_audit(subject="run")).rows
    assert [(entry.actor, entry.action, entry.subject_id) for entry in told] == [
        ("root", "delete", "run"),
        ("root", "delete", ""),
    ]
