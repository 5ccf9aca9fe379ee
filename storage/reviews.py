"""What staff says of a run: stars, tags, a note, a flag, and how its output should be, whole or span by span.

Who changes a review names the version that they saw (0: there was none). If somebody was faster, nothing is changed and
`ReviewConflict` holds what stands there now, so that it can be shown. The corrected text is always what the output becomes when
every span's chosen words stand in its place; a whole rewrite takes the place of the spans, and the other way round.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from storage import search
from storage.conversations import Conversations
from storage.errors import StorageError
from storage.identifier import new_id
from storage.models import UNFINISHED, Run
from storage.opinions import count_opinions
from storage.review_tables import REVIEW_STATUSES, SPAN_SOURCES, Review, ReviewTag, SpanCorrection
from storage.staff_tables import Staff

TAGS = 20  # of one run
TAG_CHARACTERS = 40
NOTE_CHARACTERS = 5000
CORRECTED_CHARACTERS = 200_000
SPANS = 200  # of one run
ALTERNATIVES = 16  # of one span
CHANGEABLE = ("rating", "flagged", "status", "note", "tags", "corrected")

_NOT_IN_TAGS = re.compile(r"[,\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class ReviewState:
    """A run's review as it is, with the names of the staff whose ids stand in it."""

    review: Review | None
    tags: list[str] = field(default_factory=list)
    spans: list[SpanCorrection] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    @property
    def version(self) -> int:
        return self.review.version if self.review else 0


class ReviewConflict(StorageError):
    """Somebody else has changed the review since; `state` is what it is now."""

    def __init__(self, state: ReviewState) -> None:
        name = state.names.get((state.review.reviewer_id or "") if state.review else "")
        who = f" by {name}" if name else ""
        super().__init__("conflict", f"This review was changed{who} in the meantime. Nothing was overwritten.")
        self.state = state


class Reviews(Conversations):
    """The reviews kept in `database`; `clock` gives moments with a time zone. `by` is always the id of a member of staff."""

    async def get_review(self, run: str) -> ReviewState:
        """Raises `StorageError("not_found")` if there is no such run."""

        async def work(session: AsyncSession) -> ReviewState:
            if await session.scalar(select(Run.id).where(Run.id == run)) is None:
                raise _no_run()
            return await review_state(session, run)

        return await self.database.read(work)

    async def save_review(self, run: str, version: int, by: str | None, **changes: Any) -> ReviewState:
        """Change what is given: `rating` (1 to 5, or None), `flagged`, `status` (open, done), `note`, `tags` (all of them),
        `corrected` (the whole output as it should be; None takes it back, the spans too).

        Raises `StorageError`: `not_found`, `ReviewConflict`, `bad_request` with the field.
        """
        assert set(changes) <= set(CHANGEABLE), changes
        changes = _checked(changes)

        async def work(session: AsyncSession) -> ReviewState:
            output, state = await self._begin(session, run, version)
            review = self._touched(session, run, state, by)
            for name in ("rating", "flagged", "status", "note"):
                if name in changes:
                    setattr(review, name, changes[name])
            rewritten = "corrected" in changes
            if rewritten:
                if output is None and changes["corrected"] is not None:
                    raise _wrong("corrected", "This run has no output that could be corrected.")
                await session.execute(delete(SpanCorrection).where(SpanCorrection.run_id == run))
                review.corrected = None if changes["corrected"] == output else changes["corrected"]
            await session.flush()
            if "tags" in changes:
                await session.execute(delete(ReviewTag).where(ReviewTag.run_id == run))
                session.add_all(ReviewTag(run_id=run, tag=tag) for tag in changes["tags"])
            return await self._end(session, run, reindex=rewritten)

        return await self.database.write(work)

    async def put_span(
        self,
        run: str,
        version: int,
        by: str | None,
        *,
        start: int,
        end: int,
        chosen: str,
        source: str,
        text: str,
        alternatives: Sequence[Mapping[str, Any]] | None = None,
        logprob: float | None = None,
        replace: bool = False,
    ) -> tuple[ReviewState, str]:
        """Correct the characters [start, end) of the output, or what was chosen for just these; the new state and the span's id.

        text: all that stands around the span, with a mask in its place. replace: take the place of a whole rewrite.
        Raises as `save_review`; `bad_request` for a span that overlaps another.
        """
        assert source in SPAN_SOURCES, source
        if len(chosen) > CORRECTED_CHARACTERS:
            raise _wrong("chosen", f"This may have {CORRECTED_CHARACTERS} characters.", CORRECTED_CHARACTERS)
        offered = [dict(one) for one in alternatives or ()]
        if len(offered) > ALTERNATIVES:
            raise _wrong("alternatives", f"There may be {ALTERNATIVES} alternatives.", ALTERNATIVES)

        async def work(session: AsyncSession) -> tuple[ReviewState, str]:
            output, state = await self._begin(session, run, version)
            if output is None:
                raise _wrong("start", "This run has no output that could be corrected.")
            span = _place(output, state, start, end, chosen, replace)
            review = self._touched(session, run, state, by)
            await session.flush()
            if span is None:
                span = SpanCorrection(id=new_id(12), run_id=run, start=start, end=end)
                session.add(span)
                state.spans.append(span)
            span.rejected, span.chosen, span.source, span.text = output[start:end], chosen, source, text
            span.alternatives, span.logprob = offered or None, logprob
            span.reviewer_id, span.created = by, review.updated
            review.corrected = corrected_text(output, state.spans)
            await session.flush()
            return await self._end(session, run, reindex=True), span.id

        return await self.database.write(work)

    async def remove_span(self, run: str, version: int, span: str, by: str | None) -> ReviewState:
        """Take a corrected span back. Raises as `save_review`."""

        async def work(session: AsyncSession) -> ReviewState:
            output, state = await self._begin(session, run, version)
            found = next((one for one in state.spans if one.id == span), None)
            if found is None or output is None:
                raise StorageError("not_found", "There is no such corrected span.")
            review = self._touched(session, run, state, by)
            state.spans.remove(found)
            await session.delete(found)
            review.corrected = corrected_text(output, state.spans)
            await session.flush()
            return await self._end(session, run, reindex=True)

        return await self.database.write(work)

    async def _begin(self, session: AsyncSession, run: str, version: int) -> tuple[str | None, ReviewState]:
        """The output and the review of a run, locked."""
        locked = select(Run.status, Run.output, Run.deleted).where(Run.id == run).with_for_update()
        found = (await session.execute(locked)).one_or_none()
        if found is None or found.deleted is not None:
            raise _no_run()
        if found.status in UNFINISHED:
            raise StorageError("bad_request", "This run has not ended yet.")
        state = await review_state(session, run)
        if state.version != version:
            session.expunge_all()  # what is shown must outlive this transaction
            raise ReviewConflict(state)
        return found.output, state

    def _touched(self, session: AsyncSession, run: str, state: ReviewState, by: str | None) -> Review:
        now = self.clock()
        review = state.review
        if review is None:
            review = Review(run_id=run, version=0, status="open", rating=None, flagged=False, corrected=None, note="")
            review.created = now
            session.add(review)
        review.version += 1
        review.reviewer_id, review.updated = by, now
        return review

    async def _end(self, session: AsyncSession, run: str, *, reindex: bool) -> ReviewState:
        await session.flush()
        await count_opinions(session, [run])
        if reindex:
            await search.index_runs(session, [run])
        return await review_state(session, run)


async def review_state(session: AsyncSession, run: str) -> ReviewState:
    """A run's review, for whoever is in a transaction already."""
    review = await session.get(Review, run)
    if review is None:
        return ReviewState(None)
    tags = list(await session.scalars(select(ReviewTag.tag).where(ReviewTag.run_id == run).order_by(ReviewTag.tag)))
    found = select(SpanCorrection).where(SpanCorrection.run_id == run)
    # Words that were put in at the start of a span stand before it.
    spans = list(await session.scalars(found.order_by(SpanCorrection.start, SpanCorrection.end)))
    staff = {id for id in (review.reviewer_id, *(span.reviewer_id for span in spans)) if id}
    names = (await session.execute(select(Staff.id, Staff.name).where(Staff.id.in_(staff)))).tuples().all()
    return ReviewState(review, tags, spans, dict(names))


def corrected_text(output: str, spans: Sequence[SpanCorrection]) -> str | None:
    """The output with every span's chosen words in its place; None without spans."""
    if not spans:
        return None
    parts, end = [], 0
    for span in sorted(spans, key=lambda span: (span.start, span.end)):
        parts += [output[end : span.start], span.chosen]
        end = span.end
    return "".join([*parts, output[end:]])


def _place(output: str, state: ReviewState, start: int, end: int, chosen: str, replace: bool) -> SpanCorrection | None:
    """The span that is changed, None for a new one; refuses what can't stand there."""
    if not 0 <= start <= end <= len(output):
        raise _wrong("start", f"The span must lie within the {len(output)} characters of the output.", len(output))
    if chosen == output[start:end]:
        raise _wrong("chosen", "These are the words that stand there already.")
    review = state.review
    if review is not None and review.corrected is not None and not state.spans and not replace:
        raise _wrong("corrected", "The whole answer was rewritten; take that back first, or send replace.")
    for span in state.spans:
        if (span.start, span.end) == (start, end):
            return span
        # Two insertions, or one at a span's border, stand side by side; inside of another they don't.
        if span.start < end and start < span.end or span.start < start == end < span.end:
            raise _wrong("start", f"This overlaps a span that is corrected already ({span.start} to {span.end}).")
        if start < span.start == span.end < end:
            raise _wrong("start", f"This overlaps words that were put in at {span.start}.")
    if len(state.spans) >= SPANS:
        raise _wrong("start", f"A run may have {SPANS} corrected spans.", SPANS)
    return None


def _checked(changes: dict[str, Any]) -> dict[str, Any]:
    checked = dict(changes)
    if checked.get("rating") not in (None, 1, 2, 3, 4, 5):
        raise _wrong("rating", "Stars go from 1 to 5.", 5)
    if "status" in checked and checked["status"] not in REVIEW_STATUSES:
        raise _wrong("status", f"This must be one of {', '.join(REVIEW_STATUSES)}.")
    for name, most in (("note", NOTE_CHARACTERS), ("corrected", CORRECTED_CHARACTERS)):
        if len(checked.get(name) or "") > most:
            raise _wrong(name, f"This may have {most} characters.", most)
    if "note" in checked:
        checked["note"] = checked["note"] or ""
    if "tags" in checked:
        checked["tags"] = tag_words(checked["tags"])
    return checked


def tag_words(tags: Sequence[str]) -> list[str]:
    """Tags in the form in which they are kept: small letters, single spaces, each once, in their order. Raises `StorageError`."""
    found = list(dict.fromkeys(" ".join(unicodedata.normalize("NFC", tag).casefold().split()) for tag in tags))
    if len(found) > TAGS:
        raise _wrong("tags", f"A run may have {TAGS} tags.", TAGS)
    for tag in found:
        if not tag or len(tag) > TAG_CHARACTERS or _NOT_IN_TAGS.search(tag):
            raise _wrong("tags", f"A tag has 1 to {TAG_CHARACTERS} characters and no comma.", TAG_CHARACTERS)
    return found


def _no_run() -> StorageError:
    return StorageError("not_found", "There is no such run, or its texts are deleted.")


def _wrong(field: str, message: str, limit: int | None = None) -> StorageError:
    return StorageError("bad_request", f"{field}: {message}", field=field, limit=limit)
