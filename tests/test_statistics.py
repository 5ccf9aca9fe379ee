"""storage.statistics: counts, percentiles and ratings in their buckets and series; on SQLite and PostgreSQL."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import literal, select, text
from sqlalchemy.types import Float

from storage import Record, StorageError
from storage.histogram import LAST, bin_of, edges, percentile
from storage.review_tables import Review
from storage.run_filter import STAFF_CLIENT
from storage.statistics import MOST_BUCKETS, OTHERS, StatisticsQuery, floor
from tests import databases
from tests.databases import accept
from tests.test_erasure import add

# The fixtures of this file, each on SQLite and on PostgreSQL.
address, record = databases.address, databases.record

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
MONDAY = datetime(2024, 3, 4, tzinfo=UTC)


async def run(record: Record, id: str, at: datetime, *, status: str = "done", **values: Any) -> None:
    accepted = {name: values.pop(name) for name in ("mode", "model_version", "client", "visitor") if name in values}
    record.clock.now = at
    await accept(record, id, **accepted)
    await record.finalise_run(id, status, output="x", **values)


async def ask(record: Record, **given: str) -> dict[str, Any]:
    return await record.statistics(StatisticsQuery.parse(given, record.clock()))


def of(found: dict[str, Any], key: Any, name: str) -> list[Any]:
    (series,) = [one for one in found["series"] if one["key"] == key]
    return series["points"][name]


async def test_every_value_lies_in_its_bin(record: Record):
    taken = [0, 0.4, 1, 42.7, 99.9, 100, 101, 999, 1000, 4321, 77_777, 999_999, 5_000_000]
    bins = [bin_of(literal(float(value), Float(53)), record.database.dialect) for value in taken]

    async def work(session) -> list[int]:
        return list((await session.execute(select(*bins))).one())

    for value, bin in zip(taken, await record.database.read(work), strict=True):
        low, high = edges(bin)
        assert low <= value < high or bin == LAST and value >= low
        assert high - low <= max(1, 0.05 * low)


def test_percentiles_are_near_the_true_ones():
    draw = random.Random(5)
    taken = sorted(draw.lognormvariate(6, 1.5) for _ in range(20_000))
    counts: dict[int, int] = {}
    bins = range(LAST + 1)
    at = 0
    for one in taken:
        while one >= edges(bins[at])[1]:
            at += 1
        counts[at] = counts.get(at, 0) + 1
    for share in (0.5, 0.9, 0.99):
        true = taken[int(share * len(taken))]
        assert percentile(counts, share) == pytest.approx(true, rel=0.03)
    assert percentile({}, 0.5) is None and percentile({3: 1}, 1.0) == 4.0


async def test_counts_stand_in_their_buckets(record: Record):
    one = await record.ensure_model_version("aaaaaaaaaaaa", "one", {})
    two = await record.ensure_model_version("bbbbbbbbbbbb", "two", {})
    chat = {"mode": "chat", "model_version": one, "prompt_tokens": 10, "new_tokens": 5}
    for hour in range(10):
        latency = {
            "queue_milliseconds": 1.0,
            "first_token_milliseconds": 50.0,
            "total_milliseconds": 100.0 + 100 * hour,
        }
        await run(record, f"chat {hour}", MONDAY + hour * HOUR, **chat, **latency)
    await run(record, "failed", MONDAY + DAY, status="error", mode="chat", model_version=two, total_milliseconds=9e5)
    await run(record, "stopped", MONDAY + DAY, status="cancelled", mode="fill", model_version=two)
    await run(record, "sunday", MONDAY + 7 * DAY - HOUR, mode="fill", model_version=two, new_tokens=7)
    await run(record, "next week", MONDAY + 7 * DAY, mode="fill", model_version=two, new_tokens=7)
    await run(record, "staff", MONDAY + DAY, mode="fill", client=STAFF_CLIENT)
    record.clock.now = MONDAY + 8 * DAY

    found = await ask(record, by="mode", **{"from": "2024-03-04"})
    assert found["times"][0] == "2024-03-04T00:00:00+00:00" and len(found["times"]) == 9
    assert [series["key"] for series in found["series"]] == ["chat", "fill"]
    assert of(found, "chat", "runs") == [10, 1, 0, 0, 0, 0, 0, 0, 0]
    assert of(found, "chat", "failed")[:2] == [0, 1] and of(found, "fill", "cancelled")[1] == 1
    assert of(found, "fill", "runs") == [0, 1, 0, 0, 0, 0, 1, 1, 0]
    assert (of(found, "chat", "prompt_tokens")[0], of(found, "chat", "new_tokens")[0]) == (100, 50)
    whole = found["series"][0]["whole"]
    assert (whole["runs"], whole["failed"], whole["new_tokens"]) == (11, 1, 50)
    assert whole["total_p50"] == pytest.approx(500, rel=0.05) and whole["total_p99"] == pytest.approx(1000, rel=0.06)
    assert whole["first_token_p50"] == pytest.approx(50, abs=1) and of(found, "chat", "queue_p90")[0] == pytest.approx(
        2, abs=1
    )
    assert of(found, "chat", "total_p50")[1] is None, "a run that failed has no pace"

    weeks = await ask(record, bucket="week", by="model", **{"from": "2024-03-05"})
    assert weeks["times"] == ["2024-03-04T00:00:00+00:00", "2024-03-11T00:00:00+00:00"]
    assert of(weeks, one, "runs") == [10, 0] and of(weeks, two, "runs") == [3, 1]
    assert [series["name"] for series in weeks["series"]] == ["one aaaaaaaa", "two bbbbbbbb"]
    hours = await ask(record, bucket="hour", mode="chat", **{"from": "2024-03-04", "to": "2024-03-04T09:30:00Z"})
    assert of(hours, "all", "runs") == [1] * 10
    assert of(hours, "all", "total_p50")[3] == pytest.approx(400, rel=0.06)
    only = await ask(record, model_version=str(two), **{"from": "2024-03-04"})
    assert sum(of(only, "all", "runs")) == 4
    assert (await ask(record, mode="none"))["series"] == []


async def test_ratings_stand_where_they_were_given(record: Record):
    for name, mode in (("a", "chat"), ("b", "chat"), ("c", "fill"), ("d", "fill")):
        await run(record, name, MONDAY, mode=mode)
    for name, rating, day in (("a", 1, 0), ("b", -1, 1), ("c", 1, 1), ("d", 1, 1)):
        record.clock.now = MONDAY + day * DAY
        await record.add_feedback(name, "ann", rating=rating)
    await record.add_feedback("d", "ann", rating=0)
    record.clock.now = MONDAY + 2 * DAY
    await record.vote("a", "c", "ann", "first")
    await record.vote("b", "d", "ann", "second")
    await record.vote("c", "d", "ann", "tie")
    for name, stars in (("a", 5), ("b", 2)):
        now = record.clock()
        await add(
            record,
            Review(
                run_id=name, version=1, status="done", flagged=False, note="", rating=stars, created=now, updated=now
            ),
        )
    found = await ask(record, by="mode", **{"from": "2024-03-04"})
    assert of(found, "chat", "thumbs_up") == [1, 0, 0] and of(found, "chat", "thumbs_down") == [0, 1, 0]
    assert of(found, "fill", "thumbs_up") == [0, 1, 0]
    assert of(found, "chat", "compared") == [0, 0, 2] and of(found, "chat", "wins") == [0, 0, 1]
    assert of(found, "fill", "compared") == [0, 0, 4] and of(found, "fill", "wins") == [0, 0, 1]
    assert of(found, "chat", "stars") == [None, None, 3.5] and of(found, "chat", "starred") == [0, 0, 2]


async def test_the_rarest_series_count_together(record: Record):
    for number in range(12):
        for again in range(3 if number < 8 else 1):
            await run(record, f"{number} {again}", MONDAY, mode=f"mode {number}")
    found = await ask(record, by="mode", **{"from": "2024-03-04"})
    assert len(found["series"]) == 9 and found["series"][-1]["key"] == OTHERS
    assert found["series"][-1]["whole"]["runs"] == 4


def test_what_makes_no_sense_is_refused_by_name():
    def refused(**given: str) -> str | None:
        with pytest.raises(StorageError) as caught:
            StatisticsQuery.parse({"from" if name == "start" else name: value for name, value in given.items()}, MONDAY)
        assert caught.value.kind == "bad_request"
        return caught.value.field

    assert refused(bucket="minute") == "bucket" and refused(by="visitor") == "by"
    assert refused(start="yesterday") == "from" and refused(to="2024-13-01") == "to"
    assert refused(start="2030-01-01") == "from" and refused(model_version="one") == "model_version"
    assert refused(colour="red") == "colour"
    assert refused(start="2024-01-01", bucket="hour") == "bucket", f"more than {MOST_BUCKETS}"
    for bucket in ("hour", "day", "week"):
        query = StatisticsQuery.parse({"bucket": bucket}, MONDAY + HOUR / 2)
        assert query.start == floor(query.start, bucket) and query.times()[-1] == floor(MONDAY, bucket)
    assert len(StatisticsQuery.parse({}, MONDAY).times()) == 30
    assert floor(MONDAY - HOUR, "week") == MONDAY - 7 * DAY


@pytest.mark.heavy
async def test_a_million_runs_are_counted_in_seconds(record: Record):
    """Rows are made by the database itself; long texts, so that reading rows instead of the index would take a minute."""
    sqlite = record.database.dialect == "sqlite"
    numbers = (
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 999999) SELECT i FROM n"
        if sqlite
        else "SELECT i FROM generate_series(0, 999999) AS n(i)"
    )
    when = (
        "strftime('%Y-%m-%d %H:%M:%S.000000', '2024-03-04', '+' || (i * 2) || ' seconds')"
        if sqlite
        else "timestamptz '2024-03-04 00:00:00+00' + i * interval '2 seconds'"
    )
    filling = (
        "INSERT INTO run (id, number, visitor, client, server, mode, prompt, parameters, repaired, status, output, "
        "new_tokens, created, queue_milliseconds, first_token_milliseconds, total_milliseconds) "
        "SELECT 'r' || i, i, 'v', 'web', '', CASE i % 3 WHEN 0 THEN 'chat' ELSE 'fill' END, '\"a question\"', '{}', false, "
        f"'done', '{'A long answer. ' * 120}', i % 100, {when}, i % 50, i % 500, i % 20000 FROM ({numbers}) AS numbers"
    )

    async def fill(session) -> None:
        await session.execute(text(filling))

    await record.database.write(fill)
    if not sqlite:

        async def analyse(session) -> None:
            await session.execute(text("ANALYZE run"))

        await record.database.write(analyse)
    record.clock.now = MONDAY + 24 * DAY
    for given, most in (({"by": "mode"}, 40.0), ({"by": "model", "bucket": "hour"}, 8.0), ({"bucket": "week"}, 40.0)):
        begin = time.perf_counter()
        found = await ask(record, **given)
        took = time.perf_counter() - begin
        print(record.database.dialect, given, f"{took:.2f} s")
        assert took < most
        assert found["series"]
    assert sum(series["whole"]["runs"] for series in found["series"]) == 1_000_000
