"""The tables of visitors' runs; those of staff, review and training stand in `staff_tables`, `review_tables`, `training_tables`.

A visitor is an opaque string in a column, not a row: nothing is kept of a person but what they typed.

Rows handed out by `storage.record` are detached: their columns can be read at leisure, a relationship only where the
query says that it loads it (anything else raises at once and never asks the database behind one's back).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Float, ForeignKey, Index, MetaData, false, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from storage.columns import CleanJSON, CleanText, Logprobs, Moment, Seed, TokenIds
from storage.run_numbers import run_number

CONVERSATION_KINDS = ("chat", "blanks", "complete", "api")
UNFINISHED = ("accepted", "running")
FINAL = ("done", "cancelled", "error", "interrupted")
CHOICES = ("first", "second", "tie", "neither")

#: Which runs stand in the queue of the review desk, and what an index holds of them so that a filter needs no row.
QUEUED = "finished IS NOT NULL AND deleted IS NULL"
DESK = (
    "mode",
    "language",
    "status",
    "client",
    "model_version_id",
    "created",
    "stars",
    "flagged",
    "reviewed",
    "corrected",
    "thumbs_up",
    "thumbs_down",
    "disagreement",
    "touched",
    "id",
)


def one_of(column: str, values: tuple[str, ...]) -> str:
    """The SQL of a check that a column holds one of these words."""
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


class Base(DeclarativeBase):
    # Named constraints, so that a migration can drop or change them on both databases.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {str: CleanText, datetime: Moment, Any: CleanJSON, dict[str, Any]: CleanJSON}


class ModelVersion(Base):
    """One set of weights, identified by the hash of its content, whatever folder or name it was loaded under.

    `folder` is where a version that was trained here lies, `dataset_id` what it was trained on; `tainted` says since when a run
    that it was trained on is deleted.
    """

    __tablename__ = "model_version"

    id: Mapped[int] = mapped_column(primary_key=True)
    weights_hash: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    config: Mapped[dict[str, Any]]
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("model_version.id"))
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("dataset.id"))
    folder: Mapped[str | None]
    created: Mapped[datetime]
    tainted: Mapped[datetime | None]


class Conversation(Base):
    """A visitor's thread of runs. A deleted one keeps its row, without a title, and its runs without their texts."""

    __tablename__ = "conversation"
    __table_args__ = (
        CheckConstraint(one_of("kind", CONVERSATION_KINDS), name="kind"),
        Index(None, "visitor", "updated", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    visitor: Mapped[str]
    kind: Mapped[str]
    title: Mapped[str]
    created: Mapped[datetime]
    updated: Mapped[datetime]
    deleted: Mapped[datetime | None]

    runs: Mapped[list[Run]] = relationship(
        lazy="raise", viewonly=True, order_by="(Run.created, Run.id)", back_populates="conversation"
    )


class Run(Base):
    """One accepted request and what became of it. Written before generation, finalised exactly once.

    `prompt` is the text or the list of messages as the visitor sent it. `repaired` says that characters which can't be
    stored were replaced in the prompt or the output (see `storage.columns`). `server` names the process that owns an
    unfinished run. Milliseconds count from acceptance. `mean_logprob` is over all chosen tokens of the run's blanks.

    For the review desk (see `storage.opinions`, `storage.search`): `number` in the order of acceptance; `language` of its
    texts, once it has ended; `uncertainty` is -mean_logprob, or -1; visitors' thumbs; `disagreement`: how many opinions (thumbs,
    A/B votes, stars) are not those of the most; staff's `stars`, `flagged`, `reviewed`, `corrected`; `touched`: somebody said
    something of it.
    """

    __tablename__ = "run"
    __table_args__ = (
        CheckConstraint(one_of("status", UNFINISHED + FINAL), name="status"),
        Index(None, "conversation_id", "created"),
        Index(None, "visitor", "created"),
        Index(None, "created", "id"),
        Index(None, "model_version_id", "created"),
        # All that statistics read, so that they look at no row with its long texts.
        Index(
            "ix_run_statistics",
            "created",
            "client",
            "mode",
            "model_version_id",
            "status",
            "prompt_tokens",
            "new_tokens",
            "queue_milliseconds",
            "first_token_milliseconds",
            "total_milliseconds",
        ),
        Index(
            "ix_run_unfinished",
            "status",
            sqlite_where=text(one_of("status", UNFINISHED)),
            postgresql_where=text(one_of("status", UNFINISHED)),
        ),
        Index(None, "number", unique=True),
        Index("ix_run_newest", "number", *DESK, sqlite_where=text(QUEUED), postgresql_where=text(QUEUED)),
        Index(
            "ix_run_uncertainty",
            "uncertainty",
            "number",
            *DESK,
            sqlite_where=text(QUEUED),
            postgresql_where=text(QUEUED),
        ),
        Index(
            "ix_run_touched",
            "number",
            "uncertainty",
            *DESK,
            sqlite_where=text(f"{QUEUED} AND touched IS 1"),
            postgresql_where=text(f"{QUEUED} AND touched IS TRUE"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    conversation_id: Mapped[str | None] = mapped_column(ForeignKey("conversation.id"))
    model_version_id: Mapped[int | None] = mapped_column(ForeignKey("model_version.id"))
    visitor: Mapped[str]
    client: Mapped[str]
    server: Mapped[str]
    mode: Mapped[str]
    prompt: Mapped[Any | None]
    parameters: Mapped[dict[str, Any]]
    seed: Mapped[int | None] = mapped_column(Seed)
    fingerprint: Mapped[dict[str, Any] | None]
    repaired: Mapped[bool]

    status: Mapped[str]
    output: Mapped[str | None]
    finish_reason: Mapped[str | None]
    error_kind: Mapped[str | None]
    error_message: Mapped[str | None]

    prompt_tokens: Mapped[int | None]
    new_tokens: Mapped[int | None]
    largest_batch: Mapped[int | None]
    mean_logprob: Mapped[float | None] = mapped_column(Float(53))

    created: Mapped[datetime]
    started: Mapped[datetime | None]
    finished: Mapped[datetime | None]
    deleted: Mapped[datetime | None]
    queue_milliseconds: Mapped[float | None] = mapped_column(Float(53))
    first_token_milliseconds: Mapped[float | None] = mapped_column(Float(53))
    total_milliseconds: Mapped[float | None] = mapped_column(Float(53))

    number: Mapped[int] = mapped_column(
        BigInteger, nullable=True, default=lambda context: run_number(context.get_current_parameters()["created"])
    )
    language: Mapped[str | None]
    uncertainty: Mapped[float] = mapped_column(Float(53), server_default=text("-1"))
    thumbs_up: Mapped[int] = mapped_column(server_default=text("0"))
    thumbs_down: Mapped[int] = mapped_column(server_default=text("0"))
    disagreement: Mapped[int] = mapped_column(server_default=text("0"))
    stars: Mapped[int | None]
    flagged: Mapped[bool] = mapped_column(server_default=false())
    reviewed: Mapped[bool] = mapped_column(server_default=false())
    corrected: Mapped[bool] = mapped_column(server_default=false())
    touched: Mapped[bool] = mapped_column(server_default=false())

    conversation: Mapped[Conversation | None] = relationship(lazy="raise", viewonly=True, back_populates="runs")
    model_version: Mapped[ModelVersion | None] = relationship(lazy="raise", viewonly=True)
    blanks: Mapped[list[Blank]] = relationship(lazy="raise", viewonly=True, order_by="Blank.index")
    feedback: Mapped[list[Feedback]] = relationship(lazy="raise", viewonly=True, order_by="Feedback.created")


class Blank(Base):
    """One filled blank: the shown text, its tokens, and the alternatives as `[{"text": …, "logprob": …}, …]`."""

    __tablename__ = "blank"

    run_id: Mapped[str] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"), primary_key=True)
    index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str]
    text: Mapped[str]
    token_ids: Mapped[tuple[int, ...]] = mapped_column(TokenIds)
    logprobs: Mapped[tuple[float, ...]] = mapped_column(Logprobs)
    alternatives: Mapped[Any | None]


class Feedback(Base):
    """A visitor's opinion of a run: a thumb (-1 or 1, null when withdrawn) and a comment; one a visitor and run."""

    __tablename__ = "feedback"
    __table_args__ = (CheckConstraint("rating IN (-1, 1)", name="rating"),)

    run_id: Mapped[str] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"), primary_key=True)
    visitor: Mapped[str] = mapped_column(primary_key=True)
    rating: Mapped[int | None]
    comment: Mapped[str]
    created: Mapped[datetime]
    updated: Mapped[datetime]


class Share(Base):
    """What a visitor published under a link: `content` as it is shown, a copy and redacted, None once it is revoked or its
    conversation deleted. Whoever knows `token` may read it until `expires`."""

    __tablename__ = "share"
    __table_args__ = (Index(None, "visitor", "created"), Index(None, "conversation_id"))

    token: Mapped[str] = mapped_column(primary_key=True)
    conversation_id: Mapped[str | None] = mapped_column(ForeignKey("conversation.id"))
    visitor: Mapped[str]
    title: Mapped[str]
    content: Mapped[Any | None]
    created: Mapped[datetime]
    expires: Mapped[datetime | None]
    revoked: Mapped[datetime | None]


class ShareReport(Base):
    """Somebody who saw a shared page says that it shouldn't be there; one a visitor and page."""

    __tablename__ = "share_report"

    token: Mapped[str] = mapped_column(ForeignKey("share.token", ondelete="CASCADE"), primary_key=True)
    visitor: Mapped[str] = mapped_column(primary_key=True)
    reason: Mapped[str]
    created: Mapped[datetime]


class Vote(Base):
    """Which of two answers to one prompt a visitor liked better; `blind` says that the settings were hidden until then."""

    __tablename__ = "vote"
    __table_args__ = (CheckConstraint(one_of("choice", CHOICES), name="choice"), Index(None, "second_run_id"))

    first_run_id: Mapped[str] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"), primary_key=True)
    second_run_id: Mapped[str] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"), primary_key=True)
    visitor: Mapped[str] = mapped_column(primary_key=True)
    choice: Mapped[str]
    blind: Mapped[bool]
    created: Mapped[datetime]
    updated: Mapped[datetime]
