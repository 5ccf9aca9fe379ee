"""storage.shares: pages that everybody with the link may read, until they expire or are revoked; on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta

import pytest

from storage import Record, StorageError
from storage.__main__ import main
from storage.models import Share
from tests import databases
from tests.databases import STARTED, refused

# The fixtures of this file, each on SQLite and on PostgreSQL.
address, record = databases.address, databases.record

CONTENT = {"version": 1, "items": [{"prompt": "SECRET \0", "output": "巴黎"}]}


async def publish(record: Record, visitor: str = "ann", title: str = "A page", **changes: object) -> Share:
    conversation = await record.create_conversation(visitor, "chat", title)
    values = {"conversation": conversation, "title": title, "content": CONTENT} | changes
    return await record.create_share(visitor, **values)


async def stored(record: Record, token: str) -> Share:
    """The row itself, whatever may be shown of it."""
    return await record.database.read(lambda session: session.get_one(Share, token))


async def test_a_page_can_be_read_by_whoever_has_its_token(record: Record):
    page = await publish(record, title="题" * 300)
    # Of 64 characters, 22 would hold 128 bits.
    assert re.fullmatch(r"[A-Za-z0-9_-]{22,}", page.token)
    found = await record.get_share(page.token)
    assert (found.title, found.expires, found.revoked) == ("题" * 200, None, None)
    assert found.content == {"version": 1, "items": [{"prompt": "SECRET \u2400", "output": "巴黎"}]}
    assert await record.was_shared(page.token) and not await record.was_shared(page.token + "x")
    assert await refused(record.get_share(page.token[:-1])) == "not_found"
    assert len({(await publish(record)).token for _ in range(5)}) == 5


async def test_only_ones_own_conversation_can_be_published(record: Record):
    conversation = await record.create_conversation("ann", "chat")
    assert await refused(publish(record, "bob", conversation=conversation)) == "not_found"
    await record.delete_conversation(conversation, "ann")
    assert await refused(publish(record, "ann", conversation=conversation)) == "not_found"
    assert await record.list_shares("ann") == await record.list_shares("bob") == []
    alone = await publish(record, conversation=None)
    assert (await record.get_share(alone.token)).content["version"] == 1, "runs of a program have no conversation"


async def test_a_page_ends_at_its_time_and_its_content_is_erased(record: Record):
    at = record.clock() + timedelta(days=1)
    page = await publish(record, expires=at)
    other = await publish(record, expires=at + timedelta(days=2))
    assert (await record.get_share(page.token)).expires == at
    record.clock.now = at - timedelta(seconds=2)
    assert (await record.get_share(page.token)).content is not None
    assert await refused(record.get_share(page.token)) == "not_found", "a second later"
    assert (await stored(record, page.token)).content is None
    assert await refused(record.report_share(page.token, "bob", "late")) == "not_found"
    record.clock.now += timedelta(days=3)
    assert (await stored(record, other.token)).content is not None
    new = await publish(record)
    assert (await stored(record, other.token)).content is None, "erased though nobody looked at it"
    assert [page.token for page in await record.list_shares("ann")] == [new.token, other.token, page.token]


async def test_pages_are_revoked_one_by_one_by_their_owner(record: Record):
    first, second = await publish(record, title="first"), await publish(record, title="second")
    assert await refused(record.revoke_share(first.token, "bob")) == "not_found"
    await record.revoke_share(first.token, "ann")
    assert await refused(record.get_share(first.token)) == "not_found"
    assert await refused(record.revoke_share(first.token, "ann")) == "not_found"
    assert await refused(record.report_share(first.token, "bob", "late")) == "not_found"
    assert await record.was_shared(first.token)
    assert (await stored(record, first.token)).content is None
    assert (await record.get_share(second.token)).title == "second"
    mine = await record.list_shares("ann")
    assert [(page.title, page.kind, page.revoked is not None) for page in mine] == [
        ("second", "chat", False),
        ("first", "chat", True),
    ]
    await record.revoke_share(second.token, None)
    assert await refused(record.get_share(second.token)) == "not_found", "staff may end any"


async def test_deleting_a_conversation_deletes_its_pages(record: Record):
    page, revoked, other = await publish(record), await publish(record), await publish(record, title="stays")
    await record.revoke_share(revoked.token, "ann")
    before = await stored(record, revoked.token)
    for gone in (page, revoked):
        await record.delete_conversation(gone.conversation_id, "ann")
        row = await stored(record, gone.token)
        assert (row.title, row.content) == ("", None) and row.revoked is not None
        assert await refused(record.get_share(gone.token)) == "not_found"
    assert (await stored(record, revoked.token)).revoked == before.revoked, "when it was revoked is kept"
    assert (await record.get_share(other.token)).title == "stays"


async def test_a_deletion_that_races_the_publishing_leaves_no_page(record: Record):
    for _ in range(15):
        conversation = await record.create_conversation("ann", "chat")
        page, _ = await asyncio.gather(
            publish(record, conversation=conversation),
            record.delete_conversation(conversation, "ann"),
            return_exceptions=True,
        )
        if isinstance(page, BaseException):
            assert isinstance(page, StorageError) and page.kind == "not_found"
        else:
            assert (await stored(record, page.token)).content is None
    assert [page for page in await record.list_shares("ann") if page.revoked is None] == []


async def test_reports_are_one_a_visitor_and_wait_for_staff(record: Record):
    page, other = await publish(record), await publish(record, title="other")
    assert await record.report_share(page.token, "bob", "my address stands there") == 1
    assert await record.report_share(page.token, "bob", "my address") == 1
    both = await asyncio.gather(*(record.report_share(page.token, "eve", "spam") for _ in range(4)))
    assert set(both) == {2}
    assert await record.report_share(other.token, "bob", "also") == 1
    assert await refused(record.report_share("none", "bob", "x")) == "not_found"
    reported = await record.list_reported_shares()
    assert [(one.token, one.reasons) for one in reported] == [
        (page.token, ["spam", "my address"]),
        (other.token, ["also"]),
    ]
    assert (await record.get_share(page.token)).content is not None, "a report alone takes nothing away"
    await record.revoke_share(page.token, None)
    assert [one.token for one in await record.list_reported_shares()] == [other.token]


async def test_pages_at_the_same_moment_are_all_listed(record: Record):
    frozen = Record(record.database, lambda: STARTED)
    tokens = {(await publish(frozen)).token for _ in range(4)}
    assert {page.token for page in await frozen.list_shares("ann")} == tokens
    assert await frozen.list_shares("bob") == []


async def test_staff_reads_reports_and_takes_pages_back(
    record: Record, address: str, capsys: pytest.CaptureFixture[str]
):
    page = await publish(record, title="一个\n页面")
    await record.report_share(page.token, "bob", "my\naddress")

    async def command(*arguments: str) -> tuple[int, str, str]:
        status = await asyncio.to_thread(main, [*arguments, "--database", address])
        return status, *capsys.readouterr()

    status, told, _ = await command("reports")
    assert status == 0 and told.splitlines() == [f"{page.token}  2024-03-01  一个 页面", "    my address"]
    assert (await command("revoke", page.token))[0] == 0
    assert await refused(record.get_share(page.token)) == "not_found"
    assert await command("reports") == (0, "", "")
    status, _, failure = await command("revoke", page.token)
    assert status == 1 and failure.endswith(".\n")
