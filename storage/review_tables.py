"""The tables of the review desk: what staff says of a run, and the spans of its output that they corrected."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, Float, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from storage.models import Base, one_of

REVIEW_STATUSES = ("open", "done")
SPAN_SOURCES = ("model", "typed")


class Review(Base):
    """What staff says of a run; one a run. `version` counts its changes: who changes it must name the one they saw.

    `corrected` is the whole output as it should be (span corrections included), None while nothing was corrected. `reviewer_id`
    is who changed it last; `rating` 1 (useless) to 5.
    """

    __tablename__ = "review"
    __table_args__ = (
        CheckConstraint("rating BETWEEN 1 AND 5", name="rating"),
        CheckConstraint(one_of("status", REVIEW_STATUSES), name="status"),
        Index(None, "updated", "run_id"),
        Index(None, "rating", "run_id"),
        Index(None, "reviewer_id", "updated"),
    )

    run_id: Mapped[str] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"), primary_key=True)
    version: Mapped[int]
    status: Mapped[str]
    rating: Mapped[int | None]
    flagged: Mapped[bool]
    corrected: Mapped[str | None]
    note: Mapped[str]
    reviewer_id: Mapped[str | None] = mapped_column(ForeignKey("staff.id"))
    created: Mapped[datetime]
    updated: Mapped[datetime]


class ReviewTag(Base):
    """A word that staff put on a run."""

    __tablename__ = "review_tag"
    __table_args__ = (Index(None, "tag", "run_id"),)

    run_id: Mapped[str] = mapped_column(ForeignKey("review.run_id", ondelete="CASCADE"), primary_key=True)
    tag: Mapped[str] = mapped_column(primary_key=True)


class SpanCorrection(Base):
    """A wrong span of a run's output and what stands there instead: a preference, and a training row with a blank.

    `start`, `end`: characters of the run's output as the model wrote it. `text` is all that stood around the span (prompt and
    output) with a mask in its place; `alternatives` what the model offered, `[{"text", "logprob"}, …]`; `logprob` of the
    chosen one, if the model offered it.
    """

    __tablename__ = "span_correction"
    __table_args__ = (
        CheckConstraint(one_of("source", SPAN_SOURCES), name="source"),
        Index(None, "run_id", "start"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("review.run_id", ondelete="CASCADE"))
    start: Mapped[int]
    end: Mapped[int]
    rejected: Mapped[str]
    chosen: Mapped[str]
    source: Mapped[str]
    text: Mapped[str]
    alternatives: Mapped[Any | None]
    logprob: Mapped[float | None] = mapped_column(Float(53))
    reviewer_id: Mapped[str | None] = mapped_column(ForeignKey("staff.id"))
    created: Mapped[datetime]
