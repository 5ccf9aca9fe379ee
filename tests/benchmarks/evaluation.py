"""Evaluation of the same rows by the same weights in two ways: as GLM-130B's code does it, and as ours does.

    python -m tests.benchmarks.evaluation                            questions that the embedded model answers in a sentence
    python -m tests.benchmarks.evaluation TASK ... --data DIR        tasks as `python -m engine evaluate` takes them

GLM-130B's way, rebuilt in tests/padded_scheme.py: choices of a question in one sequence, micro-batches (of the task file's size)
in the file's order and padded to the longest and a multiple of 32, texts generated one prompt at a time. Ours: scheduler, runner
and sampler in a loop as a replica has them. Both in this process, in turns, on as many threads; answers are compared. Prints
rows a second of each and the ratio; on a busy machine look at the CPU time's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from engine.evaluation.kinds import Question, kind_of
from engine.evaluation.rows import read_rows, task_files
from engine.evaluation.task import Task, find_task_files, load_task, parse_task
from engine.glm import checkpoint
from engine.glm.allocator import keep_freed_memory, with_large_pages
from engine.glm.config import EMBEDDED, EMBEDDED_FOLDER, resolve_model
from engine.glm.model import GLM
from engine.glm.prepacked import prepack
from engine.glm.tokenizer import Tokenizer
from engine.serving.protocol import Limits, Request
from engine.serving.runner import Runner
from engine.serving.sampling import Sampler
from engine.serving.scheduler import Scheduler
from engine.serving.text import never_generated
from tests.padded_scheme import choice_logprobs, generate

ROWS, SLOTS, ROUNDS = 100, 16, 3
OWN = {
    "name": "questions",
    "type": "gen",
    "file_pattern": "held_out.jsonl",
    "use_task_mask": True,
    "prompts": {"chat": {"inputs": "问：{question}\n答：", "targets": "answer"}},
}
LEAST = {"mul": 1.5, "gen": 4.0}  # ratios that we want

Seconds = tuple[float, float]  # by the clock, of the CPU


class Replica:
    """Scheduler, runner and sampler of a model; weights prepacked, as a worker has them."""

    def __init__(self, folder: Path, slots: int) -> None:
        self.tokenizer = Tokenizer.load(folder)
        self.model = checkpoint.load(folder).requires_grad_(False)
        prepack(self.model)
        config = self.model.config
        self.never = never_generated(self.tokenizer, config.vocabulary)
        limits = Limits(config.name, "", "", "", "", config.positions, slots, config.vocabulary, 1)
        self.positions, self._slots = config.positions, slots
        self._scheduler = Scheduler(limits, self.tokenizer, queue=100_000)
        self._runner = Runner(self.model, slots, config.positions)
        self._sampler = Sampler(config.vocabulary, self.never, self.tokenizer.eop, self.model.device)

    def answer(self, questions: Sequence[Question]) -> list[Any]:
        """The chosen choice or the ids that were made, of each question."""
        found: dict[str, Any] = {}
        order = sorted(range(len(questions)), key=lambda number: -questions[number].tokens)
        for number in order:
            question = questions[number]
            self._scheduler.add(Request(str(number), question.prompt, question.sampling, choices=question.choices))
        while (plan := self._scheduler.plan()) is not None:
            outcome = self._runner.run(plan, self._sampler, self.tokenizer.end_ids)
            for end in self._scheduler.book(plan, outcome).ends:
                results = end.results
                scored = questions[int(end.id)].choices
                found[end.id] = largest([each.logprob for each in results]) if scored else list(results[0].ids)
        return [found[str(number)] for number in range(len(questions))]


def as_glm_130b(model: GLM, replica: Replica, task: Task, questions: Sequence[Question]) -> list[Any]:
    """The same of the other way."""
    if questions[0].choices:
        return [largest(logprobs) for logprobs in choice_logprobs(model, questions, task.micro_batch_size)]
    never = torch.tensor(replica.never)
    return [generate(model, each.prompt, each.sampling, replica.tokenizer.end_ids, never) for each in questions]


def largest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def timed(work: Callable[[], list[Any]]) -> tuple[list[Any], Seconds]:
    began, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, (time.perf_counter() - began, time.process_time() - cpu)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.evaluation", description=__doc__.split("\n\n")[0])
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="default: questions of the embedded model's own")
    parser.add_argument("--data", type=Path, default=EMBEDDED_FOLDER, metavar="DIR")
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--rows", type=int, default=ROWS, help=f"of each task (default: {ROWS})")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of both ways in turns (default: {ROUNDS})")
    parser.add_argument("--micro-batch", type=int, metavar="N", help="of GLM-130B's way (default: the task files')")
    parser.add_argument("--slots", type=int, default=SLOTS)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    environment = with_large_pages(os.environ)
    if os.environ.get("GLIBC_TUNABLES") != environment["GLIBC_TUNABLES"]:  # a worker starts with them
        os.execve(sys.executable, [sys.executable, "-m", "tests.benchmarks.evaluation", *arguments], environment)
    torch.set_num_threads(options.threads)
    folder = resolve_model(options.model)
    replica = Replica(folder, options.slots)
    model = checkpoint.load(folder).requires_grad_(False)
    prepack(model)
    keep_freed_memory()
    missed = 0
    for task in map(load_task, find_task_files(options.tasks)) if options.tasks else [parse_task(OWN, "here")]:
        if options.micro_batch is not None:
            task = task.model_copy(update={"micro_batch_size": options.micro_batch})
        if task.type not in LEAST or getattr(task, "sampling_strategy", "BaseStrategy") != "BaseStrategy":
            sys.stdout.write(f"{task.name}: only multiple choice and generation without beams are compared\n")
            continue
        missed += not compare(
            task, questions_of(task, options.data, replica, options.rows), replica, model, options.rounds
        )
    return 1 if missed else 0


def questions_of(task: Task, data: Path, replica: Replica, most: int) -> list[Question]:
    """The first rows of the task's first file that has any, in its order."""
    kind = kind_of(task)(task, replica.tokenizer, replica.positions)
    file = next(file for group in task_files(task, data).values() for file in group)
    rows = read_rows(file, task, replica.tokenizer, most)
    return [question for row in rows for question in kind.questions(row)]


def compare(task: Task, questions: list[Question], replica: Replica, model: GLM, rounds: int) -> bool:
    """Prints a line; whether the ratio is what we want."""
    theirs, ours = [], []
    for _ in range(rounds):
        expected, seconds = timed(lambda: as_glm_130b(model, replica, task, questions))
        theirs.append(seconds)
        found, seconds = timed(lambda: replica.answer(questions))
        ours.append(seconds)
    same = sum(one == other for one, other in zip(found, expected, strict=True))
    wall, cpu = (statistics.median(a[i] for a in theirs) / statistics.median(b[i] for b in ours) for i in (0, 1))
    rates = [len(questions) / statistics.median(each[0] for each in runs) for runs in (theirs, ours)]
    named = f"{task.name} ({task.type}, {len(questions)} rows, micro-batch {task.micro_batch_size})"
    speeds = f"GLM-130B's way {rates[0]:.2f} rows/s, ours {rates[1]:.2f}"
    ratios = f"{wall:.2f}x, by CPU time {cpu:.2f}x (wanted: {LEAST[task.type]}x)"
    sys.stdout.write(f"{named}: {speeds}: {ratios}; {same} answers the same\n")
    sys.stdout.flush()
    return max(wall, cpu) >= LEAST[task.type]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
