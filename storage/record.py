"""What the program keeps and asks for: runs, blanks, feedback, model versions, and (inherited) conversations.

A run is written when it is accepted, before anything is generated, and finalised exactly once; after a crash,
`interrupt_unfinished` ends what was under way. A visitor's functions see only that visitor's rows: another's look like
missing ones (`StorageError("not_found")`). Rows are returned detached (see `storage.models`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from storage.columns import is_clean
from storage.conversations import Conversations, no_conversation, own_conversation, utc_now
from storage.database import Database
from storage.errors import StorageError
from storage.models import FINAL, UNFINISHED, Blank, Conversation, Feedback, ModelVersion, Run

# The hot writes go through the tables, not the mapped classes: no ORM bookkeeping, and the column types work the same.
RUN, BLANK = Run.__table__, Blank.__table__


@dataclass(frozen=True, slots=True)
class FilledBlank:
    """One blank as generation left it; `token_ids` and `logprobs` (count,) of the shown alternative, in order."""

    index: int
    kind: str
    text: str
    token_ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    alternatives: Sequence[Mapping[str, Any]] = field(default_factory=list)


class Record(Conversations):
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
    ) -> None:
        """Write an accepted run; only when this has returned may generation start.

        `seed` lies in 0 .. 2**64 - 1 (ValueError otherwise). Raises `StorageError`: `conflict` if the id is taken,
        `not_found` if the conversation is not this visitor's or is deleted, `disk_full`, `database_unavailable`.
        """
        _check_seed(seed)
        now = self.clock()
        values = {
            "id": id,
            "visitor": visitor,
            "mode": mode,
            "prompt": prompt,
            "parameters": dict(parameters),
            "conversation_id": conversation,
            "seed": seed,
            "model_version_id": model_version,
            "client": client,
            "server": self.server,
            "status": "accepted",
            "created": now,
            "repaired": not is_clean(prompt),
        }

        async def work(session: AsyncSession) -> None:
            if conversation is not None:
                used = update(Conversation).where(*own_conversation(conversation, visitor)).values(updated=now)
                if (await session.execute(used)).rowcount == 0:
                    raise no_conversation()
            await session.execute(insert(RUN).values(values))

        await self.database.write(work)

    async def start_run(self, id: str) -> bool:
        """Mark an accepted run as running; False if it is not (or no longer) waiting."""
        now = self.clock()

        async def work(session: AsyncSession) -> bool:
            statement = update(RUN).where(Run.id == id, Run.status == "accepted").values(status="running", started=now)
            return (await session.execute(statement)).rowcount == 1

        return await self.database.write(work)

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
    ) -> bool:
        """End a run with its output and blanks, in one transaction; True for the one call that did it.

        `status`: done, cancelled, error or interrupted. A run that is final already is left as it is, and the answer is
        False. `seed` is given only if it was drawn after acceptance; `total_milliseconds` defaults to the time since.
        Raises `StorageError("not_found")` for a run that was never accepted.
        """
        assert status in FINAL, status
        _check_seed(seed)
        now = self.clock()
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
            "mean_logprob": _mean([value for blank in blanks for value in blank.logprobs]),
            "queue_milliseconds": queue_milliseconds,
            "first_token_milliseconds": first_token_milliseconds,
            "total_milliseconds": total_milliseconds,
            "fingerprint": None if fingerprint is None else dict(fingerprint),
        }
        if seed is not None:
            values["seed"] = seed
        if not is_clean(output) or not is_clean([[blank.text, blank.alternatives] for blank in blanks]):
            values["repaired"] = True

        async def work(session: AsyncSession) -> bool:
            # The lock is for PostgreSQL: a deletion of the conversation must come wholly before or wholly after this.
            state = select(Run.status, Run.created, Run.deleted).where(Run.id == id).with_for_update()
            run = (await session.execute(state)).one_or_none()
            if run is None:
                raise _no_run()
            if run.status not in UNFINISHED:
                return False
            if total_milliseconds is None:
                values["total_milliseconds"] = (now - run.created).total_seconds() * 1000
            if run.deleted is not None:
                values["output"] = None
            ended = update(RUN).where(Run.id == id, Run.status.in_(UNFINISHED)).values(values)
            if (await session.execute(ended)).rowcount != 1:
                return False
            if blanks and run.deleted is None:
                await session.execute(insert(BLANK), [_row(id, blank) for blank in blanks])
            return True

        return await self.database.write(work)

    async def interrupt_unfinished(self) -> int:
        """At start, before the first request: end what an earlier process of this `server` left; returns how many."""
        now = self.clock()
        statement = (
            update(RUN)
            .where(Run.status.in_(UNFINISHED), Run.server == self.server)
            .values(
                status="interrupted",
                finished=now,
                error_kind="interrupted",
                error_message="The server stopped before this run ended.",
            )
        )

        async def work(session: AsyncSession) -> int:
            return (await session.execute(statement)).rowcount

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
            return await session.get_one(Feedback, (run, visitor))

        return await self.database.write(work)

    # Numbers

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
