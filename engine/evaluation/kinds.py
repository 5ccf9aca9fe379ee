"""The three types of tasks: what each asks of the model for a row, and what it makes of the answers. Torch-free.

A task file's `module` names a class derived from one of these. It overrides what is special to its task: `metrics` (by name, see
metrics.py), `questions`, `record`, or `measure`, whose numbers may have any names.
"""

from __future__ import annotations

import importlib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from engine.errors import GLMError
from engine.evaluation import prompts
from engine.evaluation.metrics import Metric, find_metric
from engine.evaluation.record import Record
from engine.evaluation.rows import Row
from engine.evaluation.task import (
    MODULES,
    STRATEGIES,
    GenerationTask,
    LanguageModelTask,
    MultipleChoiceTask,
    Task,
)
from engine.glm.blanks import Prompt
from engine.glm.tokenizer import Tokenizer
from engine.serving.protocol import Beams, Sampling

AnyTask = TypeVar("AnyTask", bound=Task)

_SCORING = Sampling(seed=0)


@dataclass(frozen=True, slots=True)
class Question:
    """What goes to the model. row, part: see record.Record. choices: to be scored; without any an answer is made by `sampling`."""

    row: int
    part: int
    prompt: Prompt
    choices: tuple[tuple[int, ...], ...] = ()
    sampling: Sampling = _SCORING
    truncated: bool = False

    @property
    def tokens(self) -> int:
        """That go through the model at most: what questions are sorted by."""
        made = 0 if self.choices else (self.sampling.max_new_tokens or 0)
        return len(self.prompt.ids) + sum(map(len, self.choices)) + made


@dataclass(frozen=True, slots=True)
class Answer:
    """One scored choice, or one answer that was made (of beams, best first). logprob: of all of it, an end token included."""

    ids: tuple[int, ...]
    logprob: float
    text: str
    reason: str


class Kind(Generic[AnyTask]):
    """positions: the most tokens that the model takes."""

    task_class: ClassVar[type[Task]]

    def __init__(self, task: AnyTask, tokenizer: Tokenizer, positions: int) -> None:
        self.task, self.tokenizer = task, tokenizer
        self.longest = min(task.max_seq_length, positions)
        self._metrics = self.metrics()

    @property
    def row_metrics(self) -> list[str]:
        """Those that are means of the rows' scores."""
        return [name for name, metric in self._metrics.items() if metric.of_row is not None]

    def metrics(self) -> dict[str, Metric]:
        return {name: find_metric(name, self.task.type) for name in self.task.metrics}

    def questions(self, row: Row) -> list[Question]:
        """GLMError bad_data for a row that can't be asked."""
        raise NotImplementedError

    def record(self, row: Row, question: Question, answers: Sequence[Answer]) -> Record:
        raise NotImplementedError

    def answered(self, row: Row, question: Question, answers: Sequence[Answer]) -> Record:
        """The record with what all kinds have: scores, tokens read."""
        record = self.record(row, question, answers)
        record.read = len(question.prompt.ids) + sum(len(answer.ids) for answer in answers)
        record.truncated = question.truncated
        for name, metric in self._metrics.items():
            if metric.of_row is not None:
                record.scores[name] = 100.0 * metric.of_row(record, row, self.tokenizer)
        return record

    def measure(self, records: Sequence[Record], rows: Sequence[Row]) -> dict[str, float]:
        """A file's numbers. records: in the order of rows (and windows); rows: one for each record."""
        found = {}
        for name, metric in self._metrics.items():
            if metric.of_file is not None:
                found[name] = metric.of_file(records, rows)
            elif records:
                found[name] = statistics.fmean(record.scores[name] for record in records)
        return {name: value for name, value in found.items() if not math.isnan(value)}


class MultipleChoice(Kind[MultipleChoiceTask]):
    """All choices of a row share one reading of its text; the one of the largest log-probability is the answer."""

    task_class = MultipleChoiceTask

    def questions(self, row: Row) -> list[Question]:
        text = prompts.choice_text(row, self.task, self.longest)
        prompt = prompts.masked(text, self.tokenizer, gmask=self.task.use_task_mask)
        return [Question(row.number, 0, prompt, row.choices, truncated=len(text) < len(row.inputs))]

    def record(self, row: Row, question: Question, answers: Sequence[Answer]) -> Record:
        logprobs = [answer.logprob for answer in answers]
        values = [value / length for value, length in zip(logprobs, self._lengths(row), strict=True)]
        return Record(row.number, choice=values.index(max(values)), logprobs=logprobs)

    def _lengths(self, row: Row) -> Sequence[int]:
        if self.task.length_normalized == "tokens":
            return [len(choice) for choice in row.choices]
        if self.task.length_normalized == "bytes":
            if len(row.choice_sizes) != len(row.choices) or not all(row.choice_sizes):
                message = f"Task {self.task.name}: choices that are ids have no length in bytes."
                raise GLMError("bad_data", message, field="length_normalized")
            return row.choice_sizes
        return [1] * len(row.choices)


class Generation(Kind[GenerationTask]):
    """The most likely token each time, or a beam search as GLM-130B's evaluation has it."""

    task_class = GenerationTask
    keeps_beams = False  # all of a search's answers in the record, not only the best

    def questions(self, row: Row) -> list[Question]:
        text = prompts.answer_text(row, self.task, self.longest)
        prompt = prompts.masked(
            text, self.tokenizer, gmask=self.task.use_task_mask, unidirectional=self.task.unidirectional
        )
        cut = len(text) < len(row.inputs)
        return [Question(row.number, 0, prompt, sampling=self.sampling(prompt), truncated=cut)]

    def sampling(self, prompt: Prompt) -> Sampling:
        task = self.task
        lengths = {"min_new_tokens": task.min_gen_length, "max_new_tokens": task.max_gen_length, "seed": 0}
        if task.sampling_strategy == STRATEGIES[0]:
            return Sampling(temperature=0.0, stop=tuple(task.end_tokens), **lengths)
        beams = Beams(task.num_beams, task.length_penalty, padding=prompts.padding(prompt))
        # GLM-130B looks for "n-grams" of one token where none can be: it bans nothing then.
        repeated = task.no_repeat_ngram_size if task.no_repeat_ngram_size > 1 else 0
        return Sampling(beams=beams, no_repeat_ngram=repeated, **lengths)

    def record(self, row: Row, question: Question, answers: Sequence[Answer]) -> Record:
        best = answers[0]
        # A text that ended the answer is no part of it, though some of its tokens' texts may be.
        text = best.text if best.reason == "stop_string" else self.tokenizer.decode(best.ids)
        others = [list(answer.ids) for answer in answers[1:]] if self.keeps_beams else []
        return Record(row.number, ids=list(best.ids), text=text, others=others, reason=best.reason)


class LanguageModel(Kind[LanguageModelTask]):
    """Each window of a document is a text to score."""

    task_class = LanguageModelTask

    def questions(self, row: Row) -> list[Question]:
        found = prompts.windows(row.inputs, self.task, self.tokenizer, self.longest)
        return [Question(row.number, part, window.prompt, (window.text,)) for part, window in enumerate(found)]

    def record(self, row: Row, question: Question, answers: Sequence[Answer]) -> Record:
        first = question.part == 0  # a document's words and bytes count once
        return Record(
            row.number,
            question.part,
            loss=-answers[0].logprob,
            tokens=len(question.choices[0]),
            words=row.words if first else 0,
            bytes=row.size if first else 0,
        )


KINDS: dict[str, type[Kind]] = {"mul": MultipleChoice, "gen": Generation, "lm": LanguageModel}


def kind_of(task: Task) -> type[Kind]:
    """The class of its type, or the one that `module` names. GLMError bad_data if that can't be had."""
    name = MODULES.get(task.module, task.module) if task.module is not None else None
    base = KINDS[task.type]
    if name is None:
        return base
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        message = f"Task {task.name}: the class {task.module} can't be had: {error}."
        raise GLMError("bad_data", message, field="module") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        message = f"Task {task.name}: {task.module} is no class of a {task.type} task."
        raise GLMError("bad_data", message, field="module")
    return found
