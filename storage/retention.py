"""How long texts are kept: rules by age and status, and the job that erases what is over.

    policy = Policy.parse(kept="90d", failed="7d", reviewed="forever")
    pruned = await record.prune(policy.rules(), by="server")

Erased are texts (see `storage.erasure`); rows with counts and timings stay, so statistics don't change. Runs under way are never
touched. The work is done in small transactions with pauses, so that no other write waits long.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func, insert, or_, select, text, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from storage.conversations import Conversations
from storage.erasure import Erased, erase_runs, erase_shares
from storage.models import FINAL, Conversation, Run, Share
from storage.review_tables import Review
from storage.staff_tables import AuditEntry, entry
from storage.training_tables import DatasetRow

BATCH = 100  # runs erased in one transaction
PAUSE_SECONDS = 0.02  # between two transactions, for writers of other processes
PURGE_PAGES = 500  # of the search index, of 4 KiB, merged in one transaction
ERASING = ("delete", "prune")  # the actions of audit entries that tell of erased texts
FAILED = ("error", "cancelled", "interrupted")
FOREVER = "forever"
_AGE = re.compile(r"(\d{1,5})\s*(m|h|d|w)")
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def parse_age(text: str) -> timedelta:
    """`90d`, `12h`, `30m`, `8w`. Raises ValueError, which says how to write it."""
    found = _AGE.fullmatch(text.strip())
    if found is None or not int(found[1]):
        raise ValueError("write an age as 90d, 12h, 30m or 8w")
    return int(found[1]) * _UNITS[found[2]]


@dataclass(frozen=True, slots=True)
class Rule:
    """Erase runs older than `age` that ended in one of `statuses`. `reviewed`: only those that were reviewed or corrected or stand
    in a dataset (True), only all others (False), both (None)."""

    age: timedelta
    statuses: tuple[str, ...] = FINAL
    reviewed: bool | None = None

    def condition(self, now: datetime) -> ColumnElement[bool]:
        """Over `Run`."""
        conditions = [Run.created < now - self.age, Run.status.in_(self.statuses)]
        if self.reviewed is not None:
            valued = or_(
                exists().where(Review.run_id == Run.id),
                exists().where(DatasetRow.run_id == Run.id, DatasetRow.removed.is_(None)),
            )
            conditions.append(valued if self.reviewed else ~valued)
        return and_(*conditions)


@dataclass(frozen=True, slots=True)
class Policy:
    """How long the texts of runs are kept; None: until somebody deletes them."""

    kept: timedelta | None = None
    failed: timedelta | None = None
    reviewed: timedelta | None = None

    @classmethod
    def parse(cls, kept: str = "", failed: str = "", reviewed: str = "") -> Policy:
        """From settings: an age, or `forever`; empty means forever for `kept`, and for the others as `kept`. Raises ValueError."""
        general = None if kept in ("", FOREVER) else parse_age(kept)
        others = [general if not text else None if text == FOREVER else parse_age(text) for text in (failed, reviewed)]
        return cls(general, *others)

    def rules(self) -> tuple[Rule, ...]:
        """What is over, as rules; none if all is kept."""
        rules = (
            self.kept and Rule(self.kept, ("done",), reviewed=False),
            self.failed and Rule(self.failed, FAILED, reviewed=False),
            self.reviewed and Rule(self.reviewed, FINAL, reviewed=True),
        )
        return tuple(rule for rule in rules if rule)

    def as_dict(self) -> dict[str, float | None]:
        """In seconds, JSON-ready."""
        ages = {"kept": self.kept, "failed": self.failed, "reviewed": self.reviewed}
        return {f"{name}_seconds": None if age is None else age.total_seconds() for name, age in ages.items()}


class Retention(Conversations):
    """What is over in `database`; `clock` gives moments with a time zone."""

    async def count_due(self, rules: Sequence[Rule]) -> dict[str, int]:
        """How many runs `prune` would erase now, by status; nothing is changed."""
        statement = select(Run.status, func.count()).where(*_due(rules, self.clock())).group_by(Run.status)

        async def work(session: AsyncSession) -> dict[str, int]:
            return dict((await session.execute(statement)).tuples().all())

        return await self.database.read(work) if rules else {}

    async def prune(self, rules: Sequence[Rule], *, by: str, pause: float = PAUSE_SECONDS) -> Erased:
        """Erase the texts of all runs that meet a rule, and the conversations that are empty then. Leaves an audit entry if there
        was anything. What a call that was cut off left, the next one erases."""
        now = self.clock()
        total = Erased()
        last: tuple[datetime, str] | None = None
        while rules:
            found = await self._next_due(rules, now, last)
            if not found:
                break
            ids = [id for _, id in found]
            total += await self.database.write(lambda session, ids=ids: erase_runs(session, ids, now))
            last = found[-1]
            await asyncio.sleep(pause)
        if rules:
            total += await self._prune_conversations(now - max(rule.age for rule in rules), now)
        total += await self._prune_shares(now)
        if any(total.as_dict().values()):
            told = [{"age_seconds": rule.age.total_seconds(), "statuses": rule.statuses} for rule in rules]
            details = {"rules": told, "erased": total.as_dict()}

            async def tell(session: AsyncSession) -> None:
                await session.execute(insert(AuditEntry).values(entry(now, by, "prune", "runs", details=details)))

            await self.database.write(tell)
        await self.purge_search(by=by, pause=pause)
        await self.database.scrub()
        return total

    async def purge_search(self, *, by: str, pause: float = PAUSE_SECONDS) -> bool:
        """Take words of erased texts out of SQLite's search index, which only marks them as gone; whether there was need to.

        The whole index is written anew, in small transactions, so this is done at most once for all that was erased since the last
        time. PostgreSQL's vacuum does the same by itself.
        """
        if self.database.dialect != "sqlite" or not await self._erased_since_purge():
            return False
        now = self.clock()
        pages = -PURGE_PAGES  # negative: take all parts of the index together; then go on with that
        while await self.database.write(lambda session, pages=pages: _merge(session, pages)):
            pages = PURGE_PAGES
            await asyncio.sleep(pause)

        async def tell(session: AsyncSession) -> None:
            await session.execute(insert(AuditEntry).values(entry(now, by, "purge", "search index")))

        await self.database.write(tell)
        return True

    async def _erased_since_purge(self) -> bool:
        last = select(func.max(AuditEntry.id)).where(AuditEntry.subject == "search index", AuditEntry.action == "purge")
        erased = AuditEntry.action.in_(ERASING), AuditEntry.id > func.coalesce(last.scalar_subquery(), 0)

        async def work(session: AsyncSession) -> bool:
            return await session.scalar(select(AuditEntry.id).where(*erased).limit(1)) is not None

        return await self.database.read(work)

    async def _next_due(
        self, rules: Sequence[Rule], now: datetime, last: tuple[datetime, str] | None
    ) -> list[tuple[datetime, str]]:
        statement = select(Run.created, Run.id).where(*_due(rules, now))
        if last is not None:
            statement = statement.where(tuple_(Run.created, Run.id) > last)
        statement = statement.order_by(Run.created, Run.id).limit(BATCH)

        async def work(session: AsyncSession) -> list[tuple[datetime, str]]:
            return list((await session.execute(statement)).tuples())

        return await self.database.read(work)

    async def _prune_conversations(self, before: datetime, now: datetime) -> Erased:
        """Those that never got a run, or only such as nobody wanted kept: their titles are texts, too."""
        used = exists().where(Run.conversation_id == Conversation.id, Run.deleted.is_(None))
        empty = Conversation.deleted.is_(None), Conversation.updated < before, ~used
        emptied = update(Conversation).where(*empty).values(title="", deleted=now)

        async def work(session: AsyncSession) -> int:
            return (await session.execute(emptied, execution_options={"synchronize_session": False})).rowcount

        return Erased(conversations=await self.database.write(work))

    async def _prune_shares(self, now: datetime) -> Erased:
        """The pages whose time is over, which until now only nobody could see any more."""
        over: list[Any] = [Share.expires <= now, or_(Share.content.is_not(None), Share.title != "")]

        async def work(session: AsyncSession) -> int:
            return await erase_shares(session, over, now)

        return Erased(shared_pages=await self.database.write(work))


async def _merge(session: AsyncSession, pages: int) -> bool:
    """A step of FTS5's merging, of at most so many pages; whether there was anything to do."""
    before = await session.scalar(text("SELECT total_changes()"))
    await session.execute(text("INSERT INTO run_search (run_search, rank) VALUES ('merge', :pages)"), {"pages": pages})
    # Its documentation: fewer than two changes mean that nothing was done.
    return (await session.scalar(text("SELECT total_changes()"))) - before >= 2


def _due(rules: Sequence[Rule], now: datetime) -> list[ColumnElement[bool]]:
    return [Run.deleted.is_(None), or_(*(rule.condition(now) for rule in rules))]
