"""What becomes of datasets: training runs, the model versions that they make, and what is in service.

A training run is `queued` while it is prepared, `running` while its process works, `stopping` when it was told to save and leave,
then `stopped` (it can go on), `failed` (it can go on from its last state) or `done`, when it has a result. Only one may be
unfinished. What a process is and whether it lives is the caller's business; here is what survives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import exists, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from storage.conversations import Conversations
from storage.errors import StorageError
from storage.identifier import new_id
from storage.models import ModelVersion, Run
from storage.staff_tables import Staff
from storage.training_tables import Dataset, DatasetRow, Deployment, Evaluation, TrainingRun

ACTIVE = ("queued", "running", "stopping")
COMPARISON = "comparison"  # name of the evaluations that put two versions beside each other
MOST_COUNTED = 10_000
LOCK = 7_390_114  # of PostgreSQL: whoever looks for what is under way before adding to it


@dataclass(frozen=True, slots=True)
class TrainingRunEntry:
    """A training run with the names of what it refers to."""

    run: TrainingRun
    dataset: str  # "corrections 3"
    by: str | None


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """A model version: how many runs of visitors it wrote (up to MOST_COUNTED), what it was trained on, its last comparison."""

    version: ModelVersion
    dataset: str | None
    runs: int
    training_run: str | None
    evaluation: Evaluation | None


@dataclass(frozen=True, slots=True)
class DeploymentEntry:
    """A time in service, with the names of the version and of who put it there (None: the server itself)."""

    deployment: Deployment
    version: str
    by: str | None


class TrainingRuns(Conversations):
    """The training runs, model versions and deployments kept in `database`; `clock` gives moments with a time zone."""

    # Training runs

    async def create_training_run(
        self, dataset: str, base_version: int, kind: str, parameters: Mapping[str, Any], folder: str, *, by: str | None
    ) -> TrainingRun:
        """A queued run; its folder is `folder` and its id below. Raises `StorageError("conflict")` while another is unfinished,
        `not_found` for a dataset or version that isn't there."""
        id = new_id(9)
        row = TrainingRun(
            id=id,
            dataset_id=dataset,
            base_version_id=base_version,
            kind=kind,
            state="queued",
            parameters=dict(parameters),
            folder=f"{folder}/{id}",
            created=self.clock(),
            created_by=by,
        )

        async def work(session: AsyncSession) -> TrainingRun:
            await self._only_one(session)
            session.add(row)
            await session.flush()
            return row

        return await self.database.write(work)

    async def resume_training_run(self, id: str) -> TrainingRun:
        """Make a stopped or failed run queued again. Raises `StorageError`: `not_found`; `conflict` in another state, or while
        another run is unfinished."""

        async def work(session: AsyncSession) -> TrainingRun:
            run = await _training_run(session, id)
            if run.state not in ("stopped", "failed"):
                raise StorageError("conflict", "Only a training run that was stopped or has failed can go on.")
            await self._only_one(session)
            run.state, run.error, run.finished = "queued", None, None
            await session.flush()
            return run

        return await self.database.write(work)

    async def _only_one(self, session: AsyncSession) -> None:
        if self.database.dialect == "postgresql":
            await session.execute(select(func.pg_advisory_xact_lock(LOCK)))
        if await session.scalar(select(TrainingRun.id).where(TrainingRun.state.in_(ACTIVE)).limit(1)):
            raise StorageError("conflict", "A training run is under way already. Wait for its end, or stop it.")

    async def change_training_run(self, id: str, expected: Sequence[str], **values: Any) -> bool:
        """Set columns of a run if its state is one of `expected`; whether it was."""
        statement = update(TrainingRun).where(TrainingRun.id == id, TrainingRun.state.in_(expected)).values(**values)

        async def work(session: AsyncSession) -> bool:
            return (await session.execute(statement)).rowcount == 1

        return await self.database.write(work)

    async def get_training_run(self, id: str) -> TrainingRunEntry:
        """Raises `StorageError("not_found")`."""
        found = await self._training_runs(TrainingRun.id == id)
        if not found:
            raise _no_training_run()
        return found[0]

    async def list_training_runs(self, limit: int = 50) -> list[TrainingRunEntry]:
        """The newest first."""
        return await self._training_runs(limit=limit)

    async def active_training_runs(self) -> list[TrainingRun]:
        """Those that are not finished: at most one, but for what another program did to the table."""
        return [entry.run for entry in await self._training_runs(TrainingRun.state.in_(ACTIVE))]

    async def _training_runs(self, *conditions: Any, limit: int | None = None) -> list[TrainingRunEntry]:
        statement = (
            select(TrainingRun, Dataset.name, Dataset.version, Staff.name)
            .join(Dataset, Dataset.id == TrainingRun.dataset_id)
            .outerjoin(Staff, Staff.id == TrainingRun.created_by)
            .where(*conditions)
            .order_by(TrainingRun.created.desc(), TrainingRun.id.desc())
            .limit(limit)
        )

        async def work(session: AsyncSession) -> list[TrainingRunEntry]:
            rows = (await session.execute(statement)).tuples()
            return [TrainingRunEntry(run, f"{name} {version}", by) for run, name, version, by in rows]

        return await self.database.read(work)

    async def finish_training_run(
        self, id: str, *, weights_hash: str, name: str, config: Mapping[str, Any], model_folder: str
    ) -> int:
        """End a run with its result, a new model version; its number. The version is tainted from the start if its parent is, or
        if rows of its dataset were removed since the run was begun. Raises `StorageError("not_found")`."""
        now = self.clock()

        async def work(session: AsyncSession) -> int:
            run = await _training_run(session, id)
            parent = await session.get_one(ModelVersion, run.base_version_id)
            removed = select(exists().where(DatasetRow.dataset_id == run.dataset_id, DatasetRow.removed >= run.created))
            version = await session.scalar(select(ModelVersion).where(ModelVersion.weights_hash == weights_hash))
            if version is None:
                tainted = now if parent.tainted or await session.scalar(removed) else None
                version = ModelVersion(
                    weights_hash=weights_hash,
                    name=name,
                    config=dict(config),
                    parent_id=parent.id,
                    dataset_id=run.dataset_id,
                    folder=model_folder,
                    created=now,
                    tainted=tainted,
                )
                session.add(version)
                await session.flush()
            run.state, run.result_version_id, run.finished, run.process = "done", version.id, now, None
            return version.id

        return await self.database.write(work)

    # Model versions

    async def get_version(self, id: int) -> ModelVersion:
        """Raises `StorageError("not_found")`."""

        async def work(session: AsyncSession) -> ModelVersion:
            return await _version(session, id)

        return await self.database.read(work)

    async def ancestors(self, id: int) -> list[ModelVersion]:
        """A version, its parent, and so on to the one that was not trained here. Raises `StorageError("not_found")`."""

        async def work(session: AsyncSession) -> list[ModelVersion]:
            found = [await _version(session, id)]
            while (parent := found[-1].parent_id) is not None and all(parent != one.id for one in found):
                found.append(await _version(session, parent))
            return found

        return await self.database.read(work)

    async def list_versions(self) -> list[VersionEntry]:
        """All model versions, the newest first."""
        trained = (
            select(TrainingRun.id).where(TrainingRun.result_version_id == ModelVersion.id).limit(1).scalar_subquery()
        )
        statement = (
            select(ModelVersion, Dataset.name, Dataset.version, trained)
            .outerjoin(Dataset, Dataset.id == ModelVersion.dataset_id)
            .order_by(ModelVersion.id.desc())
        )

        async def work(session: AsyncSession) -> list[VersionEntry]:
            compared = select(Evaluation).where(Evaluation.name == COMPARISON)
            last = {
                each.model_version_id: each
                for each in await session.scalars(compared.order_by(Evaluation.created, Evaluation.id))
            }
            found = []
            for version, name, number, run in (await session.execute(statement)).tuples().all():
                written = select(Run.id).where(Run.model_version_id == version.id).limit(MOST_COUNTED).subquery()
                count = await session.scalar(select(func.count()).select_from(written)) or 0
                found.append(VersionEntry(version, name and f"{name} {number}", count, run, last.get(version.id)))
            return found

        return await self.database.read(work)

    # In service

    async def deploy(self, version: int, *, by: str | None) -> Deployment:
        """Note that a version serves from now on, instead of the one before. Raises `StorageError("not_found")`."""
        now = self.clock()

        async def work(session: AsyncSession) -> Deployment:
            if self.database.dialect == "postgresql":
                await session.execute(select(func.pg_advisory_xact_lock(LOCK)))
            await _version(session, version)
            await session.execute(update(Deployment).where(Deployment.until.is_(None)).values(until=now))
            row = Deployment(model_version_id=version, since=now, staff_id=by)
            session.add(row)
            await session.flush()
            return row

        return await self.database.write(work)

    async def deployed(self) -> ModelVersion | None:
        """The version that an administrator put into service last; None if there never was one."""
        statement = select(ModelVersion).join(Deployment, Deployment.model_version_id == ModelVersion.id)
        statement = statement.where(Deployment.until.is_(None)).order_by(Deployment.id.desc()).limit(1)

        async def work(session: AsyncSession) -> ModelVersion | None:
            return await session.scalar(statement)

        return await self.database.read(work)

    async def list_deployments(self, limit: int = 20) -> list[DeploymentEntry]:
        """The newest first."""
        who = aliased(Staff)
        statement = (
            select(Deployment, ModelVersion.name, who.name)
            .join(ModelVersion, ModelVersion.id == Deployment.model_version_id)
            .outerjoin(who, who.id == Deployment.staff_id)
            .order_by(Deployment.id.desc())
            .limit(limit)
        )

        async def work(session: AsyncSession) -> list[DeploymentEntry]:
            return [DeploymentEntry(*row) for row in (await session.execute(statement)).tuples()]

        return await self.database.read(work)


async def _training_run(session: AsyncSession, id: str) -> TrainingRun:
    found = await session.scalar(select(TrainingRun).where(TrainingRun.id == id).with_for_update())
    if found is None:
        raise _no_training_run()
    return found


async def _version(session: AsyncSession, id: int) -> ModelVersion:
    found = await session.get(ModelVersion, id)
    if found is None:
        raise StorageError("not_found", "There is no such model version.")
    return found


def _no_training_run() -> StorageError:
    return StorageError("not_found", "There is no such training run.")
