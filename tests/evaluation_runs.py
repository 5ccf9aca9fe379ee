"""Recorded runs of GLM-130B's evaluation, run by ours: what each row becomes, every number, every prediction, the metrics."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.evaluation import prompts
from engine.evaluation.asker import answer_of
from engine.evaluation.kinds import Answer, Kind, Question, kind_of
from engine.evaluation.result import TaskResult
from engine.evaluation.rows import TaskFile, read_rows, task_files
from engine.evaluation.runner import Evaluation
from engine.evaluation.task import Task, parse_task
from engine.serving.protocol import Request
from tests.padded_scheme import Sample, choice_logprobs, choice_sample, generate, padded, prompt_sample
from tests.reference import Engine, PaddedTokenizer

LOGPROB_TOLERANCE = 5e-4  # of a token; of a sum, for each
LOSS_TOLERANCE = 2e-3


class IdTokenizer(PaddedTokenizer):
    """Reads the recorded texts: ids separated by blanks or commas, or a mask."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in re.split("[ ,]+", text.strip())]

    def decode(self, ids: Iterable[int], first_of_text: bool = True) -> str:
        return " ".join(map(str, ids))


class EngineAsker:
    """Asks scheduler, runner and sampler of a model, one question at a time. Nothing is banned, as in the recorded code."""

    replicas = width = 1

    def __init__(self, engine: Engine, tokenizer: PaddedTokenizer) -> None:
        self.engine, self.tokenizer, self.limits = engine, tokenizer, engine.limits

    async def ask(self, question: Question) -> list[Answer]:
        [results] = self.engine.finish([Request("", question.prompt, question.sampling, choices=question.choices)])
        return list(map(answer_of, results))


def check_run(folder: Path, run: dict[str, Any], engine: Engine, model_folder: Path, out: Path) -> None:
    """folder: of the recorded inputs; model_folder: has the vocabulary."""
    task = parse_task(run["config"], run["name"])
    tokenizer = IdTokenizer.load(model_folder)
    kind = kind_of(task)(task, tokenizer, engine.limits.positions)
    [file] = task_files(task, folder)["test"]
    questions = [question for row in read_rows(file, task, tokenizer) for question in kind.questions(row)]
    assert len(questions) == run["num_samples"]
    {"mul": check_choices, "gen": check_prompts, "lm": check_windows}[task.type](questions, run)
    check_rebuilt_scheme(engine, task, questions, run)
    evaluation = Evaluation(EngineAsker(engine, tokenizer), folder, out, lambda event: None)
    result = asyncio.run(evaluation.run(task, "recorded.yaml"))
    check_numbers(result, kind, out, file, run)


def check_rebuilt_scheme(engine: Engine, task: Task, questions: Sequence[Question], run: dict[str, Any]) -> None:
    """What benchmarks compare with gives the recorded numbers."""
    if task.type == "mul":
        found = choice_logprobs(engine.model, questions, task.micro_batch_size)
        expected = [logprobs for batch in run["batches"] for logprobs in batch["choice_log_probs"]]
        for ours, recorded in zip(found, expected, strict=True):
            assert ours == pytest.approx(recorded, abs=8 * LOGPROB_TOLERANCE), run["name"]
    elif run["config"].get("sampling_strategy") == "BaseStrategy":
        none, ends = torch.empty(0, dtype=torch.long), engine.tokenizer.end_ids
        made = [generate(engine.model, each.prompt, each.sampling, ends, none) for each in questions]
        assert made == run["predictions"], run["name"]


def check_choices(questions: Sequence[Question], run: dict[str, Any]) -> None:
    single = all(batch["is_single_token"] for batch in run["batches"])
    samples = [choice_sample(question, single) for question in questions]
    for sample, question, recorded in zip(samples, questions, run["samples"], strict=True):
        check_sample(sample, recorded)
        if single:
            assert [choice for [choice] in question.choices] == recorded["choices"]
            assert {tuple(places) for places in sample.places} == {tuple(recorded["choice_target_ids"])}
        else:
            assert [list(choice) for choice in question.choices] == recorded["choices"]
            assert sample.places == recorded["choice_target_ids"]
    check_batches(samples, run)


def check_prompts(questions: Sequence[Question], run: dict[str, Any]) -> None:
    samples = [prompt_sample(question.prompt) for question in questions]
    for sample, question, recorded in zip(samples, questions, run["samples"], strict=True):
        check_sample(sample, recorded)
        targets = [question.prompt.position(index) for index in range(run["config"]["max_gen_length"])]
        assert targets == recorded["target_position_ids"]
        assert len(question.prompt.ids) == recorded["context_length"]
        assert prompts.padding(question.prompt) == len(run["batches"][questions.index(question)]["tokens"][0]) - len(
            question.prompt.ids
        )
    check_batches(samples, run)


def check_windows(questions: Sequence[Question], run: dict[str, Any]) -> None:
    for question, recorded, batch in zip(questions, run["samples"], run["batches"], strict=True):
        sample = choice_sample(question, single=False)
        assert [sample.tokens] == batch["tokens"] and [sample.positions] == batch["position_ids"]
        hidden = ["".join("01"[not seen] for seen in row) for row in sample.visible.tolist()]
        assert hidden == recorded.get("attention_mask_1_is_masked", hidden)
        [targets], [judged] = batch["targets"], batch["loss_masks"]
        assert [token for token, one in zip(targets, judged, strict=True) if one] == list(question.choices[0])
        assert sample.places[0] == [place for place, one in enumerate(judged) if one]


def check_sample(sample: Sample, recorded: dict[str, Any]) -> None:
    assert sample.tokens == recorded["tokens"] and sample.positions == recorded["position_ids"]
    visible = ["".join("01"[seen] for seen in row) for row in sample.visible.tolist()]
    assert visible == recorded["attention_mask_1_is_visible"]


def check_batches(samples: list[Sample], run: dict[str, Any]) -> None:
    """As padded by the recorded code."""
    start = 0
    for batch in run["batches"]:
        size = len(batch["tokens"])
        tokens, positions, _ = padded(samples[start : start + size])
        assert tokens.tolist() == batch["tokens"] and positions.tolist() == batch["position_ids"]
        start += size
    assert start == len(samples)


def check_numbers(result: TaskResult, kind: Kind, out: Path, file: TaskFile, run: dict[str, Any]) -> None:
    [measured] = result.files
    assert measured.count == run["num_samples"] and measured.name == file.name
    [path] = out.glob(f"*/*/{measured.rows}")
    records = read_records(path)
    if result.type == "mul":
        expected = [logprobs for batch in run["batches"] for logprobs in batch["choice_log_probs"]]
        for record, logprobs in zip(records, expected, strict=True):
            assert record["logprobs"] == pytest.approx(logprobs, abs=8 * LOGPROB_TOLERANCE), run["name"]
    if result.type == "lm":
        losses = [record["loss"] for record in records]
        assert losses == pytest.approx(run["predictions"], abs=LOSS_TOLERANCE), run["name"]
        assert sum(record["words"] for record in records) == run["num_original_tokens"]
    else:
        assert [record["prediction"] for record in records] == run["predictions"], run["name"]
    assert measured.metrics == pytest.approx(run["metrics"], rel=1e-4), run["name"]
    assert result.groups["test"].keys() == run["metrics"].keys()


def read_records(path: Path) -> list[dict[str, Any]]:
    """A rows file in the order of its rows."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(records, key=lambda record: (record["row"], record["part"]))
