"""What the filters of the review desk can ask for: which modes, languages, models, reviewers and tags there are, and how many of
each."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, literal, select
from sqlalchemy.ext.asyncio import AsyncSession

from storage.conversations import Conversations
from storage.models import ModelVersion
from storage.queue import COUNTED, PAGE_LIMIT, RUN, queued
from storage.review_tables import Review, ReviewTag
from storage.run_filter import RunFilter
from storage.staff_tables import Staff

FACETS_AMONG = 50_000  # newest runs


class Facets(Conversations):
    """Of the runs in `database`."""

    async def facets(self) -> dict[str, list[dict[str, Any]]]:
        """What filters can ask for, with counts among the newest 50,000 runs (`capped` where there are more than these): modes,
        languages, statuses, clients, models; and reviewers and tags, with counts of all reviews up to 10,000."""
        dialect = self.database.dialect
        columns = {"modes": RUN.c.mode, "languages": RUN.c.language, "statuses": RUN.c.status, "clients": RUN.c.client}
        newest = queued(dialect, RunFilter(), *columns.values(), RUN.c.model_version_id).order_by(RUN.c.number.desc())
        newest = newest.limit(FACETS_AMONG).subquery()
        grouped = select(*newest.c, func.count()).group_by(*newest.c)

        async def work(session: AsyncSession) -> dict[str, list[dict[str, Any]]]:
            counted: dict[str, dict[Any, int]] = {name: {} for name in (*columns, "models")}
            total = 0
            for *values, number in (await session.execute(grouped)).all():
                total += number
                for name, value in zip(counted, values, strict=True):
                    counted[name][value] = counted[name].get(value, 0) + number
            capped = total >= FACETS_AMONG
            found = {
                name: [
                    {"value": value, "count": number, "capped": capped}
                    for value, number in sorted(counted[name].items(), key=lambda pair: -pair[1])
                    if value is not None
                ]
                for name in columns
            }
            versions = (await session.scalars(select(ModelVersion).order_by(ModelVersion.id.desc()))).all()
            found["models"] = [
                {
                    "value": version.id,
                    "name": version.name,
                    "weights_hash": version.weights_hash,
                    "count": counted["models"].get(version.id, 0),
                    "capped": capped,
                }
                for version in versions
            ]
            found["reviewers"] = await _reviewers(session)
            found["tags"] = await _tags(session, "", PAGE_LIMIT)
            return found

        return await self.database.read(work)

    async def tags(self, begin: str = "", limit: int = 50) -> list[dict[str, Any]]:
        """The tags that are used and begin like this, the most used first: `{"value", "count", "capped"}`."""

        async def work(session: AsyncSession) -> list[dict[str, Any]]:
            return await _tags(session, begin, limit)

        return await self.database.read(work)


async def _reviewers(session: AsyncSession) -> list[dict[str, Any]]:
    found = []
    for id, name in (await session.execute(select(Staff.id, Staff.name).order_by(Staff.name))).all():
        some = select(literal(1)).where(Review.reviewer_id == id).limit(COUNTED + 1).subquery()
        number = await session.scalar(select(func.count()).select_from(some)) or 0
        if number:
            found.append({"value": id, "name": name, "count": min(number, COUNTED), "capped": number > COUNTED})
    return found


async def _tags(session: AsyncSession, begin: str, limit: int) -> list[dict[str, Any]]:
    number = func.count().label("number")
    statement = select(ReviewTag.tag, number).group_by(ReviewTag.tag).order_by(number.desc(), ReviewTag.tag)
    if begin:
        statement = statement.where(ReviewTag.tag.startswith(begin, autoescape=True))
    rows = (await session.execute(statement.limit(limit))).all()
    return [{"value": tag, "count": min(count, COUNTED), "capped": count > COUNTED} for tag, count in rows]
