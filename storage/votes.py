"""Votes: which of two answers a visitor liked better. A vote holds no text, so it may outlive the texts of its runs.

A visitor votes on their own runs only: another's look like missing ones (`StorageError("not_found")`).
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from storage.conversations import Conversations
from storage.errors import StorageError
from storage.models import CHOICES, Run, Vote
from storage.opinions import count_opinions

# What a choice becomes when the two runs change places.
MIRRORED = {"first": "second", "second": "first", "tie": "tie", "neither": "neither"}


class Votes(Conversations):
    """The votes kept in `database`; `clock` gives moments with a time zone."""

    async def vote(self, first: str, second: str, visitor: str, choice: str, *, blind: bool = False) -> Vote:
        """Vote on two runs of one's own, or change that vote; `choice`: first, second, tie or neither.

        A pair has one vote a visitor, in the order in which it was first given: voted again the other way round, the stored
        vote stays in its order and its choice is turned round. Raises `StorageError("not_found")`.
        """
        assert choice in CHOICES, choice
        assert first != second, first
        now = self.clock()

        async def work(session: AsyncSession) -> Vote:
            # Locked, always in the same order: two votes on a pair, whichever way round, come one after the other, and a
            # deletion beside it comes wholly before or wholly after.
            own = select(Run.id).where(Run.id.in_((first, second)), Run.visitor == visitor, Run.deleted.is_(None))
            found = await session.scalars(own.order_by(Run.id).with_for_update())
            if len(found.all()) != 2:
                raise StorageError("not_found", "One of the two runs doesn't exist, or isn't yours.")
            row = await session.get(Vote, (first, second, visitor))
            turned = None if row else await session.get(Vote, (second, first, visitor))
            if row is None and turned is None:
                row = Vote(first_run_id=first, second_run_id=second, visitor=visitor, created=now)
                session.add(row)
            kept = row or turned
            assert kept is not None
            kept.choice = MIRRORED[choice] if turned else choice
            kept.blind, kept.updated = blind, now
            await session.flush()
            await count_opinions(session, [first, second])
            return kept

        return await self.database.write(work)
