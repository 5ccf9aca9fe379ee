"""One visitor's data: how much is kept, and its deletion with a receipt.

A visitor is the hash of a cookie (`visitor_id`). Deletion erases every text (`storage.erasure`) and gives the rows that stay
another owner, `deleted:` and the receipt's number, so that nothing leads from the cookie to them any more. The receipt is kept as
an audit entry, which is never deleted: whoever has it can ask later whether it is genuine and whether a text is left
(`check_receipt`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import exists, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from storage.conversations import Conversations
from storage.erasure import Erased, erase_runs, erase_shares
from storage.errors import StorageError
from storage.identifier import new_id
from storage.models import Blank, Conversation, Feedback, Run, Share, ShareReport, Vote
from storage.staff_tables import AuditEntry, entry

BATCH = 200  # runs erased in one transaction
FORGOTTEN = "deleted:"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was deleted, when, and by whom (`visitor`, a member of staff, `command line`); `hash` is over all of it."""

    id: str
    moment: datetime
    by: str
    erased: dict[str, int]

    @property
    def hash(self) -> str:
        """SHA-256, in hexadecimal digits, of the receipt as JSON with sorted keys and without spaces."""
        told = {"id": self.id, "moment": self.moment.isoformat(), "by": self.by, "erased": self.erased}
        return hashlib.sha256(json.dumps(told, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with the hash."""
        moment = self.moment.isoformat()
        return {"id": self.id, "moment": moment, "by": self.by, "erased": self.erased, "hash": self.hash}


def visitor_id(cookie: str) -> str:
    """What is kept of a visitor: the hash of the cookie's value."""
    return hashlib.sha256(f"glm-visitor:{cookie}".encode()).hexdigest()[:40]


class Visitors(Conversations):
    """The visitors' data in `database`; `clock` gives moments with a time zone."""

    async def visitor_counts(self, visitor: str) -> dict[str, int]:
        """How many runs, conversations and shared pages with a text there are of a visitor."""

        async def work(session: AsyncSession) -> dict[str, int]:
            async def count(table: type, *conditions: Any) -> int:
                return await session.scalar(select(func.count()).select_from(table).where(*conditions)) or 0

            return {
                "runs": await count(Run, Run.visitor == visitor, Run.deleted.is_(None)),
                "conversations": await count(
                    Conversation, Conversation.visitor == visitor, Conversation.deleted.is_(None)
                ),
                "shared_pages": await count(Share, Share.visitor == visitor, Share.content.is_not(None)),
            }

        return await self.database.read(work)

    async def find_visitor(self, *, share: str | None = None, run: str | None = None) -> str:
        """Whose a shared page or a run is. Raises `StorageError("not_found")`; so do those whose owner's data is deleted."""
        assert (share is None) != (run is None)
        statement = select(Share.visitor).where(Share.token == share)
        if run is not None:
            statement = select(Run.visitor).where(Run.id == run)

        async def work(session: AsyncSession) -> str:
            found = await session.scalar(statement)
            if found is None or found.startswith(FORGOTTEN):
                raise StorageError(
                    "not_found", "There is nothing of this name, or its owner's data is deleted already."
                )
            return found

        return await self.database.read(work)

    async def delete_visitor(self, visitor: str, *, by: str = "visitor") -> Receipt:
        """Erase all that this visitor wrote, got, shared, commented or reported until now; the receipt.

        In many small transactions, so that nobody waits long; what a call that was cut off left, the next one erases. Runs under
        way should be ended before; one that isn't ends without its text being kept.
        """
        now = self.clock()
        receipt = new_id(12)
        total = Erased()
        while True:
            batch = await self.database.write(lambda session: _erase_batch(session, visitor, receipt, now))
            if batch is None:
                break
            total += batch

        async def rest(session: AsyncSession) -> Receipt:
            nonlocal total
            owner = FORGOTTEN + receipt
            reported = update(ShareReport).where(ShareReport.visitor == visitor).values(visitor=owner, reason="")
            reports = (await session.execute(reported)).rowcount
            pages = await erase_shares(session, [Share.visitor == visitor, Share.created <= now], now)
            empty = Conversation.visitor == visitor, Conversation.deleted.is_(None), ~_used()
            emptied = update(Conversation).where(*empty).values(title="", deleted=now)
            emptied = emptied.execution_options(synchronize_session=False)
            conversations = (await session.execute(emptied)).rowcount
            # What was begun since, as a conversation in use just now, stays the visitor's own.
            runs = select(Run.id).where(Run.visitor == owner)
            for table, now_nobodys in (
                (Share, Share.created <= now),
                (Conversation, Conversation.deleted.is_not(None)),
                (Feedback, Feedback.run_id.in_(runs)),
                (Vote, Vote.first_run_id.in_(runs)),
            ):
                mine = update(table).where(table.visitor == visitor, now_nobodys).values(visitor=owner)
                await session.execute(mine, execution_options={"synchronize_session": False})
            total += Erased(conversations=conversations, shared_pages=pages)
            made = Receipt(receipt, now, by, total.as_dict() | {"reports": reports})
            details = {"erased": made.erased, "hash": made.hash}
            await session.execute(
                insert(AuditEntry).values(entry(now, by, "delete", "visitor", receipt, details=details))
            )
            return made

        made = await self.database.write(rest)
        await self.database.scrub()
        return made

    async def delete_runs(self, ids: Sequence[str], *, by: str) -> Erased:
        """Erase every text of these runs; leaves an audit entry. Raises `StorageError("not_found")` if none of them has a text."""
        now = self.clock()

        async def work(session: AsyncSession) -> Erased:
            erased = await erase_runs(session, ids, now)
            if not erased.runs:
                raise StorageError("not_found", "There is no such run, or it is deleted already.")
            one = ids[0] if len(ids) == 1 else ""
            await session.execute(
                insert(AuditEntry).values(entry(now, by, "delete", "run", one, details=erased.as_dict()))
            )
            return erased

        erased = await self.database.write(work)
        await self.database.scrub()
        return erased

    async def check_receipt(self, id: str) -> tuple[Receipt, int]:
        """A receipt that was given out, and how many rows of it have a text (again): 0. Raises `StorageError("not_found")`."""
        given = select(AuditEntry).where(AuditEntry.subject == "visitor", AuditEntry.subject_id == id)
        owner = FORGOTTEN + id

        async def work(session: AsyncSession) -> tuple[Receipt, int]:
            found = await session.scalar(given.where(AuditEntry.action == "delete"))
            if found is None:
                raise StorageError("not_found", "There is no such receipt.")
            told = or_(Run.prompt.is_not(None), Run.output.is_not(None), exists().where(Blank.run_id == Run.id))
            runs = select(func.count()).select_from(Run).where(Run.visitor == owner, told)
            pages = select(func.count()).select_from(Share).where(Share.visitor == owner, Share.content.is_not(None))
            titles = select(func.count()).select_from(Conversation)
            titles = titles.where(Conversation.visitor == owner, Conversation.title != "")
            left = [await session.scalar(count) or 0 for count in (runs, pages, titles)]
            return Receipt(id, found.moment, found.actor, found.details["erased"]), sum(left)

        return await self.database.read(work)


async def _erase_batch(session: AsyncSession, visitor: str, receipt: str, now: datetime) -> Erased | None:
    """The next runs of a visitor, until `now`; None when there are no more."""
    mine = select(Run.id).where(Run.visitor == visitor, Run.created <= now).order_by(Run.created).limit(BATCH)
    ids = list(await session.scalars(mine))
    if not ids:
        return None
    erased = await erase_runs(session, ids, now)
    await session.execute(update(Run).where(Run.id.in_(ids)).values(visitor=FORGOTTEN + receipt))
    return erased


def _used() -> Any:
    return exists().where(Run.conversation_id == Conversation.id, Run.deleted.is_(None))
