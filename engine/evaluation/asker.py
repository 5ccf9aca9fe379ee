"""Who answers questions: a pool of replicas in this process, or (server.py) a running server's. Torch-free.

A question whose replica died is asked again, and one that was refused because the queue was full a little later; any other error
ends the run, with all answers so far kept.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from engine.errors import GLMError
from engine.evaluation.kinds import Answer, Question
from engine.glm.tokenizer import Tokenizer
from engine.serving.pool import Pool
from engine.serving.protocol import MAX_CHOICES, Cancelled, Finished, Limits, Request, Result

_AGAIN = ("queue_full", "overloaded", "worker_died")
MOST_TRIES = 8
_LONGEST_PAUSE = 30.0  # seconds


class Asker(Protocol):
    """limits: of the model that answers, which has so many replicas. width: questions to ask at the same time."""

    limits: Limits
    tokenizer: Tokenizer
    replicas: int
    width: int

    async def ask(self, question: Question) -> list[Answer]:
        """One answer for each choice, or those made, best first. GLMError."""
        ...


class PoolAsker:
    """Asks a pool that is started."""

    def __init__(self, pool: Pool, tokenizer: Tokenizer) -> None:
        self._pool, self.tokenizer, self.limits = pool, tokenizer, pool.require_limits()
        self.replicas = sum(not each["leaving"] for each in pool.status()["replicas"])
        # Enough that a replica always has a question that waits; scoring takes no slots, so there it is more than one batch.
        self.width = self.replicas * max(32, 2 * self.limits.slots)
        self._numbers = itertools.count()

    async def ask(self, question: Question) -> list[Answer]:
        return await in_parts(question, lambda part: persistently(lambda: self._once(part)))

    async def _once(self, question: Question) -> list[Answer]:
        name = f"evaluation-{next(self._numbers)}"
        stream = self._pool.stream(Request(name, question.prompt, question.sampling, choices=question.choices))
        try:
            async for event in stream:
                if isinstance(event, Finished):
                    return list(map(answer_of, event.results))
                if isinstance(event, Cancelled):
                    break
        except asyncio.CancelledError:
            self._pool.cancel_request(name)
            raise
        raise GLMError("worker_died", "A question was cancelled.")


def answer_of(result: Result) -> Answer:
    return Answer(result.ids, result.logprob, result.text, result.reason)


async def in_parts(question: Question, ask: Callable[[Question], Awaitable[list[Answer]]]) -> list[Answer]:
    """Asks for more choices than a request can have by several, one after the other."""
    if len(question.choices) <= MAX_CHOICES:
        return await ask(question)
    found: list[Answer] = []
    for choices in _batches(question.choices):
        part = Question(question.row, question.part, question.prompt, choices, question.sampling)
        found += await ask(part)
    return found


def _batches(choices: Sequence[tuple[int, ...]]) -> list[tuple[tuple[int, ...], ...]]:
    return [tuple(choices[start : start + MAX_CHOICES]) for start in range(0, len(choices), MAX_CHOICES)]


async def persistently(ask: Callable[[], Awaitable[list[Answer]]]) -> list[Answer]:
    """See the module."""
    for attempt in itertools.count(1):
        try:
            return await ask()
        except GLMError as error:
            if error.kind not in _AGAIN or attempt == MOST_TRIES:
                raise
            await asyncio.sleep(min(_LONGEST_PAUSE, error.retry_after_s or 0.1 * 2**attempt))
    raise AssertionError("the loop has no end")
