"""The walk through the selected runs that an export makes: in order of time, in constant memory, each with what its format needs.

    async for items in walk(database, selection): ...       # lists of Item

Only runs that are over are met, and none that was accepted after the selection's moment `until`: an export that is broken off
and goes on later takes the same ones, and never two states of one run.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from storage import redaction
from storage.database import Database
from storage.export.document import document, redacted
from storage.hidden_words import HiddenWords, Words, hide_in, strings
from storage.models import FINAL, Feedback, Run, Vote
from storage.review_tables import Review
from storage.run_batches import SIZE, Cursor, Entry, run_batches
from storage.run_filter import RunFilter
from storage.staff_tables import Staff


@dataclass(frozen=True, slots=True)
class Selection:
    """Which runs an export takes: those of the filter that were accepted before `until`; whether personal data is hidden."""

    filter: RunFilter
    until: datetime
    redact: bool = True

    def conditions(self, dialect: str) -> list[ColumnElement[bool]]:
        """What a row of `Run` must meet."""
        return [*self.filter.conditions(dialect), Run.created < self.until, Run.status.in_(FINAL)]


@dataclass(slots=True)
class Related:
    """What else a format may need to know of a run. `rivals`: (prompt, output, how it is known to be worse, its id) of other
    answers. `last`: no later round of its conversation is selected. `corrections`: output -> as it should be, of the conversation.
    """

    votes: list[Vote] = field(default_factory=list)
    rivals: list[tuple[Any, str, str, str]] = field(default_factory=list)
    last: bool = True
    corrections: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Item:
    """A run on its way out: its rows, and the document that may leave (see `storage.export.document`)."""

    entry: Entry
    document: dict[str, Any]
    hidden: Words
    related: Related
    redact: bool

    def clean(self, value: Any) -> Any:
        """JSON-like `value` of another run as it may leave beside this one."""
        if not self.redact:
            return value
        own = redaction.words(strings(value))
        return hide_in(value, tuple(dict.fromkeys((*self.hidden, *own))))


async def walk(
    database: Database,
    selection: Selection,
    needs: frozenset[str] = frozenset(),
    *,
    after: Cursor | None = None,
    size: int = SIZE,
) -> AsyncIterator[list[Item]]:
    """Batches of items behind the cursor `after`. `needs`: which fields of Related the format looks at."""
    conditions = selection.conditions(database.dialect)
    words = HiddenWords(database)
    staff = await database.read(_staff)
    async for batch in run_batches(database, conditions, after=after, size=size):
        related = await database.read(_Relations(batch, needs, conditions))
        hidden = await words.of(batch) if selection.redact else [()] * len(batch)
        yield await asyncio.to_thread(_items, batch, related, hidden, staff, selection.redact)


def _items(
    batch: Sequence[Entry],
    related: dict[str, Related],
    hidden: Sequence[Words],
    staff: dict[str, str],
    redact: bool,
) -> list[Item]:
    items = []
    for entry, words in zip(batch, hidden, strict=True):
        known = related[entry.run.id]
        items.append(Item(entry, redacted(document(entry, known.votes, staff), words), words, known, redact))
    return items


async def _staff(session: AsyncSession) -> dict[str, str]:
    return dict((await session.execute(select(Staff.id, Staff.name))).tuples().all())


class _Relations:
    """One read: what is related to the runs of a batch."""

    def __init__(self, batch: Sequence[Entry], needs: frozenset[str], conditions: list[ColumnElement[bool]]) -> None:
        self.entries = {entry.run.id: entry for entry in batch}
        self.needs = needs
        self.conditions = conditions
        self.conversations = sorted({entry.run.conversation_id for entry in batch} - {None})  # type: ignore[type-var]
        self.found: dict[str, Related] = {id: Related() for id in self.entries}

    async def __call__(self, session: AsyncSession) -> dict[str, Related]:
        if "votes" in self.needs:
            await self._votes(session)
        if "rivals" in self.needs:
            await self._losers(session)
            await self._thumbs_down(session)
        if "last" in self.needs:
            await self._last(session)
        if "corrections" in self.needs:
            await self._corrections(session)
        return self.found

    async def _votes(self, session: AsyncSession) -> None:
        """A vote belongs to the later of its two runs, so that the other is known where the document is read."""
        ids = list(self.entries)
        touched = or_(Vote.first_run_id.in_(ids), Vote.second_run_id.in_(ids))
        votes = list(await session.scalars(select(Vote).where(touched)))
        others = {id for vote in votes for id in (vote.first_run_id, vote.second_run_id)} - set(ids)
        selected = select(Run.id, Run.created).where(Run.id.in_(others), *self.conditions)
        created = dict((await session.execute(selected)).tuples().all())
        created.update((id, entry.run.created) for id, entry in self.entries.items())
        for vote in sorted(votes, key=lambda vote: (vote.created, vote.first_run_id, vote.second_run_id, vote.visitor)):
            pair = (vote.first_run_id, vote.second_run_id)
            if set(pair) <= set(created):
                later = max(pair, key=lambda id: (created[id], id))
                if later in self.entries:
                    self.found[later].votes.append(vote)

    async def _losers(self, session: AsyncSession) -> None:
        """Answers that a visitor liked less in a comparison."""
        ids = list(self.entries)
        for choice, winner, loser in (
            ("first", Vote.first_run_id, Vote.second_run_id),
            ("second", Vote.second_run_id, Vote.first_run_id),
        ):
            statement = select(winner, Run.prompt, Run.output, Run.id).join(Run, Run.id == loser)
            statement = statement.where(Vote.choice == choice, winner.in_(ids), Run.deleted.is_(None))
            for id, prompt, output, other in await session.execute(statement.order_by(Vote.created, Run.id)):
                self._rival(id, prompt, output, "vote", other)

    async def _thumbs_down(self, session: AsyncSession) -> None:
        """Other answers to the same prompt that got a thumb down, of runs that got a thumb up."""
        liked = defaultdict(list)
        for id, entry in self.entries.items():
            thumbs = {feedback.rating for feedback in entry.run.feedback}
            if entry.run.conversation_id is not None and 1 in thumbs and -1 not in thumbs:
                liked[entry.run.conversation_id].append(id)
        if not liked:
            return
        down = Feedback.run_id == Run.id, Feedback.rating == -1
        statement = select(Run.conversation_id, Run.prompt, Run.output, Run.id).where(
            Run.conversation_id.in_(liked), Run.deleted.is_(None), select(Feedback).where(*down).exists()
        )
        for conversation, prompt, output, other in await session.execute(statement.order_by(Run.created, Run.id)):
            for id in liked[conversation]:
                self._rival(id, prompt, output, "thumbs", other)

    def _rival(self, id: str, prompt: Any, output: str | None, source: str, other: str) -> None:
        run = self.entries[id].run
        known = {rival[3] for rival in self.found[id].rivals}
        # Two comparisons of different prompts say nothing of either answer.
        if output and other != id and other not in known and prompt == run.prompt and output != run.output:
            self.found[id].rivals.append((prompt, output, source, other))

    async def _last(self, session: AsyncSession) -> None:
        chats = [id for id, entry in self.entries.items() if isinstance(entry.run.prompt, list)]
        answered = and_(Run.mode == "chat", Run.output.is_not(None))
        newest = select(Run.conversation_id, func.max(Run.created)).where(
            Run.conversation_id.in_(self.conversations), answered, *self.conditions
        )
        latest = dict((await session.execute(newest.group_by(Run.conversation_id))).tuples().all())
        for id in chats:
            run = self.entries[id].run
            moment = latest.get(run.conversation_id)
            self.found[id].last = moment is None or run.created >= moment

    async def _corrections(self, session: AsyncSession) -> None:
        statement = select(Run.conversation_id, Run.output, Review.corrected).join(Review, Review.run_id == Run.id)
        statement = statement.where(Run.conversation_id.in_(self.conversations), Review.corrected.is_not(None))
        corrections: dict[str, dict[str, str]] = defaultdict(dict)
        for conversation, output, corrected in await session.execute(statement.order_by(Run.created, Run.id)):
            if output:
                corrections[conversation][output] = corrected
        for id, entry in self.entries.items():
            self.found[id].corrections = corrections.get(entry.run.conversation_id or "", {})
