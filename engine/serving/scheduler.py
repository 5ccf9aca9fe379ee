"""Which rows run in the next step of a replica: continuous batching over cache slots. No torch, no clock, no I/O.

    scheduler.add(request); plan = scheduler.plan(); ... the model runs the plan ...; step = scheduler.book(plan, choices)

A plan is either prompts to read or one token for every running row; with both waiting they take turns, so that neither
arrivals nor running rows starve. Requests are admitted first in, first out, and only with slots for all their rows; a slot
has place for the longest sequence, so nothing that was admitted is ever preempted. The alternatives of a request are
admitted together, their prompt is read once. `cancel`, called between two steps, frees the slots at once.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.errors import GLMError
from engine.glm.tokenizer import Tokenizer
from engine.serving.protocol import Cancelled, Failed, Finished, Limits, Request, Result, Step, Token, check, uniform
from engine.serving.text import TextStream


class Ask(NamedTuple):
    """What the sampler must know about one row."""

    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seen: Iterable[int]  # ids under the repetition penalty
    banned: Iterable[int]
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
    def position(self) -> int:
        """The position id that it is read at."""
        return self.job.request.prompt.position(len(self.tokens) - 1)

    def ask(self, end_ids: tuple[int, ...]) -> Ask:
        sampling = self.job.request.sampling
        assert sampling.seed is not None
        banned = list(sampling.banned_ids)
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
    """A request that was admitted, and its rows (none when it only scores)."""

    request: Request
    rows: list[Row] = field(default_factory=list)
    largest_batch: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: `prompts` to read (their rows get a first token, choices are scored), or `rows` to take one token further."""

    prompts: tuple[Job, ...] = ()
    rows: tuple[Row, ...] = ()

    def sampled_rows(self) -> list[Row]:
        """Rows that get a token in this step, in the order of their choices."""
        return [row for job in self.prompts for row in job.rows] if self.prompts else list(self.rows)


class Scheduler:
    """See the module. `queue`: requests that may wait here; `prefill_tokens`: prompts are read together up to this many
    tokens in one step (a longer one is read alone), which bounds how long running rows wait for a token."""

    def __init__(self, limits: Limits, tokenizer: Tokenizer, *, queue: int = 1024, prefill_tokens: int = 512) -> None:
        self._limits, self._tokenizer = limits, tokenizer
        self._queue_limit, self._prefill_tokens = queue, prefill_tokens
        self._waiting: deque[Request] = deque()
        self._jobs: dict[str, Job] = {}  # admitted, by request id
        self._running: list[Row] = []  # read their prompt and not finished, by slot
        self._free = list(range(limits.slots))  # a heap: low slots first keeps the batch in few contiguous pieces
        self._decode_next = False

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._jobs

    @property
    def free_slots(self) -> int:
        return len(self._free)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def add(self, request: Request) -> None:
        """Take a request into the queue. Errors: those of `check`; queue_full."""
        assert request.id not in self._jobs and all(request.id != other.id for other in self._waiting)
        check(request, self._limits)
        if len(self._waiting) >= self._queue_limit:
            raise GLMError("queue_full", "Too many requests are waiting.", limit=self._queue_limit, retry_after_s=1.0)
        self._waiting.append(request)

    def cancel(self, request_id: str) -> Cancelled | None:
        """Forget a request and free its slots now; None if it isn't here (it ended already)."""
        job = self._jobs.get(request_id)
        if job is not None:
            self._drop(job)
            return Cancelled(request_id)
        for request in self._waiting:
            if request.id == request_id:
                self._waiting.remove(request)
                return Cancelled(request_id)
        return None

    def plan(self) -> Plan | None:
        """The next step, or None when there is nothing to do."""
        if self._running and (self._decode_next or not self._admissible()):
            self._decode_next = False
            return Plan(rows=tuple(self._running))
        prompts = self._admit()
        self._decode_next = True
        return Plan(prompts=tuple(prompts)) if prompts else None

    def _admissible(self) -> bool:
        return bool(self._waiting) and self._waiting[0].rows <= len(self._free)

    def _admit(self) -> list[Job]:
        jobs: list[Job] = []
        tokens = 0
        while self._admissible():
            request = self._waiting[0]
            tokens += len(request.prompt.ids) + sum(map(len, request.choices))
            if jobs and tokens > self._prefill_tokens:
                break
            self._waiting.popleft()
            job = Job(request)
            for alternative in range(request.rows):
                text = TextStream(self._tokenizer, request.sampling.stop, request.first_of_text)
                job.rows.append(Row(job, alternative, heapq.heappop(self._free), text))
            self._jobs[request.id] = job
            jobs.append(job)
        return jobs

    def book(self, plan: Plan, choices: list[Choice], scores: list[list[list[float]]]) -> Step:
        """Write down what a plan brought: `choices` for `plan.sampled_rows()`, and for every job of the plan that only
        scores, in order, the logprobs of each of its choices. Rows that end leave their slots."""
        step = Step()
        rows = plan.sampled_rows()
        assert len(rows) == len(choices)
        for row, choice in zip(rows, choices, strict=True):
            job = row.job
            if self._jobs.get(job.request.id) is not job:
                continue  # an alternative before it failed
            job.largest_batch = max(job.largest_batch, len(rows))
            if not choice.finite:
                self._drop(job)
                message = "The model gave infinite or undefined numbers for this text."
                step.ends.append(Failed(job.request.id, GLMError("non_finite_logits", message)))
                continue
            self._book_token(row, choice, step)
            if row.reason is not None:
                heapq.heappush(self._free, row.slot)
                if all(other.reason is not None for other in job.rows):
                    del self._jobs[job.request.id]
                    results = tuple(other.result() for other in job.rows)
                    step.ends.append(Finished(job.request.id, results, job.largest_batch))
        scored = [job for job in plan.prompts if job.request.choices]
        for job, logprobs in zip(scored, scores, strict=True):
            step.ends.append(self._book_scores(job, logprobs))
        alive = {*self._running, *rows}
        self._running = sorted(
            (row for row in alive if row.reason is None and self._jobs.get(row.job.request.id) is row.job),
            key=lambda row: row.slot,
        )
        return step

    def _book_token(self, row: Row, choice: Choice, step: Step) -> None:
        request = row.job.request
        text = ""
        if choice.token in self._tokenizer.end_ids:
            row.end_logprob, row.reason = choice.logprob, "stop"
        else:
            row.append(choice)
            text = row.text.push(choice.token)
            if row.text.stopped:
                row.reason = "stop_string"
            elif len(row.tokens) == request.sampling.max_new_tokens:
                row.reason = "length"
            step.tokens.append(Token(request.id, row.alternative, text, choice.token, choice.logprob))
        if row.reason is not None:
            rest = row.text.finish()
            if row.text.stopped:  # letting go of a held-back byte can complete a stop string
                row.reason = "stop_string"
            if rest:
                step.tokens.append(Token(request.id, row.alternative, rest, None, None))

    def _book_scores(self, job: Job, logprobs: list[list[float]]) -> Finished | Failed:
        request = job.request
        del self._jobs[request.id]
        if not all(value == value and abs(value) != float("inf") for choice in logprobs for value in choice):
            message = "The model gave infinite or undefined numbers for this text."
            return Failed(request.id, GLMError("non_finite_logits", message))
        results = []
        for ids, values in zip(request.choices, logprobs, strict=True):
            text = TextStream(self._tokenizer, (), request.first_of_text)
            ended = ids[-1] in self._tokenizer.end_ids
            shown, end = (ids[:-1], values[-1]) if ended else (ids, None)
            for token in shown:
                text.push(token)
            text.finish()
            results.append(Result(shown, tuple(values[: len(shown)]), tuple(text.pieces), "scored", end))
        return Finished(request.id, tuple(results), 1)

    def _drop(self, job: Job) -> None:
        del self._jobs[job.request.id]
        for row in job.rows:
            if row.reason is None:
                heapq.heappush(self._free, row.slot)
        self._running = [row for row in self._running if row.job is not job]
