"""The queue of the review desk: runs that meet a filter, in one of several orders, page by page.

A page is read from an index that holds all that a filter asks for, beginning behind the last row of the page before. Orders that
few runs have a say in (disagreement, flags, stars) list those first, and then the others, the newest first.

Words are looked for in one of two ways. If few runs have them (up to FEW), these are found first. If many have them, the runs that
come first in the order are looked through, and the page is soon full. Where it isn't, since hardly one of many meets both words
and filter, the search stops after LOOKED_THROUGH runs and says so: the next page goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, literal, or_, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from storage import search
from storage.conversations import Conversations
from storage.errors import StorageError
from storage.models import ModelVersion, Run
from storage.review_tables import Review, ReviewTag
from storage.run_filter import RunFilter
from storage.run_numbers import first_number
from storage.staff_tables import Staff

FEW = 10_000  # of a million: then one run in a hundred has the words, and a page is full after some thousands
LOOKED_THROUGH = (400, 2000, 5000)  # runs at a time
COUNTED = 10_000  # counts stop here
COUNTED_AMONG = 40_000  # runs with the words, if there is a filter, too
EXCERPT_CHARACTERS = 200
PAGE_LIMIT = 200

RUN = Run.__table__
_POSTGRES_PLAN = text("EXPLAIN (FORMAT JSON) SELECT number FROM run_search WHERE terms @@ CAST(:asked AS tsquery)")


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of an order: rows by `value`, if it has one, then by number. `up`: small values first; `newest`: the newest first."""

    index: str
    value: ColumnElement[Any] | None = None
    conditions: tuple[ColumnElement[bool], ...] = ()
    up: bool = False
    newest: bool = True


def _said(column: ColumnElement[Any], *, up: bool = False) -> tuple[Segment, Segment]:
    """Those that have a number there, and behind them the others."""
    some = Segment("ix_run_touched", column, (RUN.c.touched.is_(True), column > 0), up)
    return some, Segment("ix_run_newest", conditions=(func.coalesce(column, 0) == 0,))


ORDERS: dict[str, tuple[Segment, ...]] = {
    "newest": (Segment("ix_run_newest"),),
    "oldest": (Segment("ix_run_newest", newest=False),),
    "uncertainty": (Segment("ix_run_uncertainty", RUN.c.uncertainty),),
    "disagreement": _said(RUN.c.disagreement),
    "flags": (
        Segment("ix_run_touched", conditions=(RUN.c.touched.is_(True), RUN.c.flagged.is_(True))),
        Segment("ix_run_newest", conditions=(RUN.c.flagged.is_(False),)),
    ),
    "rating": _said(RUN.c.stars),
    "rating_low": _said(RUN.c.stars, up=True),
}


@dataclass(frozen=True, slots=True)
class Position:
    """A row's place in an order, as a cursor for clients."""

    segment: int
    value: float
    number: int

    def cursor(self, order: str) -> str:
        # Without a plus sign, which a query string reads as a space.
        return f"{order}.{self.segment}.{self.number}.{float(self.value).hex().replace('+', '')}"

    @classmethod
    def read(cls, cursor: str, order: str) -> Position:
        """Raises `StorageError("not_found")`."""
        try:
            named, segment, number, value = cursor.split(".", 3)
            found = cls(int(segment), float.fromhex(value), int(number))
        except (ValueError, OverflowError):
            named, found = "", cls(0, 0.0, 0)
        known = named == order and 0 <= found.segment < len(ORDERS[order]) and abs(found.number) < 1 << 63
        if not known:
            raise StorageError("not_found", "There is no such page of the list.")
        return found


@dataclass(frozen=True, slots=True)
class QueueRow:
    """A run as the list shows it; prompt and output are their first characters (of a chat, of its last message)."""

    run: Any
    prompt: str | None
    output: str | None
    model: str | None
    tags: list[str]
    review_version: int
    reviewer_id: str | None
    reviewer: str | None


@dataclass(frozen=True, slots=True)
class QueuePage:
    """`complete` False: the search stopped after a bounded effort, and `next` goes on."""

    rows: list[QueueRow]
    next: str | None
    previous: str | None
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Count:
    """How many runs; `complete` False: at least so many, and `capped`: it was counted no further."""

    count: int
    capped: bool = False
    complete: bool = True


class Queue(Conversations):
    """The runs in `database` for the review desk."""

    async def queue(
        self,
        filter: RunFilter,
        order: str = "newest",
        *,
        limit: int = 50,
        after: str | None = None,
        before: str | None = None,
    ) -> QueuePage:
        """A page of up to `limit` runs behind the cursor `after`, or before the cursor `before`.

        Raises `StorageError`: `not_found` for a wrong cursor, `bad_request` for an unknown order.
        """
        assert 0 < limit <= PAGE_LIMIT, limit
        if order not in ORDERS:
            raise StorageError("bad_request", f"order: This must be one of {', '.join(ORDERS)}.", field="order")
        given = before if before is not None else after
        start = None if given is None else Position.read(given, order)
        walk = _Walk(self.database.dialect, filter, ORDERS[order], backwards=before is not None)

        async def work(session: AsyncSession) -> QueuePage:
            found, stopped = await walk.take(session, limit + 1, start)
            more, found = len(found) > limit, found[:limit]
            ahead = found[-1].cursor(order) if found and more else stopped.cursor(order) if stopped else None
            behind = found[0].cursor(order) if found and given is not None else None
            if walk.backwards:
                found.reverse()
                ahead, behind = behind, ahead
            rows = await _rows(session, [position.number for position in found])
            return QueuePage(rows, ahead, behind, stopped is None)

        return await self.database.read(work)

    async def count_queue(self, filter: RunFilter) -> Count:
        """How many runs meet a filter, up to 10,000."""
        dialect = self.database.dialect
        some = queued(dialect, filter, RUN.c.number)

        async def work(session: AsyncSession) -> Count:
            nonlocal some
            looked = None
            if filter.words is not None:
                matching = search.matching(dialect, filter.words)
                if matching is None:
                    return Count(0)
                held = matching.limit(COUNTED_AMONG)
                looked = await session.scalar(select(func.count()).select_from(held.subquery()))
                some = some.where(search.is_among(dialect, held))
            number = await session.scalar(select(func.count()).select_from(some.limit(COUNTED + 1).subquery())) or 0
            if number > COUNTED:
                return Count(COUNTED, capped=True, complete=False)
            return Count(number, complete=looked is None or looked < COUNTED_AMONG)

        return await self.database.read(work)


class _Walk:
    """Through an order, from a position on, in either direction."""

    def __init__(self, dialect: str, filter: RunFilter, segments: Sequence[Segment], *, backwards: bool) -> None:
        self.dialect = dialect
        self.filter = filter
        self.segments = segments
        self.backwards = backwards

    async def take(
        self, session: AsyncSession, wanted: int, start: Position | None
    ) -> tuple[list[Position], Position | None]:
        """Up to `wanted` positions behind `start`, and where the search stopped, if it was ended early."""
        words = self.filter.words
        matching = None
        common = False
        if words is not None:
            matching = search.matching(self.dialect, words)
            if matching is None:
                return [], None
            common = await _common(session, self.dialect, words, matching)
        order = range(len(self.segments))
        found: list[Position] = []
        looked = 0
        for segment in reversed(order) if self.backwards else order:
            if start is not None and (segment > start.segment if self.backwards else segment < start.segment):
                continue
            at = start if start is not None and start.segment == segment else None
            if not common:
                statement = self._statement(segment, at, matching)
                found += await _positions(session, statement.limit(wanted - len(found)), segment)
            else:
                assert words is not None
                while len(found) < wanted:
                    if looked >= len(LOOKED_THROUGH):
                        return found, at
                    size = LOOKED_THROUGH[looked]
                    looked += 1
                    candidates = await _positions(session, self._statement(segment, at).limit(size), segment)
                    numbers = [candidate.number for candidate in candidates]
                    held = set(await session.scalars(search.among(self.dialect, words, numbers)))
                    found += [candidate for candidate in candidates if candidate.number in held]
                    if len(candidates) < size:
                        looked -= 1  # a short look costs little
                        break
                    at = candidates[-1]
            if len(found) >= wanted:
                break
        return found[:wanted], None

    def _statement(self, segment: int, at: Position | None, matching: Select[Any] | None = None) -> Select[Any]:
        part = self.segments[segment]
        index = part.index
        if self.filter.needs_opinion:
            index = "ix_run_touched"
        elif matching is not None and index == "ix_run_uncertainty":
            index = "ix_run_newest"  # it begins with the number, by which few runs are found and then sorted
        value, number = part.value, RUN.c.number
        up, rising = part.up != self.backwards, part.newest == self.backwards
        columns = (number, literal(0) if value is None else value)
        statement = queued(self.dialect, self.filter, *columns, index=index).where(*part.conditions)
        if matching is not None:
            statement = statement.where(search.is_among(self.dialect, matching))
        if at is not None:
            beyond = number > at.number if rising else number < at.number
            if value is not None and up == rising:
                # As one comparison of pairs, which an index of both can begin with.
                pair, place = tuple_(value, number), (at.value, at.number)
                beyond = pair > place if rising else pair < place
            elif value is not None:
                further = value > at.value if up else value < at.value
                beyond = or_(further, and_(value == at.value, beyond))
            statement = statement.where(beyond)
        if value is not None:
            statement = statement.order_by(value.asc() if up else value.desc())
        return statement.order_by(number.asc() if rising else number.desc())


def queued(dialect: str, filter: RunFilter, *columns: ColumnElement[Any], index: str | None = None) -> Select[Any]:
    """Columns of the queue's runs that meet a filter, words aside, read from one index where the database has to be told."""
    narrow = replace(filter, created_from=None, created_to=None)
    statement = select(*columns).where(RUN.c.finished.is_not(None), *narrow.conditions(dialect, words=False))
    if filter.created_from is not None:
        statement = statement.where(RUN.c.number >= first_number(filter.created_from))
    if filter.created_to is not None:
        statement = statement.where(RUN.c.number < first_number(filter.created_to))
    if filter.ids:
        return statement  # by the primary key
    if filter.visitor is not None:
        index = "ix_run_visitor_created"
    elif index is None:
        index = "ix_run_touched" if filter.needs_opinion else "ix_run_newest"
    # SQLite's planner has no statistics, and doesn't know that most filters leave much.
    return statement.with_hint(RUN, f"INDEXED BY {index}", "sqlite")


async def _common(session: AsyncSession, dialect: str, words: str, matching: Select[Any]) -> bool:
    """Whether more than FEW runs match."""
    if dialect == "postgresql":
        # What its planner expects, from its statistics: counting common words would take longer than the page.
        plan = await session.scalar(_POSTGRES_PLAN, {"asked": search.expression(dialect, words)})
        return (json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]["Plan Rows"] > FEW
    some = matching.limit(FEW + 1).subquery()
    return (await session.scalar(select(func.count()).select_from(some)) or 0) > FEW


async def _positions(session: AsyncSession, statement: Select[Any], segment: int) -> list[Position]:
    rows = (await session.execute(statement)).all()
    return [Position(segment, float(value), number) for number, value in rows]


async def _rows(session: AsyncSession, numbers: list[int]) -> list[QueueRow]:
    """The runs of these numbers, in this order."""
    columns = (
        Run.id,
        Run.number,
        Run.created,
        Run.mode,
        Run.language,
        Run.status,
        Run.client,
        Run.model_version_id,
        Run.uncertainty,
        Run.thumbs_up,
        Run.thumbs_down,
        Run.disagreement,
        Run.stars,
        Run.flagged,
        Run.reviewed,
        Run.corrected,
        Run.prompt,
        func.substr(Run.output, 1, EXCERPT_CHARACTERS).label("output"),
        ModelVersion.name.label("model"),
        Review.version.label("review_version"),
        Review.reviewer_id,
        Staff.name.label("reviewer"),
    )
    statement = select(*columns).outerjoin(ModelVersion, ModelVersion.id == Run.model_version_id)
    statement = statement.outerjoin(Review, Review.run_id == Run.id).outerjoin(Staff, Staff.id == Review.reviewer_id)
    found = {row.number: row for row in (await session.execute(statement.where(Run.number.in_(numbers)))).all()}
    tags: dict[str, list[str]] = {}
    ids = [row.id for row in found.values() if row.review_version is not None]
    tagged = select(ReviewTag.run_id, ReviewTag.tag).where(ReviewTag.run_id.in_(ids)).order_by(ReviewTag.tag)
    for id, tag in (await session.execute(tagged)).all() if ids else ():
        tags.setdefault(id, []).append(tag)
    rows = [found[number] for number in numbers if number in found]
    return [
        QueueRow(
            row,
            excerpt(row.prompt),
            row.output,
            row.model,
            tags.get(row.id, []),
            row.review_version or 0,
            row.reviewer_id,
            row.reviewer,
        )
        for row in rows
    ]


def excerpt(prompt: Any) -> str | None:
    """The first characters of a prompt, of a chat's those of its last message."""
    if isinstance(prompt, list):
        last = prompt[-1] if prompt else {}
        prompt = last.get("content") if isinstance(last, dict) else None
    return prompt[:EXCERPT_CHARACTERS] if isinstance(prompt, str) else None
