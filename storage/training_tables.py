"""The tables of what becomes of reviewed runs: frozen datasets, training runs, what is in service, evaluations."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from storage.models import Base, one_of

PARTS = ("train", "held_out")
TRAINING_KINDS = ("lora", "full")
TRAINING_STATES = ("queued", "running", "stopping", "stopped", "done", "failed")
EVALUATION_STATES = ("running", "stopped", "done", "failed")


class Dataset(Base):
    """A frozen selection of rows. `hash` is over the rows' hashes in their order and never changes; `filters` chose them."""

    __tablename__ = "dataset"
    __table_args__ = (UniqueConstraint("name", "version"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    version: Mapped[int]
    hash: Mapped[str]
    rows: Mapped[int]
    filters: Mapped[dict[str, Any]]
    parameters: Mapped[dict[str, Any]]
    created: Mapped[datetime]
    created_by: Mapped[str | None] = mapped_column(ForeignKey("staff.id"))


class DatasetRow(Base):
    """A row as the trainer reads it. When its run is deleted, it becomes a tombstone: no `content`, but its `hash` stays."""

    __tablename__ = "dataset_row"
    __table_args__ = (CheckConstraint(one_of("part", PARTS), name="part"), Index(None, "run_id"))

    dataset_id: Mapped[str] = mapped_column(ForeignKey("dataset.id", ondelete="CASCADE"), primary_key=True)
    index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    run_id: Mapped[str | None] = mapped_column(ForeignKey("run.id"))
    reviewer_id: Mapped[str | None] = mapped_column(ForeignKey("staff.id"))
    part: Mapped[str]
    hash: Mapped[str]
    content: Mapped[Any | None]
    removed: Mapped[datetime | None]


class TrainingRun(Base):
    """A run of the trainer, from its start by an administrator to its result. `process`: which process of this machine does it,
    `{"pid", "started"}`; `progress`: the trainer's last words; `folder`: where its state lies."""

    __tablename__ = "training_run"
    __table_args__ = (
        CheckConstraint(one_of("kind", TRAINING_KINDS), name="kind"),
        CheckConstraint(one_of("state", TRAINING_STATES), name="state"),
        Index(None, "created", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    dataset_id: Mapped[str] = mapped_column(ForeignKey("dataset.id"))
    base_version_id: Mapped[int] = mapped_column(ForeignKey("model_version.id"))
    result_version_id: Mapped[int | None] = mapped_column(ForeignKey("model_version.id"))
    kind: Mapped[str]
    state: Mapped[str]
    parameters: Mapped[dict[str, Any]]
    folder: Mapped[str]
    process: Mapped[Any | None]
    progress: Mapped[Any | None]
    error: Mapped[str | None]
    created: Mapped[datetime]
    created_by: Mapped[str | None] = mapped_column(ForeignKey("staff.id"))
    started: Mapped[datetime | None]
    finished: Mapped[datetime | None]


class Deployment(Base):
    """A model version in service, from `since` on; `until` is None for the one that serves now."""

    __tablename__ = "deployment"
    __table_args__ = (Index(None, "since", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    model_version_id: Mapped[int] = mapped_column(ForeignKey("model_version.id"))
    since: Mapped[datetime]
    until: Mapped[datetime | None]
    staff_id: Mapped[str | None] = mapped_column(ForeignKey("staff.id"))


class Evaluation(Base):
    """A model version measured, beside `other_version_id` if two are compared; `results` as its `name` says."""

    __tablename__ = "evaluation"
    __table_args__ = (
        CheckConstraint(one_of("state", EVALUATION_STATES), name="state"),
        Index(None, "model_version_id", "created"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    model_version_id: Mapped[int] = mapped_column(ForeignKey("model_version.id"))
    other_version_id: Mapped[int | None] = mapped_column(ForeignKey("model_version.id"))
    training_run_id: Mapped[str | None] = mapped_column(ForeignKey("training_run.id"))
    state: Mapped[str]
    parameters: Mapped[dict[str, Any]]
    results: Mapped[Any | None]
    created: Mapped[datetime]
    created_by: Mapped[str | None] = mapped_column(ForeignKey("staff.id"))
    finished: Mapped[datetime | None]
