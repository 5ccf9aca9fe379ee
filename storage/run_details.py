"""All that is kept of one run, for whoever reviews it: what it was asked and made, what came around it, what was said."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import and_, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from storage.conversations import Conversations
from storage.errors import StorageError
from storage.models import Conversation, Run, Vote
from storage.reviews import ReviewState, review_state
from storage.run_filter import STAFF_CLIENT
from storage.training_tables import Dataset, DatasetRow
from storage.votes import MIRRORED

NEIGHBOURS = 20  # runs of the conversation, before and after


@dataclass(frozen=True, slots=True)
class RunDetails:
    """`run` has its blanks, feedback and model version. `neighbours`: runs of its conversation around it, itself among them, in
    order of time; `earlier`, `later`: how many more there are. `votes`: `(other run, choice of this run's side, vote)`;
    `datasets`: `(dataset, its row of this run)`."""

    run: Run
    review: ReviewState
    conversation: Conversation | None = None
    neighbours: list[Run] = field(default_factory=list)
    earlier: int = 0
    later: int = 0
    votes: list[tuple[str, str, Vote]] = field(default_factory=list)
    datasets: list[tuple[Dataset, DatasetRow]] = field(default_factory=list)


class Details(Conversations):
    """The runs in `database`, one by one, for staff."""

    async def run_details(self, id: str) -> RunDetails:
        """Raises `StorageError("not_found")`."""
        statement = select(Run).where(Run.id == id)
        statement = statement.options(
            selectinload(Run.blanks), selectinload(Run.feedback), selectinload(Run.model_version)
        )

        async def work(session: AsyncSession) -> RunDetails:
            run = await session.scalar(statement)
            if run is None:
                raise StorageError("not_found", "There is no such run.")
            review = await review_state(session, id)
            around = await _around(session, run)
            return RunDetails(run, review, *around, await _votes(session, id), await _datasets(session, id))

        return await self.database.read(work)


async def _around(session: AsyncSession, run: Run) -> tuple[Conversation | None, list[Run], int, int]:
    if run.conversation_id is None:
        return None, [], 0, 0
    conversation = await session.get(Conversation, run.conversation_id)
    theirs = (Run.conversation_id == run.conversation_id, Run.client != STAFF_CLIENT, Run.id != run.id)
    before = or_(Run.created < run.created, and_(Run.created == run.created, Run.id < run.id))
    after = or_(Run.created > run.created, and_(Run.created == run.created, Run.id > run.id))
    earlier = select(Run).where(*theirs, before).order_by(Run.created.desc(), Run.id.desc()).limit(NEIGHBOURS)
    later = select(Run).where(*theirs, after).order_by(Run.created, Run.id).limit(NEIGHBOURS)
    first, last = list(await session.scalars(earlier)), list(await session.scalars(later))

    async def more(side: Any, shown: int) -> int:
        if shown < NEIGHBOURS:
            return 0
        return (await session.scalar(select(func.count()).select_from(Run).where(*theirs, side)) or 0) - shown

    counts = await more(before, len(first)), await more(after, len(last))
    return conversation, [*reversed(first), run, *last], *counts


async def _votes(session: AsyncSession, id: str) -> list[tuple[str, str, Vote]]:
    voted = select(Vote).where(or_(Vote.first_run_id == id, Vote.second_run_id == id)).order_by(Vote.created)
    words = {"first": "better", "second": "worse", "tie": "tie", "neither": "neither"}
    found = []
    for vote in await session.scalars(voted):
        first = vote.first_run_id == id
        choice = vote.choice if first else MIRRORED[vote.choice]
        found.append((vote.second_run_id if first else vote.first_run_id, words[choice], vote))
    return found


async def _datasets(session: AsyncSession, id: str) -> list[tuple[Dataset, DatasetRow]]:
    rows = select(Dataset, DatasetRow).join(DatasetRow, DatasetRow.dataset_id == Dataset.id)
    rows = rows.where(DatasetRow.run_id == id).order_by(Dataset.created, DatasetRow.index)
    return [(dataset, row) for dataset, row in (await session.execute(rows)).all()]
