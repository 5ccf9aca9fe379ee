"""Erasing what was said: every text of some runs, wherever the database keeps a copy of it.

    erased = await erase_runs(session, ids, now)

What stays of a run are its row with counts, timings, seed, numbers among its parameters, thumbs, votes, stars and tags; of a row
in a frozen dataset its hash (a tombstone), so that the dataset's own hash can still be checked. A model that was trained on such
a row, and every model that was made from it, is marked as tainted. A page that was shared from the same conversation since
the run began is over, and the conversation loses its title, which is the beginning of a prompt.

SQLite overwrites what is deleted with zeros (`PRAGMA secure_delete`, see `storage.database`); the write-ahead log holds former
pages until `Database.scrub()` empties it, and the search index single words until `Retention.purge_search()`. In PostgreSQL former
versions of rows lie in their files until its own vacuum takes the room.
Backups, and files that were exported, are no part of the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Delete, Update, delete, exists, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from storage.models import Blank, Conversation, Feedback, ModelVersion, Run, Share, ShareReport
from storage.review_tables import Review, SpanCorrection
from storage.training_tables import DatasetRow

CHUNK = 500  # runs in one statement


@dataclass(frozen=True, slots=True)
class Erased:
    """How many rows lost their texts, and how many models are tainted by it."""

    runs: int = 0
    conversations: int = 0
    blanks: int = 0
    comments: int = 0
    shared_pages: int = 0
    reviews: int = 0
    spans: int = 0
    dataset_rows: int = 0
    tainted_models: int = 0

    def __add__(self, other: Erased) -> Erased:
        return Erased(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def as_dict(self) -> dict[str, int]:
        """All counts by their names."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


async def erase_runs(session: AsyncSession, ids: Sequence[str], now: datetime) -> Erased:
    """Erase every text of these runs, in this transaction. A run that is erased already, or isn't there, changes nothing.

    A run still under way will end without its text being kept.
    """
    total = Erased()
    for start in range(0, len(ids), CHUNK):
        total += await _erase(session, ids[start : start + CHUNK], now)
    return total


async def _erase(session: AsyncSession, ids: Sequence[str], now: datetime) -> Erased:
    # Always locked in the same order; a run's end, a rating or a review comes wholly before or wholly after.
    statement = select(Run.id, Run.conversation_id, Run.created, Run.parameters).where(Run.id.in_(ids))
    rows = (await session.execute(statement.order_by(Run.id).with_for_update())).all()
    runs = [row.id for row in rows]
    if not runs:
        return Erased()
    kept = Run.id.in_(runs), Run.deleted.is_(None)
    count = await _change(session, update(Run).where(*kept).values(deleted=now))
    nothing = {"prompt": None, "output": None, "error_message": None}
    await _change(session, update(Run).where(Run.id.in_(runs)).values(nothing))
    for row in rows:
        numbers = only_numbers(row.parameters)
        if numbers != row.parameters:
            await _change(session, update(Run).where(Run.id == row.id).values(parameters=numbers))
    blanks = await _change(session, delete(Blank).where(Blank.run_id.in_(runs)))
    said = Feedback.run_id.in_(runs), Feedback.comment != ""
    comments = await _change(session, update(Feedback).where(*said).values(comment=""))
    reviews, spans = await _erase_reviews(session, runs)
    dataset_rows, tainted = await _erase_dataset_rows(session, runs, now)
    since: dict[str, datetime] = {}
    for row in rows:
        if row.conversation_id is not None:
            since[row.conversation_id] = min(since.get(row.conversation_id, row.created), row.created)
    pages = 0
    for conversation, first in since.items():
        pages += await erase_shares(session, [Share.conversation_id == conversation, Share.created >= first], now)
    conversations = await _erase_conversations(session, list(since), now)
    return Erased(count, conversations, blanks, comments, pages, reviews, spans, dataset_rows, tainted)


async def _erase_reviews(session: AsyncSession, runs: list[str]) -> tuple[int, int]:
    """How many reviews lost their texts, and how many spans are gone. Whoever has such a review open gets a conflict."""
    written = Review.run_id.in_(runs), or_(Review.corrected.is_not(None), Review.note != "")
    emptied = update(Review).where(*written).values(corrected=None, note="", version=Review.version + 1)
    reviews = await _change(session, emptied)
    spans = await _change(session, delete(SpanCorrection).where(SpanCorrection.run_id.in_(runs)))
    return reviews, spans


async def _erase_dataset_rows(session: AsyncSession, runs: list[str], now: datetime) -> tuple[int, int]:
    """How many rows of datasets became tombstones, and how many models are tainted by that."""
    present = DatasetRow.run_id.in_(runs), DatasetRow.removed.is_(None)
    # Nothing is trained on what is held out.
    trained_on = select(DatasetRow.dataset_id).where(*present, DatasetRow.part == "train").distinct()
    datasets = list(await session.scalars(trained_on))
    gone = update(DatasetRow).where(*present).values(content=None, removed=now)
    rows = await _change(session, gone)
    return rows, await taint(session, datasets, now)


async def taint(session: AsyncSession, datasets: Sequence[str], now: datetime) -> int:
    """Mark the models that were trained on these datasets, and all that were made from them; how many were not marked yet."""
    if not datasets:
        return 0
    family = select(ModelVersion.id).where(ModelVersion.dataset_id.in_(datasets)).cte("family", recursive=True)
    family = family.union(select(ModelVersion.id).join(family, ModelVersion.parent_id == family.c.id))
    ids = list(await session.scalars(select(family.c.id)))
    marked = ModelVersion.id.in_(ids), ModelVersion.tainted.is_(None)
    return await _change(session, update(ModelVersion).where(*marked).values(tainted=now))


async def erase_shares(session: AsyncSession, conditions: Iterable[ColumnElement[bool]], now: datetime) -> int:
    """End the pages that meet the conditions, with their content, titles and what was reported; how many still had any."""
    conditions = tuple(conditions)
    written = or_(Share.content.is_not(None), Share.title != "")
    tokens = select(Share.token).where(*conditions)
    await _change(session, update(ShareReport).where(ShareReport.token.in_(tokens)).values(reason=""))
    await _change(session, update(Share).where(*conditions, Share.revoked.is_(None)).values(revoked=now))
    emptied = update(Share).where(*conditions, written).values(title="", content=None)
    return await _change(session, emptied)


async def _erase_conversations(session: AsyncSession, ids: list[str], now: datetime) -> int:
    """Take away the titles; a conversation whose runs are all erased is deleted. How many are."""
    titled = Conversation.id.in_(ids), Conversation.title != ""
    await _change(session, update(Conversation).where(*titled).values(title=""))
    kept = exists().where(Run.conversation_id == Conversation.id, Run.deleted.is_(None))
    empty = Conversation.id.in_(ids), Conversation.deleted.is_(None), ~kept
    return await _change(session, update(Conversation).where(*empty).values(deleted=now))


async def _change(session: AsyncSession, statement: Update | Delete) -> int:
    """Carry out; how many rows it met. No object of the session stands for one of them."""
    result = await session.execute(statement, execution_options={"synchronize_session": False})
    return result.rowcount


def only_numbers(parameters: dict[str, Any]) -> dict[str, Any]:
    """A run's parameters without what may be somebody's words, as the strings to stop at are."""
    return {name: value for name, value in parameters.items() if isinstance(value, int | float)}
