"""Where an output comes from, and what became of it: run -> weights -> dataset -> source runs and reviewers, and the way back.

    await record.run_lineage("run id")            # its model version with all ancestors; the datasets and models that contain it
    await record.version_lineage(7)               # ancestors, what was made from it, how much it wrote
    await record.dataset_sources("dataset id")    # a page of the runs that it was made from, with reviewers

Whatever can be long comes a page at a time or is cut at SHOWN with a count, so that a dataset of a hundred thousand rows costs as
much as one of ten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from storage.conversations import Conversations, Page
from storage.errors import StorageError
from storage.models import ModelVersion, Run
from storage.staff_tables import Staff
from storage.training_tables import Dataset, DatasetRow, TrainingRun

SHOWN = 100  # of anything in one answer
ANCESTORS = 100  # generations


@dataclass(frozen=True, slots=True)
class VersionStep:
    """A model version, the dataset and the training run that it came from (None for one that was not trained here), and how many
    of that dataset's rows are tombstones."""

    version: ModelVersion
    dataset: Dataset | None
    training_run: str | None
    removed_rows: int


@dataclass(frozen=True, slots=True)
class Containing:
    """A dataset that has rows of a run: how many in which part, how many of them are tombstones; who reviewed them."""

    dataset: Dataset
    train: int
    held_out: int
    removed: int
    reviewers: list[str]


@dataclass(frozen=True, slots=True)
class RunLineage:
    """`written_by`: the version that wrote the output, first, and its ancestors. `datasets`: those with rows of the run. `models`:
    versions that learnt from it, trained on these datasets or made from such a version."""

    run: str
    deleted: datetime | None
    written_by: list[VersionStep]
    datasets: list[Containing]
    models: list[ModelVersion]
    more_models: int


@dataclass(frozen=True, slots=True)
class VersionLineage:
    """`steps`: the version itself and its ancestors. `made_from_it`: its children. `runs`: how many outputs it wrote."""

    steps: list[VersionStep]
    made_from_it: list[ModelVersion]
    more_made: int
    runs: int


@dataclass(frozen=True, slots=True)
class Source:
    """A row of a dataset: its run, whether it is a tombstone, who reviewed it, which version wrote the run."""

    index: int
    part: str
    hash: str
    run: str | None
    removed: datetime | None
    reviewer: str | None
    model_version: int | None


@dataclass(frozen=True, slots=True)
class DatasetLineage:
    """`reviewers`: (name, rows) of who is answerable for the rows. `versions`: trained on it. `written_by`: (version, rows) of the
    versions that wrote its runs."""

    dataset: Dataset
    reviewers: list[tuple[str | None, int]]
    written_by: list[tuple[ModelVersion, int]]
    versions: list[ModelVersion]


class Lineage(Conversations):
    """The lineage of what is kept in `database`."""

    async def run_lineage(self, id: str) -> RunLineage:
        """Raises `StorageError("not_found")`."""

        async def work(session: AsyncSession) -> RunLineage:
            row = select(Run.id, Run.deleted, Run.model_version_id).where(Run.id == id)
            run = (await session.execute(row)).one_or_none()
            if run is None:
                raise StorageError("not_found", "There is no such run.")
            steps = [] if run.model_version_id is None else await _steps(session, run.model_version_id)
            datasets = await _containing(session, id)
            trained = [one.dataset.id for one in datasets if one.train]
            models, more = await _descendants(session, trained)
            return RunLineage(id, run.deleted, steps, datasets, models, more)

        return await self.database.read(work)

    async def version_lineage(self, id: int) -> VersionLineage:
        """Raises `StorageError("not_found")`."""

        async def work(session: AsyncSession) -> VersionLineage:
            steps = await _steps(session, id)
            if not steps:
                raise StorageError("not_found", "There is no such model version.")
            children = select(ModelVersion).where(ModelVersion.parent_id == id).order_by(ModelVersion.id)
            made = list(await session.scalars(children.limit(SHOWN)))
            every = select(func.count()).select_from(ModelVersion).where(ModelVersion.parent_id == id)
            count = await session.scalar(every) or 0
            runs = await session.scalar(select(func.count()).select_from(Run).where(Run.model_version_id == id)) or 0
            return VersionLineage(steps, made, count - len(made), runs)

        return await self.database.read(work)

    async def dataset_lineage(self, id: str) -> DatasetLineage:
        """Raises `StorageError("not_found")`."""

        async def work(session: AsyncSession) -> DatasetLineage:
            dataset = await session.get(Dataset, id)
            if dataset is None:
                raise StorageError("not_found", "There is no such dataset.")
            rows = DatasetRow.dataset_id == id
            by_reviewer = select(Staff.name, func.count()).select_from(DatasetRow).outerjoin(Staff).where(rows)
            reviewers = (await session.execute(by_reviewer.group_by(Staff.name).order_by(Staff.name))).tuples().all()
            by_version = select(Run.model_version_id, func.count()).join(DatasetRow, DatasetRow.run_id == Run.id)
            counted = await session.execute(by_version.where(rows).group_by(Run.model_version_id))
            counts = {version: count for version, count in counted.tuples() if version is not None}
            versions = select(ModelVersion).where(ModelVersion.id.in_(counts)).order_by(ModelVersion.id)
            written = [(version, counts[version.id]) for version in await session.scalars(versions.limit(SHOWN))]
            trained = select(ModelVersion).where(ModelVersion.dataset_id == id).order_by(ModelVersion.id).limit(SHOWN)
            return DatasetLineage(
                dataset, [(name, count) for name, count in reviewers], written, list(await session.scalars(trained))
            )

        return await self.database.read(work)

    async def dataset_sources(self, id: str, *, limit: int = 50, after: int = -1) -> Page[Source]:
        """Rows behind number `after`; `next` is the number of the last, as a string. An unknown dataset has none."""
        statement = (
            select(DatasetRow, Staff.name, Run.model_version_id)
            .outerjoin(Staff, Staff.id == DatasetRow.reviewer_id)
            .outerjoin(Run, Run.id == DatasetRow.run_id)
            .where(DatasetRow.dataset_id == id, DatasetRow.index > after)
            .order_by(DatasetRow.index)
            .limit(limit + 1)
        )

        async def work(session: AsyncSession) -> Page[Source]:
            found = (await session.execute(statement)).all()
            sources = [
                Source(row.index, row.part, row.hash, row.run_id, row.removed, reviewer, version)
                for row, reviewer, version in found[:limit]
            ]
            return Page(sources, str(sources[-1].index) if len(found) > limit else None)

        return await self.database.read(work)


async def _steps(session: AsyncSession, id: int) -> list[VersionStep]:
    """A version and its ancestors, each with where it came from; none for an unknown one."""
    line = select(ModelVersion.id, ModelVersion.parent_id).where(ModelVersion.id == id)
    ancestors = line.add_columns(func.coalesce(0, 0).label("depth")).cte("ancestors", recursive=True)
    further = select(ModelVersion.id, ModelVersion.parent_id, ancestors.c.depth + 1)
    further = further.join(ancestors, ModelVersion.id == ancestors.c.parent_id).where(ancestors.c.depth < ANCESTORS)
    ancestors = ancestors.union_all(further)
    statement = select(ModelVersion, Dataset).join(ancestors, ancestors.c.id == ModelVersion.id)
    statement = statement.outerjoin(Dataset, Dataset.id == ModelVersion.dataset_id).order_by(ancestors.c.depth)
    steps = []
    for version, dataset in (await session.execute(statement)).tuples().all():
        training = select(TrainingRun.id).where(TrainingRun.result_version_id == version.id)
        removed = 0
        if dataset is not None:
            gone = DatasetRow.dataset_id == dataset.id, DatasetRow.removed.is_not(None)
            removed = await session.scalar(select(func.count()).select_from(DatasetRow).where(*gone)) or 0
        run = await session.scalar(training.order_by(TrainingRun.created.desc()).limit(1))
        steps.append(VersionStep(version, dataset, run, removed))
    return steps


async def _containing(session: AsyncSession, run: str) -> list[Containing]:
    statement = select(DatasetRow.dataset_id, DatasetRow.part, DatasetRow.removed, Staff.name).outerjoin(Staff)
    rows = (await session.execute(statement.where(DatasetRow.run_id == run))).all()
    newest = select(Dataset).where(Dataset.id.in_({row.dataset_id for row in rows})).order_by(Dataset.created.desc())
    found = []
    for dataset in await session.scalars(newest.limit(SHOWN)):
        own = [row for row in rows if row.dataset_id == dataset.id]
        held_out = sum(row.part == "held_out" for row in own)
        removed = sum(row.removed is not None for row in own)
        reviewers = sorted({row.name for row in own if row.name})
        found.append(Containing(dataset, len(own) - held_out, held_out, removed, reviewers))
    return found


async def _descendants(session: AsyncSession, datasets: Sequence[str]) -> tuple[list[ModelVersion], int]:
    """The versions trained on these datasets with all that was made from them, the oldest first, and how many more there are."""
    family = select(ModelVersion.id).where(ModelVersion.dataset_id.in_(datasets)).cte("family", recursive=True)
    family = family.union(select(ModelVersion.id).join(family, ModelVersion.parent_id == family.c.id))
    wanted = ModelVersion.id.in_(select(family.c.id))
    models = list(await session.scalars(select(ModelVersion).where(wanted).order_by(ModelVersion.id).limit(SHOWN)))
    count = await session.scalar(select(func.count()).select_from(ModelVersion).where(wanted)) or 0
    return models, count - len(models)
