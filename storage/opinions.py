"""What was said of a run, counted on its row, so that the queue can be ordered and filtered by it.

An opinion is good or bad: a visitor's thumb, an A/B vote (the better one good, the other bad; of `neither` both bad; a tie is
none), staff's stars (4 and 5, 1 and 2). `disagreement` is how many are not of the most's opinion.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from storage.models import Feedback, Run, Vote
from storage.review_tables import Review


async def count_opinions(session: AsyncSession, runs: Sequence[str]) -> None:
    """Bring the rows of these runs up to date, in the transaction that changed what was said of them."""
    for id in runs:
        thumbs = list(await session.scalars(select(Feedback.rating).where(Feedback.run_id == id)))
        voted = or_(Vote.first_run_id == id, Vote.second_run_id == id)
        votes = (await session.execute(select(Vote.first_run_id, Vote.choice).where(voted))).all()
        review = await session.scalar(select(Review).where(Review.run_id == id))
        ups, downs = thumbs.count(1), thumbs.count(-1)
        good = ups + sum(choice == ("first" if first == id else "second") for first, choice in votes)
        bad = downs + sum(
            choice != ("first" if first == id else "second") and choice != "tie" for first, choice in votes
        )
        if review is not None and review.rating is not None:
            good, bad = good + (review.rating > 3), bad + (review.rating < 3)
        values = {
            "thumbs_up": ups,
            "thumbs_down": downs,
            "disagreement": min(good, bad),
            "stars": review.rating if review else None,
            "flagged": review.flagged if review else False,
            "reviewed": review.status == "done" if review else False,
            "corrected": review.corrected is not None if review else False,
            "touched": bool(thumbs or votes or review),
        }
        await session.execute(
            update(Run).where(Run.id == id).values(values), execution_options={"synchronize_session": False}
        )
