"""Selected runs with all that belongs to them, batch by batch in the order of (created, id): a million runs in constant memory.

    async for batch in run_batches(database, conditions): ...       # lists of Entry, never empty

Each batch is a read of its own that begins behind the last row of the one before (no OFFSET), so nothing is held meanwhile: not
a transaction, not a snapshot. A run that is accepted during the walk comes at its end, or not at all with `until`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import ColumnElement, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from storage.database import Database
from storage.models import Run
from storage.review_tables import Review, ReviewTag, SpanCorrection

SIZE = 200

Cursor = tuple[datetime, str]


@dataclass(slots=True)
class Entry:
    """A run (its blanks, feedback, model version and conversation are loaded) and what staff said of it."""

    run: Run
    review: Review | None = None
    tags: list[str] = field(default_factory=list)
    spans: list[SpanCorrection] = field(default_factory=list)

    @property
    def cursor(self) -> Cursor:
        """Where to go on behind this run."""
        return self.run.created, self.run.id


async def run_batches(
    database: Database,
    conditions: Sequence[ColumnElement[bool]] = (),
    *,
    after: Cursor | None = None,
    until: datetime | None = None,
    size: int = SIZE,
) -> AsyncIterator[list[Entry]]:
    """Batches of up to `size` runs behind the cursor `after`, of those that were accepted before `until`."""
    while True:
        statement = select(Run).where(*conditions).order_by(Run.created, Run.id).limit(size)
        if after is not None:
            statement = statement.where(tuple_(Run.created, Run.id) > after)
        if until is not None:
            statement = statement.where(Run.created < until)
        batch = await database.read(_Batch(statement))
        if not batch:
            return
        yield batch
        if len(batch) < size:
            return
        after = batch[-1].cursor


class _Batch:
    """One read: the runs of a statement as entries."""

    def __init__(self, statement) -> None:
        self.statement = statement.options(
            selectinload(Run.blanks),
            selectinload(Run.feedback),
            selectinload(Run.model_version),
            selectinload(Run.conversation),
        )

    async def __call__(self, session: AsyncSession) -> list[Entry]:
        entries = {run.id: Entry(run) for run in await session.scalars(self.statement)}
        await add_reviews(session, entries)
        return list(entries.values())


async def add_reviews(session: AsyncSession, entries: dict[str, Entry]) -> None:
    """Load what staff said of these runs into their entries."""
    ids = list(entries)
    for review in await session.scalars(select(Review).where(Review.run_id.in_(ids))):
        entries[review.run_id].review = review
    for tag in await session.scalars(select(ReviewTag).where(ReviewTag.run_id.in_(ids)).order_by(ReviewTag.tag)):
        entries[tag.run_id].tags.append(tag.tag)
    spans = select(SpanCorrection).where(SpanCorrection.run_id.in_(ids))
    for span in await session.scalars(spans.order_by(SpanCorrection.start, SpanCorrection.created, SpanCorrection.id)):
        entries[span.run_id].spans.append(span)
