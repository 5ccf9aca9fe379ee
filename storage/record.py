"""What the program keeps and asks for: runs, blanks, feedback, model versions, and (inherited) conversations,
shared pages, votes and staff.

A run is written when it is accepted, before anything is generated, and finalised exactly once; after a crash,
`interrupt_unfinished` ends what was under way. A visitor's functions see only that visitor's rows: another's look like
missing ones (`StorageError("not_found")`). Rows are returned detached (see `storage.models`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from storage import search
from storage.columns import is_clean
from storage.conversations import Conversations, no_conversation, utc_now
from storage.database import Database
from storage.datasets import Datasets
from storage.disk import DiskState, disk_state, used_bytes
from storage.errors import StorageError
from storage.evaluations import Evaluations
from storage.facets import Facets
from storage.lineage import Lineage
from storage.models import FINAL, UNFINISHED, Blank, Conversation, Feedback, ModelVersion, Run
from storage.opinions import count_opinions
from storage.presence import ABANDONED
from storage.queue import Queue
from storage.retention import Retention
from storage.reviews import Reviews
from storage.run_details import Details
from storage.shares import Shares
from storage.staff import StaffRecord
from storage.statistics import Statistics
from storage.training_runs import TrainingRuns
from storage.visitors import Visitors
from storage.votes import Votes

# The hot writes go through the tables, not the mapped classes, and through statements that are made once: that is most of what
# a write costs. The column types work the same. What an UPDATE sets are the parameters that have a column's name.
RUN, BLANK, CONVERSATION = Run.__table__, Blank.__table__, Conversation.__table__
USE_CONVERSATION = update(CONVERSATION).where(
    CONVERSATION.c.id == bindparam("conversation"),
    CONVERSATION.c.visitor == bindparam("owner"),
    CONVERSATION.c.deleted.is_(None),
)
INSERT_RUN = insert(RUN)
INSERT_BLANK = insert(BLANK)
START_RUN = update(RUN).where(RUN.c.id == bindparam("run"), RUN.c.status == "accepted")
# The lock is for PostgreSQL: a deletion of the conversation must come wholly before or wholly after the end of a run.
LOCK_RUN = (
    select(RUN.c.status, RUN.c.created, RUN.c.deleted, RUN.c.prompt, RUN.c.number)
    .where(RUN.c.id == bindparam("run"))
    .with_for_update()
)
END_RUN = update(RUN).where(RUN.c.id == bindparam("run"), RUN.c.status.in_(UNFINISHED))


@dataclass(frozen=True, slots=True)
class FilledBlank:
    """One blank as generation left it; `token_ids` and `logprobs` (count,) of the shown alternative, in order."""

    index: int
    kind: str
    text: str
    token_ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    alternatives: Sequence[Mapping[str, Any]] = field(default_factory=list)


class Record(
    Queue,
    Facets,
    Reviews,
    Details,
    TrainingRuns,
    Evaluations,
    Datasets,
    Lineage,
    Visitors,
    Retention,
    Statistics,
    Shares,
    Votes,
    StaffRecord,
    Conversations,
):
    """The record kept in `database`.

    `clock` gives moments with a time zone; `server` names this process among several that share one database, so that a
    restart of one doesn't end the runs of another.
    """

    def __init__(self, database: Database, clock: Callable[[], datetime] = utc_now, server: str = "") -> None:
        super().__init__(database, clock)
        self.server = server

    # Model versions

    async def ensure_model_version(
        self, weights_hash: str, name: str, config: Mapping[str, Any], parent: int | None = None
    ) -> int:
        """The id of the version with these weights, registered if new; an existing one keeps its name and parent."""
        values = {
            "weights_hash": weights_hash,
            "name": name,
            "config": dict(config),
            "parent_id": parent,
            "created": self.clock(),
        }

        async def work(session: AsyncSession) -> int:
            statement = self._insert(ModelVersion).values(values)
            await session.execute(statement.on_conflict_do_nothing(index_elements=["weights_hash"]))
            found = await session.scalar(select(ModelVersion.id).where(ModelVersion.weights_hash == weights_hash))
            assert found is not None
            return found

        return await self.database.write(work)

    # Runs

    async def accept_run(
        self,
        id: str,
        *,
        visitor: str,
        mode: str,
        prompt: str | Sequence[Mapping[str, Any]],
        parameters: Mapping[str, Any],
        conversation: str | None = None,
        seed: int | None = None,
        model_version: int | None = None,
        client: str = "web",
        moment: datetime | None = None,
        texts: bool = True,
    ) -> None:
        """Write an accepted run; only when this has returned may generation start.

        `seed` lies in 0 .. 2**64 - 1 (ValueError otherwise). `moment`: when it was accepted, if that was before; `texts` False
        keeps the row without what was said, as of a deleted conversation. Raises `StorageError`: `conflict` if the id is taken,
        `not_found` if the conversation is not this visitor's or is deleted, `disk_full`, `database_unavailable`.
        """
        _check_seed(seed)
        now = moment or self.clock()
        values = {
            "id": id,
            "visitor": visitor,
            "mode": mode,
            "prompt": prompt if texts else None,
            "parameters": dict(parameters),
            "conversation_id": conversation,
            "seed": seed,
            "model_version_id": model_version,
            "client": client,
            "server": self.server,
            "status": "accepted",
            "created": now,
            "deleted": None if texts else now,
            "repaired": not is_clean(prompt),
        }

        def work(connection: Connection) -> None:
            if conversation is not None:
                used = {"conversation": conversation, "owner": visitor, "updated": now}
                if connection.execute(USE_CONVERSATION, used).rowcount == 0:
                    raise no_conversation()
            connection.execute(INSERT_RUN, values)

        await self.database.write_together(work)

    async def start_run(self, id: str, moment: datetime | None = None) -> bool:
        """Mark an accepted run as running, since now or `moment`; False if it is not (or no longer) waiting."""
        values = {"run": id, "status": "running", "started": moment or self.clock()}

        def work(connection: Connection) -> bool:
            return connection.execute(START_RUN, values).rowcount == 1

        return await self.database.write_together(work)

    async def finalise_run(
        self,
        id: str,
        status: str,
        *,
        output: str | None = None,
        blanks: Sequence[FilledBlank] = (),
        finish_reason: str | None = None,
        error_kind: str | None = None,
        error_message: str | None = None,
        prompt_tokens: int | None = None,
        new_tokens: int | None = None,
        largest_batch: int | None = None,
        queue_milliseconds: float | None = None,
        first_token_milliseconds: float | None = None,
        total_milliseconds: float | None = None,
        seed: int | None = None,
        fingerprint: Mapping[str, Any] | None = None,
        moment: datetime | None = None,
    ) -> bool:
        """End a run with its output and blanks, in one transaction; True for the one call that did it.

        `status`: done, cancelled, error or interrupted. A run that is final already is left as it is, and the answer is
        False. `seed` is given only if it was drawn after acceptance; `total_milliseconds` defaults to the time since.
        `moment`: when it ended, if that was before. Raises `StorageError("not_found")` for a run that was never accepted.
        """
        assert status in FINAL, status
        _check_seed(seed)
        now = moment or self.clock()
        mean = _mean([value for blank in blanks for value in blank.logprobs])
        values: dict[str, Any] = {
            "status": status,
            "finished": now,
            "output": output,
            "finish_reason": finish_reason,
            "error_kind": error_kind,
            "error_message": error_message,
            "prompt_tokens": prompt_tokens,
            "new_tokens": new_tokens,
            "largest_batch": largest_batch,
            "mean_logprob": mean,
            "uncertainty": -1.0 if mean is None else -mean,
            "queue_milliseconds": queue_milliseconds,
            "first_token_milliseconds": first_token_milliseconds,
            "total_milliseconds": total_milliseconds,
            "fingerprint": None if fingerprint is None else dict(fingerprint),
        }
        if seed is not None:
            values["seed"] = seed
        if not is_clean(output) or not is_clean([[blank.text, blank.alternatives] for blank in blanks]):
            values["repaired"] = True

        rows = [_row(id, blank) for blank in blanks]

        def work(connection: Connection) -> bool:
            run = connection.execute(LOCK_RUN, {"run": id}).one_or_none()
            if run is None:
                raise _no_run()
            if run.status not in UNFINISHED:
                return False
            changes = values | {"run": id}
            if total_milliseconds is None:
                changes["total_milliseconds"] = (now - run.created).total_seconds() * 1000
            if run.deleted is not None:
                changes |= {"output": None, "error_message": None}
            texts = search.texts_of(run.prompt, output)
            if run.deleted is None:
                changes["language"] = search.language_of(texts)
            if connection.execute(END_RUN, changes).rowcount != 1:
                return False
            if run.deleted is None:
                if rows:
                    connection.execute(INSERT_BLANK, rows)
                for statement, found in search.entry(self.database.dialect, run.number, texts, new=True):
                    connection.execute(statement, found)
            return True

        return await self.database.write_together(work)

    async def interrupt_unfinished(self, others: Collection[str] | None = None) -> int:
        """At start, before the first request: end what earlier processes left; returns how many runs.

        `others`: the names of all other servers that run now: whatever else is unfinished has been left. Where that isn't known
        (None), this `server`'s own runs are ended, those of no server, and other servers' that are older than a day.
        """
        now = self.clock()
        if others is None:
            left = or_(Run.server.in_((self.server, "")), Run.created < now - ABANDONED)
        else:
            left = Run.server.not_in(others)
        statement = (
            update(RUN)
            .where(Run.status.in_(UNFINISHED), left)
            .values(
                status="interrupted",
                finished=now,
                error_kind="interrupted",
                error_message="The server stopped before this run ended.",
            )
        )

        async def work(session: AsyncSession) -> int:
            ended = list(await session.scalars(statement.returning(Run.id)))
            await search.index_runs(session, ended, new=True)
            return len(ended)

        return await self.database.write(work)

    async def get_run(self, id: str, visitor: str | None) -> Run:
        """With its `blanks`, `feedback` and `model_version`. `visitor` None asks for staff, who may see any.

        Raises `StorageError("not_found")`.
        """
        statement = select(Run).where(Run.id == id)
        if visitor is not None:
            statement = statement.where(Run.visitor == visitor, Run.deleted.is_(None))
        statement = statement.options(
            selectinload(Run.blanks), selectinload(Run.feedback), selectinload(Run.model_version)
        )

        async def work(session: AsyncSession) -> Run:
            found = await session.scalar(statement)
            if found is None:
                raise _no_run()
            return found

        return await self.database.read(work)

    async def has_run(self, id: str) -> bool:
        """Whether there is a run with this id, whoever's it is."""

        async def work(session: AsyncSession) -> bool:
            return await session.scalar(select(Run.id).where(Run.id == id)) is not None

        return await self.database.read(work)

    # Feedback

    async def add_feedback(
        self, run: str, visitor: str, *, rating: int | None = None, comment: str | None = None
    ) -> Feedback:
        """Rate or comment one's own run, or change that; None leaves a part as it is, 0 and "" withdraw it.

        Raises `StorageError("not_found")`.
        """
        assert rating in (None, -1, 0, 1), rating
        now = self.clock()
        changes: dict[str, Any] = {"updated": now}
        if rating is not None:
            changes["rating"] = rating or None
        if comment is not None:
            changes["comment"] = comment
        new = {"run_id": run, "visitor": visitor, "rating": None, "comment": "", "created": now, **changes}

        async def work(session: AsyncSession) -> Feedback:
            # Locked, so that a deletion beside it can't leave a comment behind.
            own = select(Run.id).where(Run.id == run, Run.visitor == visitor, Run.deleted.is_(None)).with_for_update()
            if await session.scalar(own) is None:
                raise _no_run()
            statement = self._insert(Feedback).values(new)
            statement = statement.on_conflict_do_update(index_elements=["run_id", "visitor"], set_=changes)
            await session.execute(statement)
            await count_opinions(session, [run])
            return await session.get_one(Feedback, (run, visitor))

        return await self.database.write(work)

    async def check_writable(self) -> None:
        """Write something that changes nothing. Raises `StorageError` if the database takes no writes."""

        def work(connection: Connection) -> None:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = version_num")

        await self.database.write_together(work)

    # Numbers

    async def used_bytes(self) -> int:
        """What the database takes now, see `storage.disk`. Raises `StorageError`."""
        return await used_bytes(self.database)

    async def disk_state(self, quota: int = 0) -> DiskState:
        """The room that the record takes, its growth, and when it will be full. Raises `StorageError`."""
        return await disk_state(self.database, self.clock(), quota)

    async def counts(self) -> dict[str, Any]:
        """How much there is: conversations, runs (all and by status), blanks, feedback, model versions, new tokens."""

        async def work(session: AsyncSession) -> dict[str, Any]:
            async def count(table: type, *conditions: ColumnElement[bool]) -> int:
                return await session.scalar(select(func.count()).select_from(table).where(*conditions)) or 0

            by_status = await session.execute(select(Run.status, func.count()).group_by(Run.status))
            statuses = dict(by_status.tuples().all())
            return {
                "conversations": await count(Conversation, Conversation.deleted.is_(None)),
                "runs": sum(statuses.values()),
                "runs_by_status": {status: statuses.get(status, 0) for status in UNFINISHED + FINAL},
                "blanks": await count(Blank),
                "feedback": await count(Feedback),
                "model_versions": await count(ModelVersion),
                "new_tokens": int(await session.scalar(select(func.sum(Run.new_tokens))) or 0),
            }

        return await self.database.read(work)

    def _insert(self, table: type) -> sqlite.Insert | postgresql.Insert:
        """An INSERT that knows ON CONFLICT: both databases do, in the same words, but SQLAlchemy keeps two classes."""
        return (sqlite if self.database.dialect == "sqlite" else postgresql).insert(table)


def _check_seed(seed: int | None) -> None:
    """Here, since SQLAlchemy would wrap the ValueError of a column type."""
    if seed is not None and not 0 <= seed < 1 << 64:
        raise ValueError(f"a seed lies between 0 and 2**64 - 1, not {seed}")


def _no_run() -> StorageError:
    return StorageError("not_found", "There is no such run, or it isn't yours.")


def _row(run: str, blank: FilledBlank) -> dict[str, Any]:
    return {
        "run_id": run,
        "index": blank.index,
        "kind": blank.kind,
        "text": blank.text,
        "token_ids": blank.token_ids,
        "logprobs": blank.logprobs,
        "alternatives": blank.alternatives,
    }


def _mean(values: Sequence[float]) -> float | None:
    """The mean, None for none or for one that isn't finite (which a database doesn't sort)."""
    mean = math.fsum(values) / len(values) if values else math.nan
    return mean if math.isfinite(mean) else None
