"""storage.conversations: own rows only, pages without gaps, deletion that leaves no text; on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy.exc import InvalidRequestError

from storage import FilledBlank, Record
from tests import databases
from tests.databases import STARTED, accept, refused

# The fixtures of this file, each on SQLite and on PostgreSQL.
address, record = databases.address, databases.record


async def test_only_the_own_visitor_sees_anything(record: Record):
    mine = await record.create_conversation("ann", "chat", "mine")
    await accept(record, conversation=mine)
    assert await refused(record.get_run("run", "bob")) == "not_found"
    assert await refused(record.get_conversation(mine, "bob")) == "not_found"
    assert await refused(record.rename_conversation(mine, "bob", "x")) == "not_found"
    assert await refused(record.delete_conversation(mine, "bob")) == "not_found"
    assert await refused(accept(record, "run 2", conversation=mine, visitor="bob")) == "not_found"
    assert await refused(record.add_feedback("run", "bob", rating=1)) == "not_found"
    assert (await record.list_conversations("bob")).rows == []
    assert (await record.get_run("run", "ann")).visitor == "ann"
    assert (await record.get_run("run", None)).visitor == "ann", "staff"
    assert (await record.get_conversation(mine, None)).title == "mine", "staff"
    with pytest.raises(InvalidRequestError):
        _ = (await record.get_run("run", "ann")).conversation  # not loaded, and not fetched behind one's back


async def test_conversations_page_by_page(record: Record):
    ids = [
        await record.create_conversation("ann", "chat" if number % 2 else "blanks", str(number)) for number in range(7)
    ]
    await record.create_conversation("bob", "chat", "not ann's")
    await accept(record, conversation=ids[0])  # the oldest becomes the last used
    titles, after = [], None
    while True:
        page = await record.list_conversations("ann", limit=3, after=after)
        titles.append([conversation.title for conversation in page.rows])
        after = page.next
        if after is None:
            break
    assert titles == [["0", "6", "5"], ["4", "3", "2"], ["1"]]
    chats = await record.list_conversations("ann", kind="chat", limit=3)
    assert [conversation.title for conversation in chats.rows] == ["5", "3", "1"] and chats.next is None
    for nonsense in ("", "x", "2024-01-01|x", "2024-01-01T00:00:00+00:00"):
        assert await refused(record.list_conversations("ann", after=nonsense)) == "not_found"
    await record.rename_conversation(ids[3], "ann", "题" * 500)
    assert (await record.get_conversation(ids[3], "ann")).title == "题" * 200


async def test_conversations_that_contain_words(record: Record):
    titles = ("A letter to Anna", "50% of it", "你好，世界", "under_score")
    ids = {title: await record.create_conversation("ann", "chat", title) for title in titles}
    await record.create_conversation("bob", "chat", "A letter to Anna")
    for words, wanted in (("LETTER", titles[0]), ("50%", titles[1]), ("世界", titles[2]), ("_", titles[3])):
        assert [row.id for row in (await record.list_conversations("ann", words=words)).rows] == [ids[wanted]]
    assert (await record.list_conversations("ann", words="5%t")).rows == []
    first = await record.list_conversations("ann", words="t", limit=1)
    rest = await record.list_conversations("ann", words="t", limit=5, after=first.next)
    assert [row.id for row in (*first.rows, *rest.rows)] == [ids[titles[1]], ids[titles[0]]]


async def test_conversations_used_at_the_same_moment_are_paged_without_loss(record: Record):
    frozen = Record(record.database, lambda: STARTED)
    ids = {await frozen.create_conversation("ann", "chat") for _ in range(5)}
    seen, after = [], None
    for _ in range(5):
        page = await frozen.list_conversations("ann", limit=1, after=after)
        seen += [conversation.id for conversation in page.rows]
        after = page.next
    assert after is None and set(seen) == ids


async def test_runs_of_a_conversation_are_in_order(record: Record):
    conversation = await record.create_conversation("ann", "chat")
    for id in ("z", "a", "m"):
        await accept(record, id, conversation=conversation, prompt=[{"role": "user", "content": id}])
    found = await record.get_conversation(conversation, "ann")
    assert [run.id for run in found.runs] == ["z", "a", "m"]
    assert found.runs[2].prompt == [{"role": "user", "content": "m"}]
    assert found.updated == found.runs[-1].created


async def test_deleting_a_conversation_deletes_its_texts(record: Record, address: str):
    conversation = await record.create_conversation("ann", "chat", "SECRET")
    blank = [FilledBlank(0, "[gMASK]", "SECRET", (1,), (-1.0,), [{"text": "SECRET"}])]
    await accept(record, "finished", conversation=conversation, prompt="SECRET")
    await record.finalise_run("finished", "done", output="SECRET", blanks=blank, new_tokens=1)
    await record.add_feedback("finished", "ann", rating=-1, comment="SECRET")
    await accept(record, "under way", conversation=conversation, prompt="SECRET")
    await record.delete_conversation(conversation, "ann")
    assert await record.finalise_run("under way", "done", output="SECRET", blanks=blank, new_tokens=5)

    for id in ("finished", "under way"):
        assert await refused(record.get_run(id, "ann")) == "not_found"
        run = await record.get_run(id, None)
        assert (run.status, run.prompt, run.output, run.blanks) == ("done", None, None, [])
    assert (await record.get_run("under way", None)).new_tokens == 5
    assert [(row.rating, row.comment) for row in (await record.get_run("finished", None)).feedback] == [(-1, "")]
    assert await refused(record.get_conversation(conversation, "ann")) == "not_found"
    assert await refused(record.delete_conversation(conversation, "ann")) == "not_found"
    assert await refused(accept(record, "late", conversation=conversation)) == "not_found"
    assert await refused(record.add_feedback("finished", "ann", comment="SECRET")) == "not_found"
    assert (await record.list_conversations("ann")).rows == []
    assert (await record.get_conversation(conversation, None)).title == ""


async def test_a_deletion_that_races_the_end_leaves_no_text(record: Record):
    for attempt in range(20):
        conversation = await record.create_conversation("ann", "chat")
        await accept(record, f"run {attempt}", conversation=conversation)
        ended, _ = await asyncio.gather(
            record.finalise_run(
                f"run {attempt}", "done", output="SECRET", blanks=[FilledBlank(0, "[gMASK]", "SECRET")]
            ),
            record.delete_conversation(conversation, "ann"),
        )
        run = await record.get_run(f"run {attempt}", None)
        assert ended and (run.status, run.output, run.blanks) == ("done", None, [])
