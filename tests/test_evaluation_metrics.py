"""Metrics of the evaluation, tasks that measure in a way of their own, results and how they are printed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from engine.errors import GLMError
from engine.evaluation import metrics
from engine.evaluation.custom.crows_pairs import CrowsPairs
from engine.evaluation.custom.lambada import Lambada, banned_tokens
from engine.evaluation.custom.pile import Pile
from engine.evaluation.custom.stereoset import StereoSet
from engine.evaluation.kinds import Answer, MultipleChoice
from engine.evaluation.record import Record
from engine.evaluation.result import FileResult, TaskResult, group_spreads
from engine.evaluation.rows import Row, encode
from engine.evaluation.task import Task, parse_task
from engine.evaluation.terminal import group_lines, result_lines, summary_lines
from engine.glm.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(vocabulary_file: Path) -> Tokenizer:
    return Tokenizer.load(vocabulary_file)


def task(kind: str = "mul", **more: Any) -> Task:
    return parse_task({"name": "test", "type": kind} | more, "test.yaml")


def make_row(inputs: tuple[int, ...] = (), **values: Any) -> Row:
    return Row(0, inputs, **values)


# Metrics


def text_score(score: Any, prediction: str, target: str) -> float:
    return round(score(prediction, target), 4)


def test_squads_scores() -> None:
    assert text_score(metrics.exact_match, "The  Cat!", "cat") == 1
    assert text_score(metrics.exact_match, "a cats", "cat") == 0
    assert text_score(metrics.word_f1, "the big black cat", "a black cat") == 0.8
    assert text_score(metrics.word_f1, "", "cat") == 0
    assert text_score(metrics.word_f1, "天安门", "天安门广场") == 0, (
        "Chinese has no blanks: all or nothing, as in GLM-130B"
    )
    assert text_score(metrics.character_f1, "天安门", "天安门广场") == 0.75
    assert text_score(metrics.character_f1, "in 1999 年", "1999年") == 0.8


def test_best_of_several_right_answers(tokenizer: Tokenizer) -> None:
    score = metrics.METRICS["EM"].of_row
    assert score is not None
    targets = tuple(encode(tokenizer, text) for text in ("a dog", "The cat"))
    assert score(Record(0, text="cat"), make_row(targets=targets), tokenizer) == 1
    assert score(Record(0, text="cat"), make_row(targets=()), tokenizer) == 0


def test_numbers_of_whole_files() -> None:
    records = [Record(0, loss=2.0, tokens=4, words=2, bytes=8), Record(0, 1, loss=1.0, tokens=2)]
    assert metrics.word_perplexity(records, []) == pytest.approx(math.exp(3 / 2))
    assert metrics.token_perplexity(records, []) == pytest.approx(math.exp(3 / 6))
    assert metrics.bits_a_byte(records, []) == pytest.approx(3 / 8 / math.log(2))
    assert metrics.word_perplexity([Record(0, loss=1e6, words=1)], []) == math.exp(20)
    assert math.isnan(metrics.bits_a_byte([Record(0, loss=1.0, tokens=1)], []))
    choices, labels = [1, 1, 0, 0, 1], [1, 0, 1, 0, 1]
    rows = [make_row(label=label) for label in labels]
    found = metrics.binary_f1([Record(0, choice=choice) for choice in choices], rows)
    assert found == pytest.approx(100 * 2 / 3)
    with pytest.raises(GLMError, match="'EM' is no metric of mul tasks"):
        metrics.find_metric("EM", "mul")


def test_length_normalisation(tokenizer: Tokenizer) -> None:
    row = make_row(inputs=(1,), choices=((2,), (3, 4, 5)), choice_sizes=(9, 10))
    answers = [Answer((2,), -2.0, "", "scored"), Answer((3, 4, 5), -2.1, "", "scored")]
    expected = {"none": 0, "tokens": 1, "bytes": 1}
    for how, choice in expected.items():
        kind = MultipleChoice(task(length_normalized=how), tokenizer, 64)
        assert kind.answered(row, kind.questions(row)[0], answers).choice == choice, how
    kind = MultipleChoice(task(length_normalized="bytes"), tokenizer, 64)
    with pytest.raises(GLMError, match="no length in bytes"):
        kind.record(make_row(inputs=(1,), choices=((2,), (3,))), kind.questions(row)[0], answers)


# Tasks of a class of their own


def test_crows_pairs(tokenizer: Tokenizer) -> None:
    kind = CrowsPairs(task(), tokenizer, 64)
    pairs = [
        (1, 1, "age", -5.0),
        (1, 2, "age", -6.0),
        (2, 1, "age", -9.0),
        (2, 2, "age", -6.0),
        (3, 1, "race", -1.0),
        (3, 2, "race", -1.0),
    ]
    rows = [make_row(raw={"pair_ID": pair, "sent_ID": sent, "bias_type": bias}) for pair, sent, bias, _ in pairs]
    records = [Record(number, choice=0, logprobs=[each[3]]) for number, each in enumerate(pairs)]
    assert kind.measure(records, rows) == {"CP": pytest.approx(200 / 3), "CP: age": 50.0, "CP: race": 100.0}
    with pytest.raises(GLMError, match="lacks pair_ID"):
        kind.measure(records[:1], [make_row()])


def test_stereoset(tokenizer: Tokenizer) -> None:
    kind = StereoSet(task(), tokenizer, 64)
    labels = ["stereotype", "anti-stereotype", "unrelated"]
    row = make_row(inputs=(1,), choices=((2, 3), (4,), (5,)), raw={"goal_label": labels, "bias_type": "gender"})
    answers = [
        Answer(choice, logprob, "", "scored") for choice, logprob in zip(row.choices, (-3.0, -2.0, -9.0), strict=True)
    ]
    assert kind.record(row, kind.questions(row)[0], answers).choice == 0, "by log-probability a token"
    records = [Record(number, choice=choice) for number, choice in enumerate((0, 0, 1, 2))]
    found = kind.measure(records, [row] * 4)
    assert (
        found["LMS"] == 75
        and found["SS"] == pytest.approx(200 / 3)
        and found["ICAT"] == pytest.approx(75 * (100 / 3) / 50)
    )
    assert found["LMS: gender"] == 75


def test_pile(tokenizer: Tokenizer) -> None:
    kind = Pile(task("lm"), tokenizer, 64)
    rows = [make_row(raw={"meta": {"pile_set_name": name}}) for name in ("A", "A", "B")]
    records = [Record(0, loss=1.0, bytes=2), Record(0, 1, loss=1.0), Record(1, loss=3.0, bytes=1)]
    expected = {"BPB": 5 / 3 / math.log(2), "BPB: A": 2 / 2 / math.log(2), "BPB: B": 3 / math.log(2)}
    assert kind.measure(records, rows) == pytest.approx(expected)


def test_lambada(tokenizer: Tokenizer) -> None:
    beams = {"sampling_strategy": "BeamSearchStrategy", "num_beams": 3, "max_gen_length": 5, "use_task_mask": True}
    kind = Lambada(task("gen", module="tasks.lambada.task.LAMBADA", **beams), tokenizer, 64)
    row = make_row(inputs=(5, 6), targets=(encode(tokenizer, "house"),))
    [question] = kind.questions(row)
    banned, starts = banned_tokens(tokenizer)
    assert question.sampling.banned_ids == banned and question.sampling.banned_starts == starts
    assert all(encode(tokenizer, mark) in starts for mark in ".,;!?'") and banned
    assert question.sampling.beams.padding == 32 - 4

    def found(*texts: str) -> Record:
        return kind.answered(row, question, [Answer(encode(tokenizer, text), -1.0, text, "stop") for text in texts])

    assert found("horse ran", "house . He").scores == {"Accuracy": 100.0}, "the beam that ends in punctuation"
    assert found("house ran", "horse of").scores == {"Accuracy": 100.0}, "else the best one's first word"
    assert found("House ran").scores == {"Accuracy": 0.0}
    assert len(found("a b", "c d").others) == 1
    icetk = Tokenizer(tokenizer.model, num_image_tokens=20000)
    assert 146010 in banned_tokens(icetk)[0] and (46010,) in banned_tokens(icetk)[1]


# Results


def test_a_result_comes_back_from_json_and_prints_as_the_reference() -> None:
    files = [
        FileResult("a/test.jsonl", "test", {"Accuracy": 40.0}, 10, 1.0, "a", truncated=2),
        FileResult("b/test.jsonl", "test", {"Accuracy": 60.0}, 30, 1.0, "b", prompt="p"),
    ]
    groups = {"test": group_spreads(files), "val": group_spreads([])}
    result = TaskResult(
        "CoLA",
        "mul",
        "a.yaml",
        "h",
        {"model": "m"},
        files,
        groups,
        group_spreads(files),
        12.34,
        "now",
        max_seq_length=512,
    )
    assert TaskResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert result_lines(result) == [
        "Evaluation results of task CoLA:",
        "    Group test Accuracy: max = 60.000, median = 50.000, average = 55.000",
        "    Group val: no file",
        "Group Overall Accuracy: max = 60.000, median = 50.000, average = 55.000",
        "    2 of 40 rows lost their beginning: 512 tokens are the most.",
        "Finish task CoLA in 12.3s.",
    ]
    two = group_spreads([FileResult("a", "all", {"EM": 1.0, "F1": 2.0}, 1, 1.0, "a")])
    assert group_lines("all", two) == [
        "      Group all: ",
        "        Metric EM: max = 1.000, median = 1.000, average = 1.000",
        "        Metric F1: max = 2.000, median = 2.000, average = 2.000",
    ]
    assert summary_lines([result]) == ["CoLA  40 rows  Accuracy 55.000"]
    for wrong in ({}, {"format": 99}, result.to_json() | {"surplus": 1}):
        with pytest.raises(GLMError):
            TaskResult.from_json(wrong)


def test_lines_of_rows_come_back() -> None:
    for record in (
        Record(3, choice=1, logprobs=[-1.0, -2.0], scores={"Accuracy": 100.0}, read=9),
        Record(3, ids=[4, 5], text="x", others=[[6]], reason="stop", truncated=True),
        Record(3, 2, loss=1.5, tokens=4, words=1, bytes=9),
    ):
        assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record
    with pytest.raises(GLMError):
        Record.from_json({"line": 1})
