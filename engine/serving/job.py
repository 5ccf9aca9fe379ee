"""An admitted request and its running sequences: what each asks the sampler for, and what it has got so far. No torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.serving.beam import BeamSearch
from engine.serving.protocol import Request, Result, uniform
from engine.serving.text import TextStream


class Ask(NamedTuple):
    """What the sampler must know about one row."""

    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seen: Collection[int]  # ids under the repetition penalty
    banned: Collection[int]
    uniform: float  # in [0, 1)
    logprobs: int


class Choice(NamedTuple):
    """What the sampler chose for one row; `finite` is False where the logits had inf or nan."""

    token: int
    logprob: float
    finite: bool
    top: tuple[tuple[int, float], ...]


class Row:
    """One running sequence: an alternative of a request in a cache slot."""

    __slots__ = (
        "job",
        "alternative",
        "slot",
        "tokens",
        "logprobs",
        "top",
        "text",
        "end_logprob",
        "reason",
        "_ngrams",
        "_seen",
    )

    def __init__(self, job: Job, alternative: int, slot: int, text: TextStream) -> None:
        self.job, self.alternative, self.slot, self.text = job, alternative, slot, text
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.top: list[tuple[tuple[int, float], ...]] = []
        self.end_logprob: float | None = None
        self.reason: str | None = None  # set when the row is finished
        self._ngrams: dict[tuple[int, ...], list[int]] = {}
        self._seen = set(job.request.prompt.ids) if job.request.sampling.repetition_penalty != 1.0 else set()

    # The three numbers of a decode step, for the last token made: which are never the same thing.
    @property
    def column(self) -> int:
        """Where its key and value go in the slot; all columns up to this one are visible."""
        return len(self.job.request.prompt.ids) + len(self.tokens) - 1

    @property
    def last_token(self) -> int:
        """Before the first one is made, of a prompt that was there already, it is the prompt's own."""
        return self.tokens[-1] if self.tokens else self.job.request.prompt.ids[-1]

    @property
    def position(self) -> int:
        """The position id that it is read at."""
        prompt = self.job.request.prompt
        return prompt.position(len(self.tokens) - 1) if self.tokens else prompt.positions[-1]

    def ask(self, end_ids: tuple[int, ...]) -> Ask:
        sampling = self.job.request.sampling
        assert sampling.seed is not None
        banned = list(sampling.banned_ids)
        if sampling.banned_starts:
            banned += sampling.banned_next(tuple(self.tokens))
        if len(self.tokens) < sampling.min_new_tokens:
            banned += end_ids
        if sampling.no_repeat_ngram:
            banned += self._ngrams.get(self._ngram_prefix(), ())
        return Ask(
            sampling.temperature,
            sampling.top_k,
            sampling.top_p,
            sampling.repetition_penalty,
            self._seen,
            banned,
            uniform(sampling.seed, self.alternative, len(self.tokens)),
            sampling.logprobs,
        )

    def append(self, choice: Choice) -> None:
        sampling = self.job.request.sampling
        if sampling.no_repeat_ngram:
            self._ngrams.setdefault(self._ngram_prefix(), []).append(choice.token)
        if sampling.repetition_penalty != 1.0:
            self._seen.add(choice.token)
        self.tokens.append(choice.token)
        self.logprobs.append(choice.logprob)
        if sampling.logprobs:
            self.top.append(choice.top)

    def _ngram_prefix(self) -> tuple[int, ...]:
        """The last n-1 tokens, prompt included."""
        length = self.job.request.sampling.no_repeat_ngram - 1
        if length == 0:
            return ()
        tail = self.tokens[-length:]
        missing = length - len(tail)
        return (*self.job.request.prompt.ids[-missing:], *tail) if missing else tuple(tail)

    def result(self) -> Result:
        assert self.reason is not None
        return Result(
            tuple(self.tokens),
            tuple(self.logprobs),
            tuple(self.text.pieces),
            self.reason,
            self.end_logprob,
            tuple(self.top),
        )


@dataclass(slots=True, eq=False)
class Job:
    """A request that was admitted, and its rows or its search (neither when it only scores)."""

    request: Request
    rows: list[Row] = field(default_factory=list)
    search: BeamSearch | None = None
    largest_batch: int = 0

    @property
    def slot(self) -> int | None:
        """Where its prompt is read to."""
        return self.rows[0].slot if self.rows else self.search.slots[0] if self.search is not None else None

    def held_slots(self) -> list[int]:
        """Its slots, without those of rows that have ended: they may be another's by now."""
        own = [row.slot for row in self.rows if row.reason is None]
        return own + list(self.search.slots if self.search is not None else ())
