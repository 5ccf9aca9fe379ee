"""Which words of a conversation are personal, so that all of it is redacted alike: who gives a name in one message is not named
in any other.

    words = HiddenWords(database)
    hidden = await words.of(batch)            # the words of each run of the batch, in its order
    redaction.hide(text, hidden[0])

What is found anywhere in a conversation counts for all its runs, whether they are selected or not.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from storage import redaction
from storage.database import Database
from storage.models import Conversation, Feedback, Run
from storage.review_tables import Review, SpanCorrection
from storage.run_batches import Entry

KEPT_CONVERSATIONS = 500  # whose words are kept for the next batch
PAGE = 200  # runs of conversations that are read at once

Words = tuple[str, ...]


class HiddenWords:
    """The personal words of conversations; those of the last ones are remembered. Belongs to one walk through the runs."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._known: OrderedDict[str, Words] = OrderedDict()

    async def of(self, entries: Sequence[Entry]) -> list[Words]:
        """For each entry, what is to be hidden in it."""
        ids = {entry.run.conversation_id for entry in entries} - {None}
        await self._learn(sorted(ids - set(self._known)))  # type: ignore[type-var]
        for id in ids:
            self._known.move_to_end(id)  # type: ignore[arg-type]
        hidden = await asyncio.to_thread(self._hidden, entries)
        while len(self._known) > KEPT_CONVERSATIONS:
            self._known.popitem(last=False)
        return hidden

    def _hidden(self, entries: Sequence[Entry]) -> list[Words]:
        hidden = []
        for entry in entries:
            known = self._known.get(entry.run.conversation_id or "", ())
            # What the conversation has is known; the alternatives of its blanks, say, stand in no other text.
            texts = entry_texts(entry, whole=entry.run.conversation_id is None)
            hidden.append(tuple(dict.fromkeys((*known, *redaction.words(texts)))))
        return hidden

    async def _learn(self, ids: list[str]) -> None:
        """Find the words of these conversations, reading PAGE of their runs at a time."""
        found: dict[str, dict[str, None]] = {id: {} for id in ids}
        after = ("", "")
        while ids:
            page = await self.database.read(_Page(ids, after, PAGE))
            await asyncio.to_thread(_add_words, page.texts, found)
            if page.last is None:
                break
            after = page.last
        self._known.update({id: tuple(words) for id, words in found.items()})


class _Page:
    """One read: texts of conversations, behind a (conversation, run)."""

    def __init__(self, ids: list[str], after: tuple[str, str], size: int) -> None:
        self.ids, self.after, self.size = ids, after, size
        self.texts: dict[str, list[Any]] = {}
        self.last: tuple[str, str] | None = None

    async def __call__(self, session: AsyncSession) -> _Page:
        columns = Run.conversation_id, Run.id, Run.prompt, Run.output, Run.parameters
        place = tuple_(Run.conversation_id, Run.id)
        runs = select(*columns).where(Run.conversation_id.in_(self.ids), place > self.after)
        rows = (await session.execute(runs.order_by(Run.conversation_id, Run.id).limit(self.size))).all()
        owners = {row.id: row.conversation_id for row in rows}
        for row in rows:
            self._add(row.conversation_id, [row.prompt, row.output, row.parameters])
        said = select(Feedback.run_id, Feedback.comment).where(Feedback.run_id.in_(owners), Feedback.comment != "")
        reviews = select(Review.run_id, Review.corrected, Review.note).where(Review.run_id.in_(owners))
        spans = select(SpanCorrection.run_id, SpanCorrection.chosen).where(SpanCorrection.run_id.in_(owners))
        for statement in (said, reviews, spans):
            for run, *texts in await session.execute(statement):
                self._add(owners[run], texts)
        if self.after == ("", ""):
            titles = select(Conversation.id, Conversation.title).where(Conversation.id.in_(self.ids))
            for id, title in await session.execute(titles):
                self._add(id, [title])
        if len(rows) == self.size:
            self.last = (rows[-1].conversation_id, rows[-1].id)
        return self

    def _add(self, id: str, texts: Sequence[Any]) -> None:
        self.texts.setdefault(id, []).extend(texts)


def _add_words(texts: dict[str, list[Any]], found: dict[str, dict[str, None]]) -> None:
    for id, values in texts.items():
        found[id].update(dict.fromkeys(redaction.words(strings(values))))


def entry_texts(entry: Entry, *, whole: bool = True) -> list[str]:
    """Every different text of one run, and of what was said of it; not `whole`: without those that `HiddenWords` reads of a whole
    conversation."""
    run, review = entry.run, entry.review
    values: list[Any] = [run.error_message, entry.tags]
    values += [blank.alternatives for blank in run.blanks]
    values += [[span.rejected, span.text, span.alternatives] for span in entry.spans]
    values += [blank.text for blank in run.blanks]
    known: list[Any] = [run.prompt, run.output, run.parameters, [feedback.comment for feedback in run.feedback]]
    known += [span.chosen for span in entry.spans]
    if review is not None:
        known += [review.corrected, review.note]
    if whole:
        values += known
    texts = dict.fromkeys(strings(values))
    if not whole:
        for text in strings(known):
            texts.pop(text, None)
    return list(texts)


def strings(value: Any) -> Iterator[str]:
    """Every string in JSON-like `value`; keys are ours, not the visitors'."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings(item)


def hide_in(value: Any, hidden: Words) -> Any:
    """JSON-like `value` with its strings redacted."""
    if isinstance(value, str):
        return redaction.hide(value, hidden)
    if isinstance(value, dict):
        return {name: hide_in(item, hidden) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [hide_in(item, hidden) for item in value]
    return value
