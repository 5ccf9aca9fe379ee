"""Shared pages: a copy of a conversation or a filled text that whoever has the link may read, until it expires or is revoked.

The token is the only key: 144 random bits. A page that is over loses its content for good: at once when it is revoked or its
conversation deleted, and when it has expired at the next look at it or the next publishing. Who may not see a page, or sees
one that is over, is told the same as of one that never was (`StorageError("not_found")`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from storage.conversations import TITLE_CHARACTERS, Conversations, no_conversation, own_conversation
from storage.errors import StorageError
from storage.identifier import new_id
from storage.models import Conversation, Run, Share, ShareReport

TOKEN_BYTES = 18  # 144 bits, 24 characters
LISTED = 500  # pages in one visitor's list


@dataclass(frozen=True, slots=True)
class Published:
    """A page in its owner's list; `kind` is its conversation's."""

    token: str
    title: str
    kind: str
    created: datetime
    expires: datetime | None
    revoked: datetime | None


@dataclass(frozen=True, slots=True)
class Reported:
    """A page that was reported, for staff; `reasons` newest first."""

    token: str
    title: str
    created: datetime
    reasons: list[str]


class Shares(Conversations):
    """The pages kept in `database`; `clock` gives moments with a time zone."""

    async def runs_to_share(self, ids: Sequence[str], visitor: str) -> list[Run]:
        """Runs of one's own in the order of `ids`, with their `blanks` and `model_version`. Raises `StorageError("not_found")`."""
        statement = select(Run).where(Run.id.in_(ids), Run.visitor == visitor, Run.deleted.is_(None))
        statement = statement.options(selectinload(Run.blanks), selectinload(Run.model_version))

        async def work(session: AsyncSession) -> list[Run]:
            found = {run.id: run for run in await session.scalars(statement)}
            if not set(ids) <= set(found):
                raise StorageError("not_found", "One of these runs doesn't exist, or isn't yours.")
            return [found[id] for id in dict.fromkeys(ids)]

        return await self.database.read(work)

    async def create_share(
        self,
        visitor: str,
        *,
        conversation: str | None,
        title: str,
        content: Mapping[str, Any],
        expires: datetime | None = None,
    ) -> Share:
        """Publish `content`; the page with its new token. `conversation`: the visitor's own, whose deletion revokes the page.

        Raises `StorageError`: `not_found` if the conversation is not this visitor's or is deleted, `disk_full` ...
        """
        now = self.clock()
        values = {
            "token": new_id(TOKEN_BYTES),
            "visitor": visitor,
            "conversation_id": conversation,
            "title": title[:TITLE_CHARACTERS],
            "content": dict(content),
            "created": now,
            "expires": expires,
        }

        async def work(session: AsyncSession) -> Share:
            await session.execute(update(Share).where(*_expired(now)).values(content=None))
            if conversation is not None:
                # Locked, so that a deletion beside it comes wholly before, and is seen, or wholly after, and revokes.
                own = select(Conversation.id).where(*own_conversation(conversation, visitor)).with_for_update()
                if await session.scalar(own) is None:
                    raise no_conversation()
            await session.execute(insert(Share).values(values))
            return await session.get_one(Share, values["token"])

        return await self.database.write(work)

    async def list_shares(self, visitor: str) -> list[Published]:
        """The visitor's pages, the newest first, those that are over included."""
        columns = (Share.token, Share.title, Conversation.kind, Share.created, Share.expires, Share.revoked)
        statement = (
            select(*columns)
            .outerjoin(Conversation, Conversation.id == Share.conversation_id)
            .where(Share.visitor == visitor)
            .order_by(Share.created.desc(), Share.token)
            .limit(LISTED)
        )

        async def work(session: AsyncSession) -> list[Published]:
            rows = (await session.execute(statement)).tuples()
            return [Published(token, title, kind or "api", *moments) for token, title, kind, *moments in rows]

        return await self.database.read(work)

    async def get_share(self, token: str) -> Share:
        """The page as anybody may see it. Raises `StorageError("not_found")` for none and for one that is over."""
        now = self.clock()

        async def look(session: AsyncSession) -> Share | None:
            return await session.get(Share, token)

        async def erase(session: AsyncSession) -> None:
            await session.execute(update(Share).where(*_expired(now)).values(content=None))

        found = await self.database.read(look)
        if found is not None and found.expires is not None and found.expires <= now:
            if found.content is not None:
                await self.database.write(erase)
            found = None
        if found is None or found.revoked is not None or found.content is None:
            raise no_share()
        return found

    async def was_shared(self, token: str) -> bool:
        """Whether there is or was a page with this token."""

        async def work(session: AsyncSession) -> bool:
            return await session.scalar(select(Share.token).where(Share.token == token)) is not None

        return await self.database.read(work)

    async def revoke_share(self, token: str, visitor: str | None) -> None:
        """End a page of one's own and erase its content; `visitor` None is for staff, who may end any.

        Raises `StorageError("not_found")`, also if it was revoked already.
        """
        conditions: list[ColumnElement[bool]] = [Share.token == token, Share.revoked.is_(None)]
        if visitor is not None:
            conditions.append(Share.visitor == visitor)
        now = self.clock()

        async def work(session: AsyncSession) -> None:
            result = await session.execute(update(Share).where(*conditions).values(content=None, revoked=now))
            if result.rowcount == 0:
                raise no_share()

        await self.database.write(work)

    async def report_share(self, token: str, visitor: str, reason: str) -> int:
        """Note that this visitor says the page shouldn't be there; a second report replaces the first. How many there are.

        Raises `StorageError("not_found")` for none and for a page that is over.
        """
        now = self.clock()

        async def work(session: AsyncSession) -> int:
            alive = (
                Share.content.is_not(None),
                Share.revoked.is_(None),
                or_(Share.expires.is_(None), Share.expires > now),
            )
            # Locked, so that two reports of one visitor come one after the other.
            page = select(Share.token).where(Share.token == token, *alive).with_for_update()
            if await session.scalar(page) is None:
                raise no_share()
            await session.merge(ShareReport(token=token, visitor=visitor, reason=reason, created=now))
            await session.flush()
            count = select(func.count()).select_from(ShareReport).where(ShareReport.token == token)
            return await session.scalar(count) or 0

        return await self.database.write(work)

    async def list_reported_shares(self) -> list[Reported]:
        """For staff: the pages that were reported and aren't revoked, the most reported first."""
        statement = (
            select(Share.token, Share.title, Share.created, ShareReport.reason)
            .join(ShareReport, ShareReport.token == Share.token)
            .where(Share.revoked.is_(None))
            .order_by(ShareReport.created.desc())
        )

        async def work(session: AsyncSession) -> list[Reported]:
            pages: dict[str, Reported] = {}
            for token, title, created, reason in (await session.execute(statement)).tuples():
                pages.setdefault(token, Reported(token, title, created, [])).reasons.append(reason)
            return sorted(pages.values(), key=lambda page: len(page.reasons), reverse=True)

        return await self.database.read(work)


def no_share() -> StorageError:
    return StorageError("not_found", "There is no such page, or its author took it back.")


def _expired(now: datetime) -> tuple[ColumnElement[bool], ...]:
    return Share.expires <= now, Share.content.is_not(None)
