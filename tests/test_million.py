"""The review desk over a million runs (heavy): search, filters, orders, page turns and counts stay under 300 ms.

What counts is the time that this process computes, which reads the index itself: other programs on the machine make no
difference. The texts lie in the page cache after the first look.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from storage import Database, Record, search
from storage.queue import ORDERS, PAGE_LIMIT
from storage.run_filter import RunFilter
from tests import million as generator
from tests.export_memory import peak

pytest_plugins = ("tests.million",)
# To make the database alone takes a quarter of an hour.
pytestmark = [pytest.mark.heavy, pytest.mark.timeout(3600)]

CONTENT = text("SELECT c0, c1 FROM run_search_content WHERE id = :number")
SECONDS = 0.3
TIMES = 3
FEW = 20_000  # runs whose export is compared with that of all
GROWTH = 40  # MiB that the peak may be higher

FILTERS: list[dict[str, Any]] = [
    {},
    {"modes": "fill"},
    {"modes": "score"},
    {"languages": "mixed"},
    {"languages": "other"},  # nobody's: the whole index is read
    {"statuses": "interrupted"},
    {"model_versions": "1"},
    {"rating_from": 5},
    {"rating_to": 2},
    {"thumbs": "down"},
    {"tags": "rude"},
    {"reviewers": "staff 1"},
    {"reviewed": True},
    {"reviewed": False},
    {"corrected": True},
    {"flagged": True},
    {"clients": "api"},
    {"created_from": "2024-03-01", "created_to": "2024-03-02"},
    {"visitor": "visitor 77"},
    {"modes": "score", "languages": "mixed", "statuses": "interrupted", "model_versions": "1", "clients": "api"},
    {"tags": "rude", "reviewers": "staff 1", "rating_from": 3, "modes": "chat"},
]
WORDS = (
    "the",
    "的",
    "学习",
    "机器学习",
    "machine",
    "item12",
    *generator.WORDS_ONCE,
    "龘",
    "nowhere",
    '"the time"',
    "the 的",
)
BOTH: list[dict[str, Any]] = [
    {"words": "的", "rating_from": 5},
    {"words": "the", "tags": "rude", "languages": "en"},
    {"words": "学习", "modes": "score", "clients": "api"},
    {"words": "machine", "created_from": "2024-03-01", "created_to": "2024-04-01"},
    {"words": "的", "languages": "en"},  # never both: the search stops and says so
    {"words": "item12", "languages": "zh", "flagged": True},
]


async def took(work: Callable[[], Awaitable[Any]]) -> tuple[float, Any]:
    """The median of several tries in computing seconds (one, where that is far from the limit), and what came of it."""
    seconds: list[float] = []
    while len(seconds) < TIMES and not (seconds and seconds[0] < SECONDS / 2):
        begin = time.process_time()
        answer = await work()
        seconds.append(time.process_time() - begin)
    return statistics.median(seconds), answer


async def test_every_look_takes_less_than_a_third_of_a_second(million: Path):
    database = Database(million)
    record = Record(database)
    slow, all_seconds = [], []
    cases = [*FILTERS, *({"words": words} for words in WORDS), *BOTH]
    for given in cases:
        filter = RunFilter.parse(given)
        looks: list[tuple[str, float]] = []
        for order in ORDERS:
            seconds, page = await took(lambda filter=filter, order=order: record.queue(filter, order))
            looks.append((order, seconds))
            if page.next is not None:
                turn = {"after": page.next}
                seconds, page = await took(
                    lambda filter=filter, order=order, turn=turn: record.queue(filter, order, **turn)
                )
                looks.append((f"{order}, second page", seconds))
            if page.previous is not None:
                turn = {"before": page.previous}
                seconds, page = await took(
                    lambda filter=filter, order=order, turn=turn: record.queue(filter, order, **turn)
                )
                looks.append((f"{order}, back", seconds))
        seconds, _ = await took(lambda filter=filter: record.count_queue(filter))
        looks.append(("count", seconds))
        all_seconds += [seconds for _, seconds in looks]
        slow += [(given, what, seconds) for what, seconds in looks if seconds > SECONDS]
    seconds, _ = await took(record.facets)
    await database.close()
    figures = (
        f"{len(all_seconds)} looks, median {statistics.median(all_seconds):.3f} s, longest {max(all_seconds):.3f} s"
    )
    print(figures)
    assert not slow, (figures, slow)
    assert seconds < SECONDS, "facets"


async def test_what_is_found_is_what_is_there(million: Path):
    database = Database(million)
    record = Record(database)
    for word in generator.WORDS_ONCE:
        for order in ORDERS:
            (row,) = (await record.queue(RunFilter(words=word), order)).rows
            texts = search.texts_of(None, (await record.get_run(row.run.id, None)).output)
            assert word in texts[0]
    for words in ("the", "的", "机器学习"):
        page = await record.queue(RunFilter(words=words), "uncertainty", limit=PAGE_LIMIT)
        values = [row.run.uncertainty for row in page.rows]
        assert len(values) == PAGE_LIMIT and values == sorted(values, reverse=True)
        for row in page.rows[:20]:
            run = await record.get_run(row.run.id, None)
            assert words in "\n".join(search.texts_of(run.prompt, run.output)).lower()
    # What the generator put into the index is what the program itself would.
    for row in (await record.queue(RunFilter(), limit=20)).rows:
        run = await record.get_run(row.run.id, None)
        ((_, values),) = search.entry("sqlite", run.number, search.texts_of(run.prompt, run.output), new=True)
        held = await database.read(lambda session, number=run.number: session.execute(CONTENT, {"number": number}))
        assert tuple(held.one()) == (values["words"], values["characters"])
    await database.close()


@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("options", [("jsonl", "--no-redaction"), ("parquet", "--no-redaction"), ("openai",)])
def test_an_export_takes_the_same_memory_however_many_runs_there_are(
    million: Path, tmp_path: Path, options: tuple[str, ...]
):
    # A run is accepted each minute.
    few = ("--to", (generator.FIRST + timedelta(minutes=FEW)).isoformat())
    counted, small = peak(million, tmp_path / "few", "--format", *options, *few)
    every, large = peak(million, tmp_path / "every", "--format", *options)
    assert (counted, every > counted) == (FEW, True)
    assert large - small < GROWTH, f"{small} MiB for {counted} runs, {large} MiB for {every}"
