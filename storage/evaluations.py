"""Evaluations: model versions that are or were measured, on benchmarks or beside each other, and who began it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from storage.conversations import Conversations
from storage.errors import StorageError
from storage.identifier import new_id
from storage.models import ModelVersion
from storage.staff_tables import Staff
from storage.training_runs import LOCK
from storage.training_tables import Evaluation


@dataclass(frozen=True, slots=True)
class EvaluationEntry:
    """An evaluation with the names of its model version and of who began it (None: the server itself)."""

    evaluation: Evaluation
    version: str
    by: str | None


class Evaluations(Conversations):
    """The evaluations kept in `database`; `clock` gives moments with a time zone."""

    async def create_evaluation(
        self,
        name: str,
        version: int,
        *,
        other: int | None,
        training_run: str | None,
        parameters: Mapping[str, Any],
        by: str | None,
    ) -> Evaluation:
        """One that is running. Raises `StorageError("conflict")` while another of this name and version is."""
        row = Evaluation(
            id=new_id(9),
            name=name,
            model_version_id=version,
            other_version_id=other,
            training_run_id=training_run,
            state="running",
            parameters=dict(parameters),
            created=self.clock(),
            created_by=by,
        )

        async def work(session: AsyncSession) -> Evaluation:
            if self.database.dialect == "postgresql":
                await session.execute(select(func.pg_advisory_xact_lock(LOCK)))
            same = Evaluation.name == name, Evaluation.model_version_id == version, Evaluation.state == "running"
            if await session.scalar(select(Evaluation.id).where(*same).limit(1)):
                raise StorageError("conflict", "This version is being measured already.")
            session.add(row)
            await session.flush()
            return row

        return await self.database.write(work)

    async def change_evaluation(self, id: str, **values: Any) -> bool:
        """Set columns of an evaluation that is running; whether it was."""
        statement = update(Evaluation).where(Evaluation.id == id, Evaluation.state == "running").values(**values)

        async def work(session: AsyncSession) -> bool:
            return (await session.execute(statement)).rowcount == 1

        return await self.database.write(work)

    async def running_evaluations(self, name: str) -> list[Evaluation]:
        """Those of this name that are not finished."""
        statement = select(Evaluation).where(Evaluation.name == name, Evaluation.state == "running")

        async def work(session: AsyncSession) -> list[Evaluation]:
            return list(await session.scalars(statement))

        return await self.database.read(work)

    async def last_evaluation(self, name: str, version: int) -> Evaluation | None:
        """The newest of this name of a version, in whatever state."""
        statement = select(Evaluation).where(Evaluation.name == name, Evaluation.model_version_id == version)
        statement = statement.order_by(Evaluation.created.desc(), Evaluation.id.desc()).limit(1)

        async def work(session: AsyncSession) -> Evaluation | None:
            return await session.scalar(statement)

        return await self.database.read(work)

    async def list_evaluations(self, name: str, limit: int = 200) -> list[EvaluationEntry]:
        """Those of this name, the newest first."""
        statement = (
            select(Evaluation, ModelVersion.name, Staff.name)
            .join(ModelVersion, ModelVersion.id == Evaluation.model_version_id)
            .outerjoin(Staff, Staff.id == Evaluation.created_by)
            .where(Evaluation.name == name)
            .order_by(Evaluation.created.desc(), Evaluation.id.desc())
            .limit(limit)
        )

        async def work(session: AsyncSession) -> list[EvaluationEntry]:
            return [EvaluationEntry(*row) for row in (await session.execute(statement)).tuples()]

        return await self.database.read(work)

    async def get_evaluation(self, name: str, id: str) -> Evaluation:
        """Raises `StorageError("not_found")`."""
        statement = select(Evaluation).where(Evaluation.id == id, Evaluation.name == name)

        async def work(session: AsyncSession) -> Evaluation:
            found = await session.scalar(statement)
            if found is None:
                raise StorageError("not_found", "There is no such evaluation.")
            return found

        return await self.database.read(work)
