"""Mixed load on one replica, without processes and sockets: scheduler, runner and sampler in a loop, as a worker has them.

Two questions. How much slower are `slots` requests of all kinds, each replaced by another one when it ends, than as many rows
that only decode? And how long do running rows wait for a token while a long prompt is read?
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

from engine.errors import GLMError
from engine.glm.blanks import Prompt
from engine.glm.model import GLM
from engine.glm.tokenizer import Tokenizer
from engine.serving.protocol import Limits, Request, Sampling
from engine.serving.runner import Runner
from engine.serving.sampling import Sampler
from engine.serving.scheduler import Plan, Scheduler
from engine.serving.slicing import Slicer
from engine.serving.text import never_generated

_PROMPTS, _ANSWERS = (16, 96), (64, 192)  # tokens of the mixed requests, from and to
_AT_MOST = 60.0  # seconds of mixed load


@dataclass(frozen=True, slots=True)
class Mixed:
    """Tokens a second of decoding alone and under mixed load; of a long prompt: its length, the seconds to read it while others
    run, and alone; gaps between two tokens of a running row meanwhile, in seconds."""

    steady_tokens_per_second: float
    mixed_tokens_per_second: float
    long_prompt: int
    long_seconds: float
    long_alone_seconds: float
    median_gap: float
    p95_gap: float
    longest_gap: float

    @property
    def share(self) -> float:
        return self.mixed_tokens_per_second / self.steady_tokens_per_second


class _Loop:
    """A replica's loop. Requests have random ids for prompts; nothing ends before its budget."""

    def __init__(self, model: GLM, tokenizer: Tokenizer, slots: int, gap: float, seed: int = 1) -> None:
        config = model.config
        self.tokenizer, self.random, self.positions = tokenizer, Random(seed), config.positions
        limits = Limits(config.name, "", "", "", "", config.positions, slots, config.vocabulary, config.parameters())
        slicer = Slicer(config.layers, gap) if gap else None
        self.scheduler = Scheduler(limits, tokenizer, slicer=slicer)
        self.runner = Runner(model, slots, config.positions)
        never = never_generated(tokenizer, config.vocabulary)
        self.sampler = Sampler(config.vocabulary, never, tokenizer.eop, model.device)
        self.made = self.number = 0

    def add(self, prompt: int, new: int) -> str:
        ids = tuple(self.random.randrange(300, self.tokenizer.vocabulary_size - 8) for _ in range(prompt + 1))
        self.number += 1
        name = str(self.number)
        sampling = Sampling(temperature=1.0, top_k=50, max_new_tokens=new, min_new_tokens=new, seed=self.number)
        self.scheduler.add(Request(name, Prompt(ids, tuple(range(prompt + 1)), prompt, prompt, 1), sampling))
        return name

    def add_any(self) -> str:
        return self.add(self.random.randint(*_PROMPTS), self.random.randint(*_ANSWERS))

    def step(self) -> tuple[Plan, list[str]]:
        """What ran, and the requests that ended."""
        plan = self.scheduler.plan()
        assert plan is not None
        began = time.perf_counter()
        outcome = self.runner.run(plan, self.sampler, self.tokenizer.end_ids)
        self.scheduler.measured(plan, time.perf_counter() - began)
        step = self.scheduler.book(plan, outcome)
        self.made += len(step.tokens)
        return plan, [end.id for end in step.ends]


def measure_mixed(model: GLM, tokenizer_folder: Path, slots: int, long_prompt: int, gap: float) -> Mixed:
    """tokenizer_folder: of a vocabulary that is no larger than the model's. gap: the slicer's, 0 for prompts read whole.

    GLMError bad_request for a prompt that the model has no positions for, or a vocabulary that is too large.
    """
    tokenizer = Tokenizer.load(tokenizer_folder)
    if tokenizer.vocabulary_size > model.config.vocabulary:
        message = (
            f"{model.config.name} has only {model.config.vocabulary} tokens for the vocabulary of {tokenizer_folder}."
        )
        raise GLMError("bad_request", message, field="mixed", limit=model.config.vocabulary)
    if long_prompt + 2 > model.config.positions:
        message = f"A prompt of {long_prompt} tokens is too long for {model.config.positions} positions."
        raise GLMError("bad_request", message, field="long_prompt", limit=model.config.positions - 2)
    steady, mixed = _throughput(_Loop(model, tokenizer, slots, gap), slots)
    alone = _alone(_Loop(model, tokenizer, 1, gap), long_prompt)
    seconds, gaps = _gaps(_Loop(model, tokenizer, slots, gap), slots, long_prompt)
    ordered = sorted(gaps)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return Mixed(steady, mixed, long_prompt, seconds, alone, statistics.median(gaps), p95, ordered[-1])


def _throughput(loop: _Loop, slots: int) -> tuple[float, float]:
    """The median step with all slots busy and nothing else to do; then all there is, over the whole time from the first such step
    on: the prompts that fill an empty replica are not a part of its load."""
    for _ in range(slots):
        loop.add_any()
    steps: list[float] = []
    began, before = time.perf_counter(), loop.made
    while loop.number < 4 * slots and time.perf_counter() - began < _AT_MOST:
        started, made = time.perf_counter(), loop.made
        plan, ended = loop.step()
        if len(plan.rows) == slots:
            if not steps:
                began, before = started, made
            steps.append(time.perf_counter() - started)
        for _ in ended:
            loop.add_any()
    return slots / statistics.median(steps), (loop.made - before) / (time.perf_counter() - began)


def _alone(loop: _Loop, prompt: int) -> float:
    loop.add(prompt, 1)
    began = time.perf_counter()
    loop.step()
    return time.perf_counter() - began


def _gaps(loop: _Loop, slots: int, prompt: int) -> tuple[float, list[float]]:
    """Seconds from a long prompt's arrival to its first token with all other slots decoding, and their gaps meanwhile."""
    for _ in range(slots - 1):
        loop.add(_PROMPTS[0], loop.positions - _PROMPTS[0] - 2)
    for _ in range(3 * slots):
        loop.step()
    long = loop.add(prompt, 1)
    began = last = time.perf_counter()
    gaps: list[float] = []
    while True:
        plan, ended = loop.step()
        now = time.perf_counter()
        if plan.rows:
            gaps.append(now - last)
            last = now
        if long in ended:
            if not gaps or not plan.rows:
                loop.step()
                gaps.append(time.perf_counter() - last)
            return now - began, gaps
