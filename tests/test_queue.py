"""storage.queue and storage.run_filter: every order, every filter, pages both ways, few and many words; on both databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import select

from storage import Database, FilledBlank, Record, StorageError
from storage import queue as queue_module
from storage.models import Run
from storage.queue import ORDERS, Count, Position
from storage.run_filter import STAFF_CLIENT, RunFilter
from tests import databases
from tests.databases import STARTED, accept, refused

# The fixtures of this file, each on SQLite and on PostgreSQL.
address, record = databases.address, databases.record

MODES = ("chat", "generate", "fill")
OUTPUTS = ("The common answer", "常见的回答", "Common 的 answer", "Ответ")


@pytest_asyncio.fixture
async def filled(record: Record) -> Record:
    """Twelve runs of ann and bob, 0 to 11 in order of acceptance, with opinions on some of them."""
    for version in range(2):
        await record.ensure_model_version(f"hash {version}", f"model {version}", {})
    await record.create_staff("rita", "reviewer", None)
    for number in range(12):
        id = f"{number:02}"
        await accept(
            record,
            id,
            visitor="ann" if number % 3 else "bob",
            mode=MODES[number % 3],
            prompt=f"question{number}",
            model_version=1 + number % 2,
            client="web" if number % 4 else "api",
        )
        blank = FilledBlank(0, "[gMASK]", "", (1,), (-((number * 5) % 12) / 10,))
        status = "error" if number == 7 else "done"
        await record.finalise_run(id, status, output=OUTPUTS[number % 4], blanks=[blank] if number != 6 else [])
    await accept(record, "under way", prompt="common")
    await accept(record, "of the desk", prompt="common 常见", client=STAFF_CLIENT)
    await record.finalise_run("of the desk", "done", output="常见的")
    rita = (await record.list_staff())[0].id
    await record.add_feedback("01", "ann", rating=1)
    await record.add_feedback("02", "ann", rating=-1)
    await record.add_feedback("04", "ann", comment="only words")
    await record.vote("04", "05", "ann", "first")
    await record.save_review("02", 0, rita, rating=5, tags=["good", "很好"], status="done")
    await record.save_review("03", 0, rita, rating=2, flagged=True, tags=["bad"])
    await record.save_review("05", 0, rita, rating=5, corrected="Better", status="done")
    await record.save_review("08", 0, None, flagged=True, note="?")
    return record


async def ids(record: Record, filter: RunFilter, order: str = "newest", **paging: Any) -> list[str]:
    return [row.run.id for row in (await record.queue(filter, order, **paging)).rows]


NEWEST = [f"{number:02}" for number in reversed(range(12))]
IN_ORDER = {
    "newest": NEWEST,
    "oldest": NEWEST[::-1],
    # 5 * number % 12 tenths, and the one that has none at the end
    "uncertainty": sorted((id for id in NEWEST if id != "06"), key=lambda id: -(int(id) * 5 % 12)) + ["06"],
    # 02: a thumb down and five stars; 05: lost a vote and has five stars
    "disagreement": ["05", "02", *(id for id in NEWEST if id not in ("02", "05"))],
    "flags": ["08", "03", *(id for id in NEWEST if id not in ("03", "08"))],
    "rating": ["05", "02", "03", *(id for id in NEWEST if id not in ("02", "03", "05"))],
    "rating_low": ["03", "05", "02", *(id for id in NEWEST if id not in ("02", "03", "05"))],
}


async def test_orders_and_pages_both_ways(filled: Record):
    assert set(IN_ORDER) == set(ORDERS)
    for order, expected in IN_ORDER.items():
        assert await ids(filled, RunFilter(), order) == expected, order
        for size in (1, 5):
            seen, pages, after = [], [], None
            while True:
                page = await filled.queue(RunFilter(), order, limit=size, after=after)
                pages.append(page)
                seen += [row.run.id for row in page.rows]
                assert page.complete and (page.previous is None) == (after is None)
                if page.next is None:
                    break
                after = page.next
            assert seen == expected, (order, size)
            for earlier, page in zip(pages, pages[1:], strict=False):
                back = await filled.queue(RunFilter(), order, limit=size, before=page.previous)
                assert [row.run.id for row in back.rows] == [row.run.id for row in earlier.rows]
                assert (back.next, back.previous is None) == (earlier.next, earlier is pages[0])


async def test_each_filter(filled: Record):
    rita = (await filled.list_staff())[0].id
    day = STARTED.date().isoformat()
    cases: list[tuple[dict[str, Any], set[int]]] = [
        ({"modes": ["chat"]}, {0, 3, 6, 9}),
        ({"modes": "chat,fill"}, {0, 3, 6, 9, 2, 5, 8, 11}),
        ({"statuses": "error"}, {7}),
        ({"statuses": "running"}, set()),
        ({"model_versions": "2"}, {1, 3, 5, 7, 9, 11}),
        ({"languages": "zh"}, set()),  # all have "question" in their prompts
        ({"languages": "other"}, {3, 7, 11}),
        ({"languages": "mixed,zh"}, {1, 2, 5, 6, 9, 10}),
        ({"rating_from": 3}, {2, 5}),
        ({"rating_to": 3}, {3}),
        ({"rating_from": 2, "rating_to": 5}, {2, 3, 5}),
        ({"thumbs": "up"}, {1}),
        ({"thumbs": "down"}, {2}),
        ({"thumbs": "any"}, {1, 2}),
        ({"tags": "good"}, {2}),
        ({"tags": ["bad", "很好"]}, {2, 3}),
        ({"reviewers": rita}, {2, 3, 5}),
        ({"reviewed": True}, {2, 5}),
        ({"reviewed": "false"}, set(range(12)) - {2, 5}),
        ({"corrected": True}, {5}),
        ({"corrected": False, "reviewed": True}, {2}),
        ({"flagged": "1"}, {3, 8}),
        ({"flagged": False}, set(range(12)) - {3, 8}),
        ({"clients": "api"}, {0, 4, 8}),
        ({"visitor": "bob"}, {0, 3, 6, 9}),
        ({"ids": "03,04,under way"}, {3, 4}),
        ({"created_to": day}, {number for number in range(12) if await created(filled, number) < "2024-03-01"}),
        (
            {"created_from": "2024-03-01"},
            {number for number in range(12) if await created(filled, number) >= "2024-03-01"},
        ),
        ({"words": "common", "modes": "chat", "clients": "web"}, {6}),
        ({"words": "常见", "visitor": "ann", "flagged": False}, {1, 5}),
        ({"words": "question3", "thumbs": "any"}, set()),
        ({"words": "common", "ids": ["00", "02", "03"]}, {0, 2}),
    ]
    for given, expected in cases:
        filter = RunFilter.parse(given)
        wanted = {f"{number:02}" for number in expected}
        assert RunFilter.parse(filter.as_dict()) == filter
        assert await filled.count_queue(filter) == Count(len(wanted)), given
        for order in ORDERS:
            found = await ids(filled, filter, order)
            assert found == [id for id in IN_ORDER[order] if id in wanted], (given, order)
        # The conditions alone, as an export uses them, mean the same (the queue leaves out what hasn't ended).
        statement = select(Run.id).where(*filter.conditions(filled.database.dialect), Run.finished.is_not(None))
        rows = await filled.database.read(lambda session, statement=statement: session.scalars(statement))
        assert set(rows) == wanted, given


async def created(record: Record, number: int) -> str:
    return (await record.get_run(f"{number:02}", None)).created.isoformat()


async def test_common_words_are_found_in_each_order(filled: Record, monkeypatch: pytest.MonkeyPatch):
    expected = {"common": {0, 2, 4, 6, 8, 10}, "的": {1, 2, 5, 6, 9, 10}}
    monkeypatch.setattr(queue_module, "FEW", 0)
    monkeypatch.setattr(queue_module, "LOOKED_THROUGH", (3, 20))
    for words, numbers in expected.items():
        for order in ORDERS:
            wanted = [id for id in IN_ORDER[order] if int(id) in numbers]
            assert await ids(filled, RunFilter(words=words), order) == wanted, (words, order)
            first = await filled.queue(RunFilter(words=words), order, limit=2)
            assert [row.run.id for row in first.rows] == wanted[:2]
            second = await filled.queue(RunFilter(words=words), order, limit=2, after=first.next)
            assert [row.run.id for row in second.rows] == wanted[2:4]
            back = await filled.queue(RunFilter(words=words), order, limit=2, before=second.previous)
            assert [row.run.id for row in back.rows] == wanted[:2]


async def test_a_long_search_stops_and_goes_on(filled: Record, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(queue_module, "FEW", 0)
    monkeypatch.setattr(queue_module, "LOOKED_THROUGH", (2, 3))
    for order in ORDERS:
        seen, after, stops = [], None, 0
        while True:
            page = await filled.queue(RunFilter(words="question0"), order, limit=5, after=after)
            seen += [row.run.id for row in page.rows]
            stops += not page.complete
            assert page.complete == (page.next is None), "one page holds all that there is"
            if page.next is None:
                break
            after = page.next
        assert seen == ["00"] and stops >= 1, order


async def test_counts_stop(filled: Record, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(queue_module, "COUNTED", 5)
    assert await filled.count_queue(RunFilter()) == Count(5, capped=True, complete=False)
    assert await filled.count_queue(RunFilter(thumbs="any")) == Count(2)
    monkeypatch.setattr(queue_module, "COUNTED_AMONG", 3)
    found = await filled.count_queue(RunFilter(words="common"))
    assert found.count <= 3 and not found.complete
    assert await filled.count_queue(RunFilter(words="question3")) == Count(1)
    assert await filled.count_queue(RunFilter(words="!")) == Count(0)


async def test_a_row_shows_what_the_list_needs(filled: Record):
    long = [{"role": "user", "content": "first"}, {"role": "user", "content": "长" * 500}]
    await accept(filled, "long", mode="chat", prompt=long)
    await filled.finalise_run("long", "done", output="长" * 500)
    row, *rest = (await filled.queue(RunFilter())).rows
    assert (row.prompt, row.output) == ("长" * 200, "长" * 200)
    assert (row.review_version, row.reviewer, row.tags, row.model) == (0, None, [], None)
    second = next(row for row in rest if row.run.id == "02")
    assert (second.tags, second.reviewer, second.review_version, second.model) == (
        ["good", "很好"],
        "rita",
        1,
        "model 0",
    )
    assert (second.run.stars, second.run.reviewed, second.run.corrected, second.run.thumbs_down) == (5, True, False, 1)
    failed = next(row for row in rest if row.run.id == "06")
    assert failed.run.uncertainty == -1


async def test_facets_and_tags(filled: Record):
    facets = await filled.facets()
    assert {one["value"]: one["count"] for one in facets["modes"]} == {"chat": 4, "generate": 4, "fill": 4}
    assert {one["value"]: one["count"] for one in facets["statuses"]} == {"done": 11, "error": 1}
    assert {one["value"]: one["count"] for one in facets["clients"]} == {"web": 9, "api": 3}
    assert [(one["name"], one["count"], one["capped"]) for one in facets["models"]] == [
        ("model 1", 6, False),
        ("model 0", 6, False),
    ]
    assert [(one["name"], one["count"]) for one in facets["reviewers"]] == [("rita", 3)]
    assert {one["value"] for one in facets["tags"]} == {"good", "bad", "很好"}
    assert [one["value"] for one in await filled.tags("b")] == ["bad"]
    assert await filled.tags("%") == []


async def test_deleted_runs_leave_the_queue(filled: Record):
    conversation = await filled.create_conversation("ann", "chat")
    await accept(filled, "talk", conversation=conversation)
    await filled.finalise_run("talk", "done", output="common")
    assert (await ids(filled, RunFilter()))[0] == "talk"
    await filled.delete_conversation(conversation, "ann")
    assert await ids(filled, RunFilter()) == NEWEST
    assert await ids(filled, RunFilter(ids=("talk",))) == []


async def test_opinions_are_counted_as_they_change(filled: Record):
    async def counts(id: str) -> tuple[int, int, int, bool]:
        run = await filled.get_run(id, None)
        return run.thumbs_up, run.thumbs_down, run.disagreement, run.touched

    assert await counts("10") == (0, 0, 0, False)
    await filled.add_feedback("10", "ann", rating=1)
    await filled.vote("10", "11", "ann", "neither")
    assert await counts("10") == (1, 0, 1, True)
    assert await counts("11") == (0, 0, 0, True)
    await filled.add_feedback("10", "ann", rating=-1)
    assert await counts("10") == (0, 1, 0, True)
    await filled.save_review("10", 0, None, rating=4)
    assert await counts("10") == (0, 1, 1, True)
    await filled.add_feedback("10", "ann", rating=0)
    await filled.vote("11", "10", "ann", "tie")
    assert await counts("10") == (0, 0, 0, True)


async def test_wrong_cursors_and_orders_are_refused(filled: Record):
    page = await filled.queue(RunFilter(), limit=2)
    assert page.next is not None
    wrong = ("", "x", "newest", "newest.0.x.0x0p+0", "newest.9.1.0x0p+0", f"newest.0.{1 << 70}.0x0p+0", page.next + ".")
    for cursor in wrong:
        assert await refused(filled.queue(RunFilter(), after=cursor)) == "not_found", cursor
    assert await refused(filled.queue(RunFilter(), "oldest", after=page.next)) == "not_found", "of another order"
    assert await refused(filled.queue(RunFilter(), "random")) == "bad_request"
    position = Position(1, 0.1, 5)
    assert Position.read(position.cursor("rating"), "rating") == position


async def test_runs_of_one_moment_are_paged_without_loss(record: Record, address: str):
    frozen = Record(Database(address), lambda: STARTED)
    expected = {f"{number}" for number in range(7)}
    for id in expected:
        await accept(frozen, id)
        await frozen.finalise_run(id, "done", output="x", blanks=[FilledBlank(0, "[gMASK]", "x", (1,), (-1.0,))])
    await frozen.database.close()
    for order in ORDERS:
        seen, after = [], None
        while True:
            page = await record.queue(RunFilter(), order, limit=2, after=after)
            seen += [row.run.id for row in page.rows]
            if (after := page.next) is None:
                break
        assert len(seen) == 7 and set(seen) == expected


@pytest.mark.parametrize(
    "given, field",
    [
        ({"colour": "red"}, "colour"),
        ({"words": 5}, "words"),
        ({"words": "x" * 501}, "words"),
        ({"modes": ["x" * 201]}, "modes"),
        ({"modes": [5]}, "modes"),
        ({"statuses": "finished"}, "statuses"),
        ({"languages": "en,de"}, "languages"),
        ({"model_versions": "one"}, "model_versions"),
        ({"model_versions": "99999999999"}, "model_versions"),
        ({"model_versions": [True]}, "model_versions"),
        ({"rating_from": 0}, "rating_from"),
        ({"rating_to": "6"}, "rating_to"),
        ({"rating_to": 2.5}, "rating_to"),
        ({"thumbs": "sideways"}, "thumbs"),
        ({"thumbs": "up,down"}, "thumbs"),
        ({"reviewed": "maybe"}, "reviewed"),
        ({"created_from": "yesterday"}, "created_from"),
        ({"created_to": "2024-13-01"}, "created_to"),
        ({"created_to": 5}, "created_to"),
        ({"tags": [f"{number}" for number in range(51)]}, "tags"),
        ({"ids": [f"{number}" for number in range(1001)]}, "ids"),
    ],
)
def test_a_filter_that_makes_no_sense_names_its_field(given: dict[str, Any], field: str):
    with pytest.raises(StorageError) as caught:
        RunFilter.parse(given)
    assert (caught.value.kind, caught.value.field) == ("bad_request", field)


def test_a_filter_says_only_what_is_set():
    assert RunFilter.parse({"words": "", "mode": None, "tags": [], "q": ""}) == RunFilter()
    assert RunFilter().as_dict() == {}
    filter = RunFilter.parse(
        {"q": "学习", "created_from": "2024-01-31", "created_to": ["2024-01-31"], "tag": "a, b,,a"}
    )
    assert filter.created_to == datetime(2024, 2, 1, tzinfo=UTC) == filter.created_from + timedelta(days=1)
    assert filter.as_dict() == {
        "words": "学习",
        "tags": ["a", "b"],
        "created_from": "2024-01-31T00:00:00+00:00",
        "created_to": "2024-02-01T00:00:00+00:00",
    }
    east = RunFilter.parse({"created_from": "2024-01-01T08:00:00+08:00"})
    assert east.created_from == datetime(2024, 1, 1, tzinfo=UTC)
