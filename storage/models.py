"""The tables. A visitor is an opaque string in a column, not a row: nothing is kept of a person but what they typed.

Rows handed out by `storage.record` are detached: their columns can be read at leisure, a relationship only where the
query says that it loads it (anything else raises at once and never asks the database behind one's back).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, Float, ForeignKey, Index, MetaData, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from storage.columns import CleanJSON, CleanText, Logprobs, Moment, Seed, TokenIds

CONVERSATION_KINDS = ("chat", "blanks", "complete", "api")
UNFINISHED = ("accepted", "running")
FINAL = ("done", "cancelled", "error", "interrupted")


def _one_of(column: str, values: tuple[str, ...]) -> str:
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
    """One set of weights, identified by the hash of its content, whatever folder or name it was loaded under."""

    __tablename__ = "model_version"

    id: Mapped[int] = mapped_column(primary_key=True)
    weights_hash: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    config: Mapped[dict[str, Any]]
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("model_version.id"))
    created: Mapped[datetime]


class Conversation(Base):
    """A visitor's thread of runs. A deleted one keeps its row, without a title, and its runs without their texts."""

    __tablename__ = "conversation"
    __table_args__ = (
        CheckConstraint(_one_of("kind", CONVERSATION_KINDS), name="kind"),
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
    """

    __tablename__ = "run"
    __table_args__ = (
        CheckConstraint(_one_of("status", UNFINISHED + FINAL), name="status"),
        Index(None, "conversation_id", "created"),
        Index(None, "visitor", "created"),
        Index(None, "created", "id"),
        Index(None, "model_version_id", "created"),
        Index(
            "ix_run_unfinished",
            "status",
            sqlite_where=text(_one_of("status", UNFINISHED)),
            postgresql_where=text(_one_of("status", UNFINISHED)),
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
