"""Training rows and frozen datasets: what is learnt from which correction, that the trainer takes every row, and that it stays."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from engine.glm.config import CHAT
from engine.glm.tokenizer import Tokenizer
from engine.training.objective import Objective, fitting_samples
from engine.training.sources import checked
from storage import Record
from storage.dataset_rows import dataset_hash
from storage.models import Blank, Run
from storage.review_tables import Review, SpanCorrection
from storage.run_filter import RunFilter
from storage.training_rows import REASONS, examined, row_hash, training_rows
from tests import databases
from tests.databases import refused
from tests.reviewed import add, ask, fill_record, finish, review

# Each on SQLite and on PostgreSQL.
address, record = databases.address, databases.record

EVERYTHING = ("span", "answer", "good")


def a_run(prompt, output: str | None, **values) -> Run:
    """A finished run outside any database."""
    mode = "chat" if isinstance(prompt, list) else "generate"
    defaults = {"id": "run", "mode": mode, "status": "done", "finish_reason": "stop", "deleted": None}
    return Run(**{**defaults, "prompt": prompt, "output": output, **values})


def corrected(text: str) -> Review:
    return Review(run_id="run", corrected=text, reviewer_id="rita")


def a_span(output: str, start: int, end: int, chosen: str, text: str | None = None, **values) -> SpanCorrection:
    values = {"id": chosen, "created": databases.STARTED} | values
    text = f"{output[:start]}[MASK]{output[end:]}" if text is None else text
    return SpanCorrection(start=start, end=end, chosen=chosen, text=text, **values)


def test_a_corrected_chat_learns_its_last_answer_only():
    prompt = ask("Hello", "Go away.", "Why?")
    assert training_rows(a_run(prompt, "Because."), corrected("I am sorry.")) == [
        {
            "messages": [
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Go away.", "weight": 0},
                {"role": "user", "content": "Why?"},
                {"role": "assistant", "content": "I am sorry."},
            ]
        }
    ]


def test_several_spans_of_one_output_are_one_text_with_blanks():
    output = "Rome is in Spain and Paris is in Italy."
    spans = [
        a_span(output, 33, 38, "France", f"Q: where?\nA: {output[:33]}[MASK]{output[38:]}"),
        a_span(output, 11, 16, "Italy", f"Q: where?\nA: {output[:11]}[sMASK]{output[16:]}"),
    ]
    blanks, whole = training_rows(a_run(ask("where?"), output), None, spans)
    assert blanks == {
        "text": "Q: where?\nA: Rome is in [sMASK] and Paris is in [MASK].",
        "answers": ["Italy", "France"],
    }
    assert whole["messages"][-1]["content"] == "Rome is in Italy and Paris is in France."


def test_a_span_in_whose_text_an_earlier_correction_stands_is_one_of_the_same_text():
    output = "Rome is in Spain, Paris in Italy."
    first = a_span(output, 11, 16, "Italy", id="1")
    second = a_span(output, 27, 32, "France", "Rome is in Italy, Paris in [MASK].", id="2")
    rows = training_rows(a_run(ask("?"), output), None, [first, second])
    assert rows[0] == {"text": "Rome is in [MASK], Paris in [MASK].", "answers": ["Italy", "France"]}
    assert rows[1]["messages"][-1]["content"] == "Rome is in Italy, Paris in France."


def test_spans_that_dont_lie_in_one_text_are_a_text_each():
    spans = [a_span("a b c", 0, 1, "x"), a_span("a b c", 2, 3, "y", "something else [MASK]")]
    rows = training_rows(a_run(ask("?"), "a b c"), corrected("x y c"), spans)
    assert [row.get("answers") for row in rows] == [["x"], ["y"], None]


def test_a_completion_is_learnt_behind_its_text_and_a_filled_text_in_its_blanks():
    assert training_rows(a_run("Once", " bad"), corrected(" good")) == [{"text": "Once[gMASK]", "answers": [" good"]}]
    run = a_run("[MASK] is the [sMASK] of France.", "Lyon is the city of France.", mode="fill", blanks=[])
    assert training_rows(run, corrected("Paris is the capital of France.")) == [
        {"text": "[MASK] is the [sMASK] of France.", "answers": ["Paris", "capital"]}
    ]
    run = a_run("no blank", "no blank at all", mode="fill", blanks=[])
    assert training_rows(run, corrected("no blank to see")) == [{"text": "no blank[gMASK]", "answers": [" to see"]}]


@pytest.mark.parametrize(
    "run, stated, reason",
    [
        (a_run(None, None, deleted=databases.STARTED), corrected("x"), "deleted"),
        (a_run("a", "b"), None, "uncorrected"),
        (a_run("a [MASK]", "a b", mode="score"), corrected("a c"), "scored"),
        (a_run(ask("a"), "b"), corrected(" "), "empty"),
        (a_run("a [MASK] b", " c"), corrected(" d"), "other_blanks"),
        (a_run("a [ mask ] b", " c"), corrected(" d"), "other_blanks"),
        (a_run(ask("fill [MASK] [sMASK]"), "c"), corrected("d"), "other_blanks"),
        (a_run("[MASK] and [MASK]", "a and b", mode="fill", blanks=[]), corrected("a and b and c"), "unclear_blanks"),
        (a_run("[MASK][MASK]", "ab", mode="fill", blanks=[]), corrected("cd"), "unclear_blanks"),
        (a_run("[MASK] end", "a end", mode="fill", blanks=[]), corrected("a finish"), "unclear_blanks"),
    ],
)
def test_what_gives_no_row_says_why(run: Run, stated: Review | None, reason: str):
    assert reason in REASONS
    assert examined(run, stated, []) == ([], [reason])


@pytest.mark.parametrize("values", [{"status": "cancelled"}, {"finish_reason": "length"}])
def test_an_answer_cut_short_is_not_learnt_as_it_is(values: dict):
    run = a_run(ask("a"), "b", **values)
    assert examined(run, None, [], good=True) == ([], ["unfinished"])
    assert training_rows(run, corrected("c"), good=True)[0]["messages"][-1]["content"] == "c"
    assert training_rows(a_run(ask("a"), "b"), good=True)[0]["messages"][-1]["content"] == "b"


def test_the_trainer_takes_every_row(vocabulary_file: Path):
    """Whatever stands in the texts: a row that it refuses would end a training run."""
    tokenizer = Tokenizer.load(vocabulary_file)
    odd = [
        "",
        " ",
        "[MASK]",
        "[gMASK] x",
        "[ MASK]",
        "[sMASK][MASK]",
        "a\n[mask]",
        "首都是 [MASK] 。",
        "\u2400 \ufffd",
        "x ",
    ]
    rows = []
    for before in odd:
        for answer in odd:
            output = "left wrong right"
            spans = [a_span(output, 5, 10, answer, f"{before}left [MASK] right"), a_span(output, 11, 16, before)]
            for prompt, mode in ((ask(before or "?"), "chat"), (before, "generate"), (before, "fill")):
                run = a_run(prompt, output, mode=mode, blanks=[Blank(index=0, text=answer)])
                for stated in (corrected(answer), None, corrected(before.replace("[MASK]", answer))):
                    rows += training_rows(run, stated, spans)
                rows += training_rows(run, None, good=True)
    assert len(rows) > 300
    for row in rows:
        samples, reason = fitting_samples(checked(dict(row)), CHAT, tokenizer, Objective(), 200, Random(1))
        assert samples and reason is None, row


def test_the_trainer_learns_no_answer_of_weight_0(vocabulary_file: Path):
    tokenizer = Tokenizer.load(vocabulary_file)
    (row,) = training_rows(a_run(ask("a", "wrong", "b"), "c"), corrected("right"))
    learnt = set()
    for seed in range(20):
        ((sample,), _) = fitting_samples(checked(row), CHAT, tokenizer, Objective(), 200, Random(seed))
        learnt.add(tokenizer.decode([id for id in sample.targets if id >= 0 and id != tokenizer.eop]).strip())
    assert learnt == {"right"}


async def test_a_preview_is_what_is_frozen(record: Record):
    await fill_record(record)
    everything = RunFilter()
    preview = await record.preview_dataset(everything, sources=EVERYTHING, held_out_share=0.3)
    assert (preview.runs, preview.rows) == (8, 6), "capital 2, story 1, filled 2, good 1"
    assert preview.left_out == {"uncorrected": 2, "duplicate": 1, "personal": 1}
    dataset = await record.freeze_dataset("first", everything, by="adam", sources=EVERYTHING, held_out_share=0.3)
    assert (dataset.version, dataset.hash, dataset.rows) == (1, preview.hash, preview.rows)
    rows = (await record.dataset_rows(dataset.id)).rows
    assert [row.content for row in rows] == [row.content for row in preview.first]
    assert [row.hash for row in rows] == [row_hash(row.content) for row in rows]
    assert dataset.hash == dataset_hash([(row.part, row.hash) for row in rows])
    assert {row.run_id for row in rows} >= {"capital", "story", "filled", "good"}
    assert {row.reviewer_id for row in rows if row.run_id == "capital"} == {"rita"}
    summary = await record.get_dataset(dataset.id)
    assert (summary.train, summary.held_out, summary.removed) == (preview.train, preview.held_out, 0)
    again = await record.freeze_dataset(" first ", everything, by=None, sources=EVERYTHING, held_out_share=0.3)
    assert (again.version, again.hash, again.filters) == (2, dataset.hash, {})
    listed = await record.list_datasets(limit=1)
    assert [item.dataset.id for item in listed.rows] == [again.id]
    assert [item.dataset.id for item in (await record.list_datasets(after=listed.next)).rows] == [dataset.id]


async def test_deletion_leaves_tombstones_with_their_hash(record: Record, tmp_path: Path):
    await fill_record(record)
    dataset = await record.freeze_dataset("all", RunFilter(), by=None, held_out_share=0)
    rows = (await record.dataset_rows(dataset.id)).rows
    (conversation,) = (await record.list_conversations("ann")).rows
    await record.delete_conversation(conversation.id, "ann")
    later = (await record.dataset_rows(dataset.id)).rows
    assert [row.hash for row in later] == [row.hash for row in rows]
    assert [row.content is None and row.removed is not None for row in later] == [
        row.run_id == "capital" for row in rows
    ]
    assert dataset_hash([(row.part, row.hash) for row in later]) == dataset.hash
    path = tmp_path / "train.jsonl"
    assert await record.write_dataset(dataset.id, "train", path) == 3
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        row.content for row in later if row.content
    ]
    assert "Paris" not in path.read_text() and [one.name for one in tmp_path.glob("train*")] == ["train.jsonl"]
    assert (await record.get_dataset(dataset.id)).removed == 2


async def test_all_rows_of_a_prompt_are_in_one_part_in_every_version(record: Record):
    for number in range(60):
        await finish(record, f"r{number}", ask(f"question {number % 40}"), f"answer {number}")
        await add(record, review(record, f"r{number}", reviewer_id=None, corrected=f"right {number}"))

    async def parts(filter: RunFilter, share: float) -> dict[str, set[str]]:
        dataset = await record.freeze_dataset("parts", filter, by=None, held_out_share=share)
        found: dict[str, set[str]] = {}
        for row in (await record.dataset_rows(dataset.id)).rows:
            found.setdefault(row.content["messages"][0]["content"], set()).add(row.part)
        return found

    every = await parts(RunFilter(), 0.2)
    assert len(every) == 40 and all(len(one) == 1 for one in every.values())
    held_out = sum(one == {"held_out"} for one in every.values())
    assert 2 <= held_out <= 16
    some = await parts(RunFilter.parse({"ids": [f"r{number}" for number in range(30)]}), 0.2)
    assert all(every[question] == one for question, one in some.items()), "a larger dataset moves no prompt"
    assert {part for one in (await parts(RunFilter(), 0)).values() for part in one} == {"train"}
    tiny = await parts(RunFilter.parse({"ids": "r0,r1"}), 0.01)
    assert sorted(part for one in tiny.values() for part in one) == ["held_out", "train"], "both, however small"


async def test_personal_data_is_read_hidden_and_never_learnt(record: Record):
    chat = await record.create_conversation("ann", "chat")
    for id, question, answer in (
        ("one", "My name is Zebulon. Who wrote Faust?", "Goethe wrote it."),
        ("two", "And who am I?", "You are Zebulon."),
    ):
        await finish(record, id, ask(question), "wrong", conversation=chat)
        await add(record, review(record, id, reviewer_id=None, corrected=answer))
    preview = await record.preview_dataset(RunFilter())
    assert [row.content["messages"][0]["content"] for row in preview.first] == ["My name is [hidden]. Who wrote Faust?"]
    assert preview.left_out == {"personal": 1}
    assert (await record.preview_dataset(RunFilter(), redact=False)).rows == 2


async def test_a_run_deleted_meanwhile_is_not_frozen(record: Record):
    await fill_record(record)
    collect = record._collect

    async def slow(*arguments):
        found = await collect(*arguments)
        (conversation,) = (await record.list_conversations("ann")).rows
        await record.delete_conversation(conversation.id, "ann")
        return found

    record._collect = slow  # type: ignore[method-assign]
    assert await refused(record.freeze_dataset("all", RunFilter(), by=None)) == "conflict"
    assert (await record.list_datasets()).rows == []


async def test_what_makes_no_dataset_is_refused(record: Record):
    await fill_record(record)
    nothing = RunFilter.parse({"ids": "failed"})
    assert await refused(record.freeze_dataset("x", nothing, by=None)) == "bad_request"
    assert await refused(record.freeze_dataset("  ", RunFilter(), by=None)) == "bad_request"
    assert await refused(record.freeze_dataset("x", RunFilter(), by=None, held_out_share=0.9)) == "bad_request"
    assert await refused(record.preview_dataset(RunFilter(), sources=("walk",))) == "bad_request"
    assert await refused(record.dataset_rows("none")) == "not_found"
    assert await refused(record.get_dataset("none")) == "not_found"
    assert await refused(record.list_datasets(after="none")) == "not_found"
