"""Conversations: a visitor's threads of runs, listed by last use, renamed, deleted with all their texts.

A visitor's functions see only that visitor's rows: another's look like missing ones (`StorageError("not_found")`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Connection, exists, func, insert, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute, selectinload

from storage.database import Database
from storage.erasure import erase_runs, erase_shares
from storage.errors import StorageError
from storage.identifier import new_id
from storage.models import Conversation, Run, Share
from storage.staff_tables import AuditEntry, entry

TITLE_CHARACTERS = 200

INSERT_CONVERSATION = insert(Conversation.__table__)

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """A part of a list; `next` asks for the part after it, None at the end."""

    rows: list[Row]
    next: str | None


def utc_now() -> datetime:
    return datetime.now(UTC)


class Conversations:
    """The conversations kept in `database`; `clock` gives moments with a time zone."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = utc_now) -> None:
        self.database = database
        self.clock = clock

    async def create_conversation(
        self, visitor: str, kind: str, title: str = "", id: str | None = None, moment: datetime | None = None
    ) -> str:
        """A new conversation; returns its id, drawn at random unless given. `kind`: chat, blanks, complete or api.

        A title longer than 200 characters is cut. `moment`: when it began, if that was before. Raises
        `StorageError("conflict")` if the id is taken.
        """
        now = moment or self.clock()
        values = {
            "id": id or new_id(15),
            "visitor": visitor,
            "kind": kind,
            "title": title[:TITLE_CHARACTERS],
            "created": now,
            "updated": now,
        }

        def work(connection: Connection) -> str:
            connection.execute(INSERT_CONVERSATION, values)
            return values["id"]

        return await self.database.write_together(work)

    async def rename_conversation(self, id: str, visitor: str, title: str) -> None:
        """Raises `StorageError("not_found")`."""

        async def work(session: AsyncSession) -> None:
            statement = update(Conversation).where(*own_conversation(id, visitor))
            result = await session.execute(statement.values(title=title[:TITLE_CHARACTERS]))
            if result.rowcount == 0:
                raise no_conversation()

        await self.database.write(work)

    async def delete_conversation(self, id: str, visitor: str) -> None:
        """Delete its title and every text of its runs (see `storage.erasure`), and end its shared pages; rows, counts and timings
        stay. Leaves an audit entry.

        A run still under way will end without its text being kept. Raises `StorageError("not_found")`.
        """
        now = self.clock()

        async def work(session: AsyncSession) -> None:
            statement = update(Conversation).where(*own_conversation(id, visitor))
            result = await session.execute(statement.values(title="", deleted=now))
            if result.rowcount == 0:
                raise no_conversation()
            runs = list(await session.scalars(select(Run.id).where(Run.conversation_id == id).order_by(Run.created)))
            erased = await erase_runs(session, runs, now)
            pages = await erase_shares(session, [Share.conversation_id == id], now)
            details = {**erased.as_dict(), "conversations": 1, "shared_pages": erased.shared_pages + pages}
            await session.execute(
                insert(AuditEntry).values(entry(now, "visitor", "delete", "conversation", id, details))
            )

        await self.database.write(work)

    async def get_conversation(self, id: str, visitor: str | None) -> Conversation:
        """With its `runs` in order of time and their `feedback` (without blanks). `visitor` None asks for staff, who may see any.

        Raises `StorageError("not_found")`.
        """

        async def work(session: AsyncSession) -> Conversation:
            statement = select(Conversation).where(*own_conversation(id, visitor))
            # A visitor doesn't see the runs of which nothing is left.
            runs = Conversation.runs if visitor is None else Conversation.runs.and_(Run.deleted.is_(None))
            found = await session.scalar(statement.options(selectinload(runs).selectinload(Run.feedback)))
            if found is None:
                raise no_conversation()
            return found

        return await self.database.read(work)

    async def list_conversations(
        self,
        visitor: str,
        *,
        kind: str | None = None,
        words: str | None = None,
        limit: int = 50,
        after: str | None = None,
    ) -> Page[Conversation]:
        """The visitor's conversations, the last used first; `after` is the `next` of the page before. words: that the title or an
        answer contains, in either case.

        Raises `StorageError("not_found")` if `after` is no such value.
        """
        assert limit > 0
        statement = select(Conversation).where(Conversation.visitor == visitor, Conversation.deleted.is_(None))
        if kind is not None:
            statement = statement.where(Conversation.kind == kind)
        if words:
            said = exists().where(Run.conversation_id == Conversation.id, _contains(Run.output, words))
            statement = statement.where(or_(_contains(Conversation.title, words), said))
        if after is not None:
            statement = statement.where(tuple_(Conversation.updated, Conversation.id) < _read_cursor(after))
        statement = statement.order_by(Conversation.updated.desc(), Conversation.id.desc()).limit(limit + 1)

        async def work(session: AsyncSession) -> Page[Conversation]:
            rows = list(await session.scalars(statement))
            last = rows[limit - 1] if len(rows) > limit else None
            return Page(rows[:limit], None if last is None else f"{last.updated.isoformat()}|{last.id}")

        return await self.database.read(work)


def own_conversation(id: str, visitor: str | None) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [Conversation.id == id]
    if visitor is not None:
        conditions += [Conversation.visitor == visitor, Conversation.deleted.is_(None)]
    return conditions


def _contains(column: ColumnElement[Any] | InstrumentedAttribute[Any], words: str) -> ColumnElement[bool]:
    return func.lower(column).contains(words.lower(), autoescape=True)


def no_conversation() -> StorageError:
    return StorageError("not_found", "There is no such conversation, or it isn't yours.")


def _read_cursor(cursor: str) -> tuple[datetime, str]:
    moment, separator, id = cursor.partition("|")
    try:
        parsed = datetime.fromisoformat(moment)
    except ValueError:
        parsed = None
    if not separator or parsed is None or parsed.tzinfo is None:
        raise StorageError("not_found", "There is no such page of the list.")
    return parsed, id
