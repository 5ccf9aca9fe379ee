"""Which rows run in the next step of a replica: continuous batching over cache slots. No torch, no clock, no I/O.

    scheduler.add(request); plan = scheduler.plan(); ... the model runs the plan ...; step = scheduler.book(plan, outcome)

A plan is either prompts to read or one token for every running row and beam; with both waiting they take turns, so that
neither arrivals nor running rows starve. Prompts that would keep running rows waiting for long are read some layers at a time
(slicing.py), with a step between two slices. Requests are admitted first in, first out, and only with all the slots that they
take; a slot has place for the longest sequence, so nothing that was admitted is ever preempted. The alternatives of a request
are admitted together, their prompt is read once; so is that of a beam search, whose beams share its slots. A prompt that a free
slot still holds (slots.py) isn't read at all: its rows run at once, beginning with the prompt's last token. `cancel`, called
between two steps, frees the slots at once.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

from engine.errors import GLMError
from engine.glm.tokenizer import Tokenizer
from engine.serving.beam import BeamSearch, Candidate
from engine.serving.job import Choice, Job, Row
from engine.serving.protocol import (
    Cancelled,
    Failed,
    Finished,
    Limits,
    Request,
    Result,
    Search,
    Step,
    Token,
    check,
)
from engine.serving.slicing import Slicer
from engine.serving.slots import Slots
from engine.serving.text import TextStream


class Outcome(NamedTuple):
    """What came of a plan: a choice for each of `Plan.sampled_rows`; for each of its jobs that only scores the logprobs of its
    choices; candidates for each of `Plan.searching_jobs`."""

    choices: list[Choice]
    scores: list[list[list[float]]]
    candidates: list[list[Candidate]]


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: `prompts` to read (their rows or searches get a first token, choices are scored), or `rows`, and the searches
    of `beams`, to take one token further.

    Prompts are read from layer `first` up to `last`, None for the end: only there anything comes of it. clears: slots of a
    reading that was given up; what was written there may be no number. begun: jobs that this plan is the first of; copies: of a
    prompt in the cache, for the rows of a job that found it there: (source slot, target slot, columns).
    """

    prompts: tuple[Job, ...] = ()
    rows: tuple[Row, ...] = ()
    beams: tuple[Job, ...] = ()
    first: int = 0
    last: int | None = None
    clears: tuple[int, ...] = ()
    begun: tuple[Job, ...] = ()
    copies: tuple[tuple[int, int, int], ...] = ()

    def sampled_rows(self) -> list[Row]:
        """Rows that get a token in this step, in the order of their choices."""
        return [row for job in self.read_jobs() for row in job.rows] if self.prompts else list(self.rows)

    def read_jobs(self) -> list[Job]:
        """Jobs whose prompts are read when this is done."""
        return list(self.prompts) if self.last is None else []

    def searching_jobs(self) -> list[Job]:
        """Jobs whose searches go a step further."""
        return [job for job in (self.read_jobs() if self.prompts else self.beams) if job.search is not None]

    @property
    def searches(self) -> list[BeamSearch]:
        return [job.search for job in self.searching_jobs() if job.search is not None]


class Scheduler:
    """See the module. `queue`: requests that may wait here; `prefill_tokens`: prompts are read together up to this many
    tokens in one step (a longer one is read alone); `slicer`: how long running rows may wait for that, None as long as it
    takes; `retain`: prompts that free slots still hold aren't read again."""

    def __init__(
        self,
        limits: Limits,
        tokenizer: Tokenizer,
        *,
        queue: int = 1024,
        prefill_tokens: int = 512,
        slicer: Slicer | None = None,
        retain: bool = False,
    ) -> None:
        self._limits, self._tokenizer = limits, tokenizer
        self._queue_limit, self._prefill_tokens, self._slicer = queue, prefill_tokens, slicer
        self._reading: tuple[Job, ...] = ()  # admitted, their prompts read up to layer `_layer`
        self._layer = 0
        self._clears: list[int] = []  # with the next plan
        self._waiting: deque[Request] = deque()
        self._jobs: dict[str, Job] = {}  # admitted, by request id
        self._running: list[Row] = []  # read their prompt and not finished, by slot
        self._searching: list[Job] = []  # the same
        self._free = Slots(limits.slots, retain=retain)
        self._begun: list[Job] = []  # with the next plan
        self._copies: list[tuple[int, int, int]] = []  # the same
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
            if job in self._reading and not any(self._jobs.get(one.request.id) is one for one in self._reading):
                self._clears += [slot for one in self._reading for slot in one.held_slots()]
                self._reading = ()
            return Cancelled(request_id)
        for request in self._waiting:
            if request.id == request_id:
                self._waiting.remove(request)
                return Cancelled(request_id)
        return None

    def plan(self) -> Plan | None:
        """The next step, or None when there is nothing to do."""
        running = bool(self._running or self._searching)
        if running and (self._decode_next or not (self._reading or self._admissible())):
            return self._step()
        if not self._reading:
            self._reading, self._layer = tuple(self._admit()), 0
            if not self._reading:  # nothing came, or only what needn't be read
                return self._step() if self._running else None
            if self._slicer is not None:
                self._slicer.begin(sum(_tokens(job.request) for job in self._reading))
        self._decode_next = True
        first, last = self._layer, None
        if running and self._slicer is not None:
            until = self._slicer.until(first)
            last = until if until < self._slicer.layers else None
        return Plan(prompts=self._reading, first=first, last=last, **self._news())

    def measured(self, plan: Plan, seconds: float) -> None:
        """How long a plan took."""
        if self._slicer is None:
            return
        if plan.prompts:
            self._slicer.measured((self._slicer.layers if plan.last is None else plan.last) - plan.first, seconds)
        else:
            self._slicer.stepped(seconds)

    def _step(self) -> Plan:
        self._decode_next = False
        return Plan(rows=tuple(self._running), beams=tuple(self._searching), **self._news())

    def _news(self) -> dict[str, Any]:
        """What waited for the next plan."""
        news = {"clears": tuple(self._clears), "begun": tuple(self._begun), "copies": tuple(self._copies)}
        self._clears, self._begun, self._copies = [], [], []
        return news

    def _admissible(self) -> bool:
        return bool(self._waiting) and self._waiting[0].slots(self._limits.positions) <= len(self._free)

    def _admit(self) -> list[Job]:
        jobs: list[Job] = []
        tokens = 0
        while self._admissible():
            request = self._waiting[0]
            tokens += _tokens(request)
            if jobs and tokens > self._prefill_tokens:
                break
            self._waiting.popleft()
            job = Job(request)
            columns = self._limits.positions
            continued = request.sampling.beams is None and not request.choices
            slots, held = self._free.take(request.slots(columns), request.prompt if continued else None)
            self._begun.append(job)
            if request.sampling.beams is not None and not request.choices:
                job.search = BeamSearch(request, slots, columns, self._tokenizer.end_ids, self._tokenizer)
            else:
                for alternative, slot in enumerate(slots):
                    text = TextStream(self._tokenizer, request.sampling.stop, request.first_of_text)
                    job.rows.append(Row(job, alternative, slot, text))
            self._jobs[request.id] = job
            if held:
                tokens -= _tokens(request)
                self._copies += [(slots[0], slot, len(request.prompt.ids)) for slot in slots[1:]]
                self._running = sorted((*self._running, *job.rows), key=lambda row: row.slot)
            else:
                jobs.append(job)
        return jobs

    def book(self, plan: Plan, outcome: Outcome) -> Step:
        """Write down what a plan brought. Rows and searches that end leave their slots."""
        step = Step()
        if plan.prompts:
            if plan.last is not None:
                self._layer = plan.last
                return step
            self._reading = ()
        rows = plan.sampled_rows()
        batch = len(rows) + sum(search.rows for search in plan.searches)
        for row, choice in zip(rows, outcome.choices, strict=True):
            job = row.job
            if self._jobs.get(job.request.id) is not job:
                continue  # an alternative before it failed, or it was cancelled while its prompt was read
            job.largest_batch = max(job.largest_batch, batch)
            if not choice.finite:
                self._fail(job, step)
                continue
            self._book_token(row, choice, step)
            if row.reason is not None:
                self._free.give(row.slot, job.request.prompt)
                if all(other.reason is not None for other in job.rows):
                    del self._jobs[job.request.id]
                    results = tuple(other.result() for other in job.rows)
                    step.ends.append(Finished(job.request.id, results, job.largest_batch))
        for job, candidates in zip(plan.searching_jobs(), outcome.candidates, strict=True):
            if self._jobs.get(job.request.id) is not job:
                continue  # it was cancelled while its prompt was read
            job.largest_batch = max(job.largest_batch, batch)
            self._book_candidates(job, candidates, step)
        scored = [job for job in plan.prompts if job.request.choices]
        for job, logprobs in zip(scored, outcome.scores, strict=True):
            if self._jobs.get(job.request.id) is not job:
                continue
            step.ends.append(self._book_scores(job, logprobs))
        alive = {*self._running, *rows}
        self._running = sorted(
            (row for row in alive if row.reason is None and self._jobs.get(row.job.request.id) is row.job),
            key=lambda row: row.slot,
        )
        searching = dict.fromkeys((*self._searching, *plan.searching_jobs()))
        self._searching = [job for job in searching if self._jobs.get(job.request.id) is job]
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

    def _book_candidates(self, job: Job, candidates: list[Candidate], step: Step) -> None:
        assert job.search is not None
        if not all(candidate.finite for candidate in candidates):
            self._fail(job, step)
            return
        job.search.book(candidates)
        if job.search.done:
            self._drop(job)
            step.ends.append(Finished(job.request.id, job.search.results(), job.largest_batch))
        elif beams := job.search.news():
            step.searches.append(Search(job.request.id, beams))

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

    def _fail(self, job: Job, step: Step) -> None:
        self._drop(job, sound=False)
        message = "The model gave infinite or undefined numbers for this text."
        step.ends.append(Failed(job.request.id, GLMError("non_finite_logits", message)))

    def _drop(self, job: Job, *, sound: bool = True) -> None:
        """sound: what its rows have read is in order."""
        del self._jobs[job.request.id]
        read = {row.slot for row in job.rows if row.tokens} if sound else ()
        for slot in job.held_slots():
            self._free.give(slot, job.request.prompt if slot in read else None)
        self._running = [row for row in self._running if row.job is not job]
        self._searching = [other for other in self._searching if other is not job]


def _tokens(request: Request) -> int:
    """That are read with a request's prompt."""
    return len(request.prompt.ids) + sum(map(len, request.choices))
