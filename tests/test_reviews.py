"""storage.reviews and storage.run_details: nobody's work is overwritten, spans never overlap, the corrected text always fits."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
import pytest_asyncio

from storage import Database, FilledBlank, Record, StorageError
from storage.reviews import ReviewConflict, ReviewState, tag_words
from storage.run_filter import RunFilter
from tests import databases
from tests.databases import accept, refused

# The fixtures of this file, each on SQLite and on PostgreSQL.
address, record = databases.address, databases.record

OUTPUT = "The capital of 法国 is London, as 大家 know."


@pytest_asyncio.fixture
async def desk(record: Record) -> tuple[Record, str, str]:
    """A finished run to review, and the ids of two members of staff."""
    await accept(record, prompt="What is the capital?")
    await record.finalise_run("run", "done", output=OUTPUT, blanks=[FilledBlank(0, "[gMASK]", OUTPUT, (1,), (-1.0,))])
    rita, sam = [await record.create_staff(name, "reviewer", None) for name in ("rita", "sam")]
    return record, rita.id, sam.id


async def put(record: Record, version: int, by: str | None, words: str, chosen: str, **changes: Any) -> ReviewState:
    """Correct these words of the output."""
    start = OUTPUT.index(words)
    values = {"start": start, "end": start + len(words), "chosen": chosen, "source": "typed", "text": "a [MASK]"}
    return (await record.put_span("run", version, by, **{**values, **changes}))[0]


async def test_a_review_is_kept_and_changed_in_parts(desk: tuple[Record, str, str]):
    record, rita, sam = desk
    assert (await record.get_review("run")).version == 0
    state = await record.save_review("run", 0, rita, rating=4, tags=["Wrong  Fact", "好", "wrong fact"], note="hm")
    assert (state.version, state.review.rating, state.tags, state.names) == (1, 4, ["wrong fact", "好"], {rita: "rita"})
    state = await record.save_review("run", 1, sam, flagged=True, status="done")
    review = state.review
    assert (review.version, review.rating, review.flagged, review.status, review.note) == (2, 4, True, "done", "hm")
    assert review.reviewer_id == sam and review.created < review.updated
    state = await record.save_review("run", 2, sam, rating=None, tags=[], note="")
    assert (state.review.rating, state.tags, state.review.flagged) == (None, [], True)
    assert [row.run.id for row in (await record.queue(RunFilter(flagged=True, reviewed=True))).rows] == ["run"]


async def test_who_comes_second_is_told_what_stands_there(desk: tuple[Record, str, str], address: str):
    record, rita, sam = desk
    await record.save_review("run", 0, rita, rating=2, tags=["mine"])
    for change in (
        record.save_review("run", 0, sam, rating=5),
        put(record, 0, sam, "London", "Paris"),
        record.remove_span("run", 0, "none", sam),
    ):
        with pytest.raises(ReviewConflict, match="by rita") as caught:
            await change
        state = caught.value.state
        assert (state.version, state.review.rating, state.tags) == (1, 2, ["mine"])
    assert (await record.get_review("run")).review.rating == 2

    # Two processes at the same moment: one of them wins, each time.
    other = Record(Database(address))
    for version in range(1, 8):
        both = await asyncio.gather(
            record.save_review("run", version, rita, rating=1),
            other.save_review("run", version, sam, rating=5),
            return_exceptions=True,
        )
        (lost,) = [one for one in both if isinstance(one, ReviewConflict)]
        (won,) = [one for one in both if isinstance(one, ReviewState)]
        assert won.version == version + 1 and lost.state.review.rating == won.review.rating
    await accept(record, "fresh")
    await record.finalise_run("fresh", "done", output="x")
    both = await asyncio.gather(
        record.save_review("fresh", 0, rita, rating=1),
        other.save_review("fresh", 0, sam, rating=5),
        return_exceptions=True,
    )
    assert sum(isinstance(one, ReviewConflict) for one in both) == 1
    await other.database.close()


async def test_spans_are_added_changed_and_removed(desk: tuple[Record, str, str]):
    record, rita, sam = desk
    offered = [{"text": "Paris", "logprob": -0.25}, {"text": "Lyon", "logprob": -3.5}]
    state = await put(record, 0, rita, "London", "Paris", source="model", alternatives=offered, logprob=-0.25)
    (span,) = state.spans
    assert (span.rejected, span.chosen, span.source, span.alternatives) == ("London", "Paris", "model", offered)
    assert (span.logprob, span.text, span.reviewer_id) == (-0.25, "a [MASK]", rita)
    assert state.review.corrected == OUTPUT.replace("London", "Paris")
    state = await put(record, 1, sam, "大家", "everybody")
    assert state.review.corrected == OUTPUT.replace("London", "Paris").replace("大家", "everybody")
    assert [span.chosen for span in state.spans] == ["Paris", "everybody"]
    state = await put(record, 2, sam, "London", "Paris (法国)")
    assert [span.id for span in state.spans][0] == span.id and state.spans[0].source == "typed"
    assert state.spans[0].alternatives is None and state.spans[0].logprob is None
    assert state.review.corrected == OUTPUT.replace("London", "Paris (法国)").replace("大家", "everybody")
    state = await put(record, 3, sam, ", as", "")  # words can go without a successor
    assert "Paris (法国) everybody" in state.review.corrected
    state = await record.remove_span("run", 4, span.id, rita)
    assert "London everybody" in state.review.corrected and len(state.spans) == 2
    assert (await record.get_run("run", None)).output == OUTPUT, "what the model wrote stays"
    for left in (1, 0):
        state = await record.remove_span("run", state.version, state.spans[0].id, rita)
        assert len(state.spans) == left
    assert state.review.corrected is None
    assert not (await record.get_run("run", None)).corrected


async def test_spans_never_overlap_and_words_can_be_put_in(desk: tuple[Record, str, str]):
    record, rita, _ = desk
    state = await put(record, 0, rita, "London", "Paris")
    at = OUTPUT.index("London")
    for start, end in ((at - 1, at + 1), (at + 2, at + 4), (at - 3, at + 9), (at + 5, at + 8), (at + 1, at + 1)):
        assert await refused(put(record, 1, rita, "", "x", start=start, end=end)) == "bad_request", (start, end)
    state = await put(record, 1, rita, "", "surely ", start=at, end=at)
    assert "is surely Paris, as" in state.review.corrected
    state = await put(record, 2, rita, "", "!", start=at + 6, end=at + 6)
    assert "is surely Paris!, as" in state.review.corrected
    assert await refused(put(record, 3, rita, "", "x", start=at - 1, end=at + 1)) == "bad_request"
    wrong = [
        {"start": -1},
        {"start": 5, "end": 4},
        {"start": 0, "end": len(OUTPUT) + 1},
        {"start": 0, "end": 3, "chosen": "The"},
        {"start": 0, "end": 0, "chosen": ""},
    ]
    for changes in wrong:
        with pytest.raises(StorageError) as caught:
            await put(record, 3, rita, "The", changes.pop("chosen", "This"), **changes)
        assert caught.value.kind == "bad_request" and caught.value.field in ("start", "chosen")
    assert (await record.get_review("run")).version == 3, "what is refused changes nothing"


async def test_the_corrected_text_is_always_that_of_the_spans(desk: tuple[Record, str, str]):
    record, rita, _ = desk
    draw = random.Random(3)
    state = await record.get_review("run")
    for _ in range(40):
        if state.spans and draw.random() < 0.3:
            state = await record.remove_span("run", state.version, draw.choice(state.spans).id, rita)
        else:
            start = draw.randrange(len(OUTPUT))
            end = min(len(OUTPUT), start + draw.randrange(6))
            try:
                state = await put(record, state.version, rita, "", draw.choice("ab法🙂") * 2, start=start, end=end)
            except StorageError as error:
                assert error.field == "start"
                continue
        text, moved = list(OUTPUT), state.spans
        for span in reversed(moved):
            assert OUTPUT[span.start : span.end] == span.rejected
            text[span.start : span.end] = span.chosen
        assert state.review.corrected == ("".join(text) if moved else None)
        ordered = [(span.start, span.end) for span in moved]
        assert all(first[1] <= second[0] for first, second in zip(ordered, ordered[1:], strict=False))


async def test_a_rewrite_and_spans_take_each_others_place_only_when_told(desk: tuple[Record, str, str]):
    record, rita, _ = desk
    state = await put(record, 0, rita, "London", "Paris")
    state = await record.save_review("run", 1, rita, corrected="Paris.")
    assert (state.review.corrected, state.spans) == ("Paris.", [])
    with pytest.raises(StorageError, match="rewritten") as caught:
        await put(record, 2, rita, "London", "Paris")
    assert caught.value.field == "corrected"
    state = await put(record, 2, rita, "London", "Paris", replace=True)
    assert state.review.corrected == OUTPUT.replace("London", "Paris") and len(state.spans) == 1
    state = await record.save_review("run", 3, rita, rating=1)
    assert len(state.spans) == 1, "what isn't named stays"
    state = await record.save_review("run", 4, rita, corrected=None)
    assert (state.review.corrected, state.spans) == (None, [])
    assert (await record.save_review("run", 5, rita, corrected=OUTPUT)).review.corrected is None, (
        "nothing was corrected"
    )


async def test_what_cant_be_reviewed(desk: tuple[Record, str, str]):
    record, rita, _ = desk
    assert await refused(record.save_review("none", 0, rita, rating=1)) == "not_found"
    assert await refused(record.get_review("none")) == "not_found"
    await accept(record, "open")
    assert await refused(record.save_review("open", 0, rita, rating=1)) == "bad_request"
    await record.finalise_run("open", "error", error_kind="timeout")
    assert (await record.save_review("open", 0, rita, rating=1)).version == 1
    assert await refused(record.save_review("open", 1, rita, corrected="x")) == "bad_request"
    conversation = await record.create_conversation("ann", "chat")
    await accept(record, "gone", conversation=conversation)
    await record.finalise_run("gone", "done", output="SECRET")
    await record.save_review("gone", 0, rita, corrected="SECRET too", note="SECRET")
    await record.delete_conversation(conversation, "ann")
    assert await refused(record.save_review("gone", 1, rita, rating=1)) == "not_found"


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"rating": 0}, "rating"),
        ({"rating": 6}, "rating"),
        ({"status": "closed"}, "status"),
        ({"note": "x" * 5001}, "note"),
        ({"corrected": "x" * 200_001}, "corrected"),
        ({"tags": [f"tag {number}" for number in range(21)]}, "tags"),
        ({"tags": ["x" * 41]}, "tags"),
        ({"tags": ["a,b"]}, "tags"),
        ({"tags": [" "]}, "tags"),
    ],
)
async def test_limits_are_named(changes: dict[str, Any], field: str):
    with pytest.raises(StorageError) as caught:
        await Record(Database("never opened.sqlite3")).save_review("run", 0, None, **changes)
    assert (caught.value.kind, caught.value.field) == ("bad_request", field)


def test_tags_have_one_form():
    assert tag_words(["  Wrong   FACT ", "wrong fact", "e\u0301", "é"]) == ["wrong fact", "é"]


async def test_a_run_with_all_that_is_around_it(desk: tuple[Record, str, str]):
    record, rita, _ = desk
    conversation = await record.create_conversation("ann", "chat", "Talk")
    for number in range(50):
        await accept(
            record, f"{number:02}", conversation=conversation, prompt=[{"role": "user", "content": str(number)}]
        )
        await record.finalise_run(f"{number:02}", "done", output=f"answer {number}")
    await record.add_feedback("25", "ann", rating=-1, comment="bad")
    await record.vote("25", "26", "ann", "second", blind=True)
    await record.vote("24", "25", "ann", "second")
    await record.save_review("25", 0, rita, note="look")
    details = await record.run_details("25")
    assert (details.run.id, details.conversation.title, details.review.review.note) == ("25", "Talk", "look")
    assert [run.id for run in details.neighbours] == [f"{number:02}" for number in range(5, 46)]
    assert (details.earlier, details.later) == (5, 4)
    assert [(other, choice) for other, choice, _ in details.votes] == [("26", "worse"), ("24", "better")]
    assert [row.comment for row in details.run.feedback] == ["bad"]
    alone = await record.run_details("run")
    assert (alone.conversation, alone.neighbours, alone.review.version, alone.datasets) == (None, [], 0, [])
    assert await refused(record.run_details("none")) == "not_found"
