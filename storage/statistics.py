"""Numbers over time for whoever runs a server: runs, tokens, latencies, ratings, by mode or by model version.

    query = StatisticsQuery.parse({"bucket": "day", "by": "mode"}, now)
    found = await record.statistics(query)

A run counts at the moment of its acceptance, an opinion (thumb, stars, vote) when it was last given; all in UTC. Erased and
unlogged runs count like all others, staff's trials at the review desk don't. One index holds all that is read of a run, so that
no row with its long texts is looked at; percentiles come from counts in bins (`storage.histogram`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, case, func, literal_column, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from storage.conversations import Conversations
from storage.errors import StorageError
from storage.histogram import bin_of, percentile
from storage.models import Feedback, ModelVersion, Run, Vote
from storage.review_tables import Review
from storage.run_filter import STAFF_CLIENT

BUCKETS = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(weeks=1)}
DEFAULT_BUCKETS = {"hour": 48, "day": 30, "week": 26}
MOST_BUCKETS = 400
GROUPS = ("all", "mode", "model")
MOST_SERIES = 8  # those with the most runs; the rest counts as one, OTHERS
OTHERS = "others"
LATENCIES = {"queue": "queue_milliseconds", "first_token": "first_token_milliseconds", "total": "total_milliseconds"}
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
COUNTS = (
    "runs",
    "failed",
    "cancelled",
    "prompt_tokens",
    "new_tokens",
    "thumbs_up",
    "thumbs_down",
    "starred",
    "stars",
    "compared",
    "wins",
)
INDEX = "ix_run_statistics"


@dataclass(frozen=True, slots=True)
class StatisticsQuery:
    """From the beginning of the bucket of `start` to `end`; `by` makes a series of each mode or model version."""

    start: datetime
    end: datetime
    bucket: str = "day"
    by: str = "all"
    mode: str | None = None
    model_version: int | None = None

    @classmethod
    def parse(cls, given: Mapping[str, str], now: datetime) -> StatisticsQuery:
        """From a query string: from, to, bucket, by, mode, model_version. Raises `StorageError("bad_request")` with the field."""
        if unknown := set(given) - {"from", "to", "bucket", "by", "mode", "model_version"}:
            name = min(unknown)
            raise StorageError("bad_request", f"There is no field {name[:100]}.", field=name[:100])
        bucket, by = given.get("bucket") or "day", given.get("by") or "all"
        for name, value, known in (("bucket", bucket, tuple(BUCKETS)), ("by", by, GROUPS)):
            if value not in known:
                raise StorageError("bad_request", f"{name} must be one of {', '.join(known)}.", field=name)
        version = given.get("model_version")
        if version and not (version.isascii() and version.isdigit() and len(version) < 10):
            raise StorageError("bad_request", "model_version must be a whole number.", field="model_version")
        end = _moment("to", given["to"]) if given.get("to") else now
        step = BUCKETS[bucket]
        start = _moment("from", given["from"]) if given.get("from") else end - (DEFAULT_BUCKETS[bucket] - 1) * step
        query = cls(floor(start, bucket), end, bucket, by, given.get("mode") or None, int(version) if version else None)
        if start > end:
            raise StorageError("bad_request", "from must come before to.", field="from")
        if len(query.times()) > MOST_BUCKETS:
            message = f"That would be more than {MOST_BUCKETS} points: take a shorter time or a longer bucket."
            raise StorageError("bad_request", message, field="bucket", limit=MOST_BUCKETS)
        return query

    def times(self) -> list[datetime]:
        """When each bucket begins; one more than may be at the most."""
        found = [self.start]
        while found[-1] + BUCKETS[self.bucket] <= self.end and len(found) <= MOST_BUCKETS:
            found.append(found[-1] + BUCKETS[self.bucket])
        return found


@dataclass(slots=True)
class _Cell:
    """What was counted in one bucket of one series."""

    counts: Counter[str] = field(default_factory=Counter)
    latencies: dict[str, Counter[int]] = field(default_factory=lambda: {name: Counter() for name in LATENCIES})

    def add(self, other: _Cell) -> None:
        self.counts.update(other.counts)
        for name, bins in other.latencies.items():
            self.latencies[name].update(bins)

    def numbers(self) -> dict[str, Any]:
        """All counts, the mean of the stars, and the percentiles in milliseconds (None of nothing)."""
        found: dict[str, Any] = {name: self.counts[name] for name in COUNTS}
        found["stars"] = self.counts["stars"] / self.counts["starred"] if self.counts["starred"] else None
        for name, bins in self.latencies.items():
            found |= {f"{name}_{at}": percentile(bins, share) for at, share in SHARES.items()}
        return found


class Statistics(Conversations):
    """The numbers of `database`."""

    async def statistics(self, query: StatisticsQuery) -> dict[str, Any]:
        """JSON-ready: {"bucket", "by", "times": [moment …], "until", "series": [{"key", "name", "whole", "points"} …]}, the series
        with the most runs first. `whole` has each number for the whole time, `points` a list of its values, one for each time. The
        numbers are `COUNTS` and, in milliseconds, queue_p50 … total_p99; None where there is nothing. Raises `StorageError`."""
        dialect = self.database.dialect

        async def work(session: AsyncSession) -> tuple[dict[tuple[Any, datetime], _Cell], dict[int, str]]:
            cells: defaultdict[tuple[Any, datetime], _Cell] = defaultdict(_Cell)
            # Weeks are added up from days.
            unit = "hour" if query.bucket == "hour" else "day"

            async def rows(statement: Select[Any]) -> list[Any]:
                return list((await session.execute(statement)).all())

            def cell(when: Any, key: Any) -> _Cell:
                return cells[key, floor(_read(when), query.bucket)]

            for when, key, status, runs, prompt, new in await rows(_runs(query, unit, dialect)):
                counts = cell(when, key).counts
                counts.update({"runs": runs, "prompt_tokens": prompt or 0, "new_tokens": new or 0})
                if status in ("error", "interrupted"):
                    counts["failed"] += runs
                elif status == "cancelled":
                    counts["cancelled"] += runs
            for name, column in LATENCIES.items():
                for when, key, bin, count in await rows(_latencies(query, unit, dialect, getattr(Run, column))):
                    cell(when, key).latencies[name][bin] += count
            for when, key, up, down in await rows(_thumbs(query, unit, dialect)):
                cell(when, key).counts.update({"thumbs_up": up, "thumbs_down": down})
            for when, key, starred, stars in await rows(_stars(query, unit, dialect)):
                cell(when, key).counts.update({"starred": starred, "stars": stars})
            for place in ("first", "second"):
                for when, key, compared, wins in await rows(_votes(query, unit, dialect, place)):
                    cell(when, key).counts.update({"compared": compared, "wins": wins})
            names: dict[int, str] = {}
            if query.by == "model":
                versions = await rows(select(ModelVersion.id, ModelVersion.name, ModelVersion.weights_hash))
                names = {id: f"{name} {weights[:8]}" for id, name, weights in versions}
            return dict(cells), names

        cells, names = await self.database.read(work)
        return _arranged(query, cells, names)


def floor(moment: datetime, bucket: str) -> datetime:
    """When the bucket of a moment begins; weeks begin on Monday."""
    hour = moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    if bucket == "hour":
        return hour
    day = hour.replace(hour=0)
    return day if bucket == "day" else day - timedelta(days=day.weekday())


def _arranged(
    query: StatisticsQuery, cells: dict[tuple[Any, datetime], _Cell], names: dict[int, str]
) -> dict[str, Any]:
    times = query.times()
    wholes: defaultdict[Any, _Cell] = defaultdict(_Cell)
    for (key, _), cell in cells.items():
        wholes[key].add(cell)
    order = sorted(wholes, key=lambda key: (-wholes[key].counts["runs"], str(key)))
    merged = {key: key if place < MOST_SERIES else OTHERS for place, key in enumerate(order)}
    points: defaultdict[Any, dict[datetime, _Cell]] = defaultdict(lambda: {time: _Cell() for time in times})
    totals: defaultdict[Any, _Cell] = defaultdict(_Cell)
    for (key, time), cell in cells.items():
        totals[merged[key]].add(cell)
        points[merged[key]][time].add(cell)
    series = []
    for key in dict.fromkeys(merged[key] for key in order):
        numbers = [points[key][time].numbers() for time in times]
        series.append(
            {
                "key": key,
                "name": names.get(key) if isinstance(key, int) else key,
                "whole": totals[key].numbers(),
                "points": {name: [one[name] for one in numbers] for name in numbers[0]},
            }
        )
    return {
        "bucket": query.bucket,
        "by": query.by,
        "times": [time.isoformat() for time in times],
        "until": query.end.isoformat(),
        "series": series,
    }


# What is asked of the database: (bucket, series, ...) a row


def _unit(moment: Any, unit: str, dialect: str) -> ColumnElement[Any]:
    if dialect == "sqlite":  # moments are texts there, 2024-02-29 23:59:58.123456
        return func.substr(moment, 1, 13 if unit == "hour" else 10)
    return func.date_trunc(unit, func.timezone("UTC", moment))


def _read(when: Any) -> datetime:
    """A bucket as the database gives it."""
    if isinstance(when, str):
        when = datetime.fromisoformat(when + ":00" if len(when) == 13 else when)
    return when.replace(tzinfo=UTC)


def _meant(query: StatisticsQuery, run: Any, moment: Any) -> list[ColumnElement[bool]]:
    conditions = [moment >= query.start, moment <= query.end, run.client != STAFF_CLIENT]
    if query.mode is not None:
        conditions.append(run.mode == query.mode)
    if query.model_version is not None:
        conditions.append(run.model_version_id == query.model_version)
    return conditions


def _grouped(
    query: StatisticsQuery, unit: str, dialect: str, run: Any, moment: Any, counted: list[Any], extra: Any = None
) -> Select[Any]:
    """Buckets of `moment`, series, `extra` if there is one, and what is counted of each."""
    key = {"all": literal_column("'all'"), "mode": run.mode, "model": run.model_version_id}[query.by]
    groups = [_unit(moment, unit, dialect), key] + ([] if extra is None else [extra])
    statement = select(*groups, *counted).where(*_meant(query, run, moment))
    # By their places: PostgreSQL takes an expression with parameters, written twice, for two.
    return statement.group_by(*(literal_column(str(place)) for place in range(1, len(groups) + 1)))


def _runs(query: StatisticsQuery, unit: str, dialect: str) -> Select[Any]:
    counted = [func.count(), func.sum(Run.prompt_tokens), func.sum(Run.new_tokens)]
    statement = _grouped(query, unit, dialect, Run, Run.created, counted, Run.status)
    return statement.with_hint(Run, f"INDEXED BY {INDEX}", "sqlite")


def _latencies(query: StatisticsQuery, unit: str, dialect: str, column: Any) -> Select[Any]:
    statement = _grouped(query, unit, dialect, Run, Run.created, [func.count()], bin_of(column, dialect))
    # How long a run takes that somebody stopped, or that failed, says nothing of the server's pace.
    statement = statement.where(column.is_not(None), Run.status == "done")
    return statement.with_hint(Run, f"INDEXED BY {INDEX}", "sqlite")


def _when(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.sum(case((condition, 1), else_=0))


def _thumbs(query: StatisticsQuery, unit: str, dialect: str) -> Select[Any]:
    counted = [_when(Feedback.rating == 1), _when(Feedback.rating == -1)]
    statement = _grouped(query, unit, dialect, Run, Feedback.updated, counted)
    return statement.join_from(Feedback, Run, Run.id == Feedback.run_id).where(Feedback.rating.is_not(None))


def _stars(query: StatisticsQuery, unit: str, dialect: str) -> Select[Any]:
    statement = _grouped(query, unit, dialect, Run, Review.updated, [func.count(), func.sum(Review.rating)])
    return statement.join_from(Review, Run, Run.id == Review.run_id).where(Review.rating.is_not(None))


def _votes(query: StatisticsQuery, unit: str, dialect: str, place: str) -> Select[Any]:
    """How often runs stood at this place of a comparison, and how often they were the better ones."""
    run = aliased(Run)
    counted = [func.count(), _when(Vote.choice == place)]
    statement = _grouped(query, unit, dialect, run, Vote.updated, counted)
    return statement.join_from(Vote, run, run.id == getattr(Vote, f"{place}_run_id"))


def _moment(name: str, value: str) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        message = f"{name} must be a day or a moment, as 2026-01-31 or 2026-01-31T12:00:00Z."
        raise StorageError("bad_request", message, field=name) from error
