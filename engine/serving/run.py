"""One run of `generate`: from an accepted job to its last event. Torch-free."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace

from engine.errors import GLMError
from engine.glm.blanks import Document, Mask
from engine.glm.filling import Filling
from engine.glm.tokenizer import Tokenizer
from engine.serving import events, protocol
from engine.serving.events import Alternative, Beams, BeamText, Blank, Delta, Done, Error, Event, TokenText, Usage
from engine.serving.pool import Pool
from engine.serving.protocol import Beam, Cancelled, Finished, Limits, Request, Result, Sampling, Search
from engine.serving.stream import Queued, Started, Stream

# New tokens of a blank when the request doesn't say: a few words, a sentence, an answer.
DEFAULT_NEW_TOKENS = {"[MASK]": 32, "[sMASK]": 64, "[gMASK]": 256}
# Places kept for each blank that is still to come.
_KEPT_FOR_A_BLANK = 8


@dataclass(frozen=True, slots=True)
class Job:
    """What to do: fill `targets`, blanks of `document`, in order; or, with as many `answers`, score those in their places."""

    document: Document
    targets: tuple[Mask, ...]
    sampling: Sampling
    alternatives: int = 1
    whole_text: bool = True  # the run's text is the document with its blanks filled; else the fill alone
    own_text: bool = False  # the fill begins a text of its own, as an answer does
    dropped_messages: int = 0
    answers: tuple[str, ...] = ()
    total_length: int | None = None  # of a prompt and its answer in tokens; None: what the model takes


class Run:
    """Iterate over it, once, for its events; the last one is Done, Cancelled or Error. Made by `generate`'s functions.

    `seed` is the one in use, `prompt_tokens` counts the first prompt, `limits` are those that it was checked against.
    """

    def __init__(self, pool: Pool, tokenizer: Tokenizer, job: Job, run_id: str | None = None) -> None:
        """Check the job and queue its first blank. Errors: those of `Pool.stream`; nothing is left behind then."""
        self.id = run_id or uuid.uuid4().hex
        self.limits: Limits = pool.require_limits()
        protocol.check_sampling(job.sampling, self.limits)
        seed = job.sampling.seed
        self.seed: int = secrets.randbelow(2**32) if seed is None else seed
        self.cancelled = False
        self._pool, self._tokenizer, self._job = pool, tokenizer, job
        self._filling = Filling(job.document, tokenizer)
        self._at_work: Mask | None = None
        self._fill = ""  # alternative 0 of the blank at work, or of the last one
        self._accepted_at = time.monotonic()
        self._told_started = False
        self._prompt_tokens = self._new_tokens = self._largest_batch = 0
        self._active_seconds = 0.0
        self._first_token_seconds: float | None = None
        self._made: list[tuple[int, float]] = []  # (token, logprob) of alternative 0 of the blank at work
        self._others_made = 0  # tokens of its other alternatives
        self._fingerprint = self.limits.fingerprint()

        requests = self._scores() if job.answers else [self._request(0)]
        self.prompt_tokens = len(requests[0].prompt.ids)
        for request in requests:
            protocol.check(request, self.limits)
        pool.register(self)
        self._streams: list[Stream] = []
        try:
            for request in requests:
                self._streams.append(pool.stream(request))
        except GLMError:
            self.cancel()
            raise
        self._events = self._run()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._events

    def cancel(self) -> None:
        """The last event will be Cancelled, unless another is on its way. The slots are free within one step."""
        self.cancelled = True
        for stream in self._streams:
            self._pool.cancel_request(stream.request.id)

    @property
    def text(self) -> str:
        """The text so far: blanks not reached are still masks, the one at work has what there is of it."""
        if not self._job.whole_text:
            return self._fill
        return (
            self._filling.with_fill(self._at_work, self._fill) if self._at_work and self._fill else self._filling.text
        )

    @property
    def unfinished(self) -> Blank | None:
        """What there is of the blank at work, for the record of a run that ended early; None if there is no token of it."""
        if self._at_work is None or not self._made:
            return None
        tokens = tuple(TokenText(self._name(token), logprob) for token, logprob in self._made)
        ids = tuple(token for token, _ in self._made)
        return Blank(self._job.targets.index(self._at_work), self._fill, (), tokens, ids)

    @property
    def usage(self) -> Usage:
        """Counts and times so far, the blank at work included."""
        new_tokens = self._new_tokens + len(self._made) + self._others_made
        return Usage(
            prompt_tokens=self._prompt_tokens or self.prompt_tokens,
            new_tokens=new_tokens,
            seconds=round(time.monotonic() - self._accepted_at, 4),
            first_token_seconds=None if self._first_token_seconds is None else round(self._first_token_seconds, 4),
            tokens_per_second=round(self._new_tokens / self._active_seconds, 2) if self._active_seconds > 0 else 0.0,
            largest_batch=self._largest_batch,
        )

    async def _run(self) -> AsyncIterator[Event]:
        reason = ""
        try:
            for index, mask in enumerate(self._job.targets):
                if self.cancelled and index > 0:
                    yield events.Cancelled(self.text)
                    return
                if index == len(self._streams):
                    self._streams.append(self._pool.stream(self._request(index), first=True))
                self._at_work, self._fill = mask, ""
                finished = None
                async for event in self._blank(index, mask):
                    if isinstance(event, Finished):
                        finished = event
                    else:
                        yield event
                if finished is None:
                    yield events.Cancelled(self.text)
                    return
                blank = self._describe(index, mask, finished.results)
                reason = finished.results[0].reason
                if self._job.sampling.beams is not None:
                    yield self._beams(index, mask, [_beam(result) for result in finished.results], final=True)
                    for number, alternative in enumerate(blank.alternatives):
                        if alternative.text:
                            yield Delta(index, number, alternative.text)
                self._place(mask, finished.results[0])
                yield blank
        except GLMError as error:
            for stream in self._streams:
                self._pool.cancel_request(stream.request.id)
            yield Error.of(error)
            return
        finally:
            self._pool.forget(self)
        yield Done(self.text, reason, self.usage, self.seed, self._fingerprint)

    async def _blank(self, index: int, mask: Mask) -> AsyncIterator[Event | Finished]:
        """The events of one blank; the last one is Finished, unless it was cancelled."""
        stream = self._streams[index]
        begun = [False] * self._job.alternatives
        async for event in stream:
            if isinstance(event, Queued):
                if not self._told_started:
                    yield events.Queued(event.position, event.eta_s)
            elif isinstance(event, Started):
                self._fingerprint = event.limits.fingerprint()
                if not self._told_started:
                    self._told_started = True
                    yield events.Started(event.limits.model, self.prompt_tokens, self._job.dropped_messages)
            elif isinstance(event, Finished):
                self._count(stream, event)
                yield event
            elif isinstance(event, Cancelled):
                return
            elif isinstance(event, Search):
                yield self._beams(index, mask, event.beams, final=False)
            else:
                if event.token is not None and event.logprob is not None:
                    if event.alternative == 0:
                        self._made.append((event.token, event.logprob))
                    else:
                        self._others_made += 1
                text = event.text
                if text and not begun[event.alternative]:
                    begun[event.alternative] = True
                    text = self._filling.shown(mask, text)
                if event.alternative == 0:
                    self._fill += text
                if text:
                    yield Delta(index, event.alternative, text)

    def _request(self, index: int) -> Request:
        """The request of a blank, with the blanks before it filled."""
        job, mask = self._job, self._job.targets[index]
        prompt = self._filling.prompt(mask)
        free = protocol.room(prompt, self.limits.positions)
        wanted = job.sampling.max_new_tokens
        if job.total_length is not None:
            left = job.total_length - len(prompt.ids)
            if left < 1:
                message = (
                    f"The prompt has {len(prompt.ids)} tokens: no room for an answer in a total of {job.total_length}."
                )
                raise GLMError("prompt_too_long", message, field="total_length", limit=job.total_length)
            wanted = left if wanted is None else min(wanted, left)
        elif wanted is None:
            wanted = DEFAULT_NEW_TOKENS[mask.kind]
        kept = _KEPT_FOR_A_BLANK * (len(job.targets) - 1 - index)
        budget = max(1, min(wanted, free - kept))
        if job.sampling.beams is not None:
            budget = max(1, min(budget, protocol.beam_room(prompt, job.sampling.beams.count, self.limits)))
        sampling = replace(
            job.sampling,
            seed=protocol.derive_seed(self.seed, index),
            max_new_tokens=budget,
            min_new_tokens=min(job.sampling.min_new_tokens, budget),
        )
        first_of_text = job.own_text or not self._filling.left(mask)
        return Request(f"{self.id}.{index}", prompt, sampling, job.alternatives, first_of_text=first_of_text)

    def _scores(self) -> list[Request]:
        """The requests that score all answers: unlike fills, they are known beforehand."""
        filling, requests = Filling(self._job.document, self._tokenizer), []
        for index, (mask, answer) in enumerate(zip(self._job.targets, self._job.answers, strict=True)):
            ids = filling.answer_ids(mask, answer)
            request = Request(
                f"{self.id}.{index}",
                filling.prompt(mask),
                choices=((*ids, self._tokenizer.eop),),
                first_of_text=not filling.left(mask),
            )
            requests.append(request)
            filling.place(mask, ids, answer)
        return requests

    def _place(self, mask: Mask, result: Result) -> None:
        # Behind a stop string the tokens go further than the text.
        ids = self._tokenizer.encode_plain(result.text) if result.reason == "stop_string" else result.ids
        self._at_work, self._fill = None, self._filling.shown(mask, result.text)
        self._filling.place(mask, ids, result.text)

    def _describe(self, index: int, mask: Mask, results: tuple[Result, ...]) -> Blank:
        alternatives = tuple(
            Alternative(self._filling.shown(mask, result.text), result.logprob, result.reason) for result in results
        )
        shown = results[0]
        pieces = list(shown.pieces)
        for place, piece in enumerate(pieces):  # the first text of all may lose the space that is there already
            if piece:
                pieces[place] = self._filling.shown(mask, piece)
                break
        tops = shown.top or ((),) * len(pieces)
        tokens = tuple(
            TokenText(piece, logprob, tuple((self._name(token), value) for token, value in top))
            for piece, logprob, top in zip(pieces, shown.logprobs, tops, strict=True)
        )
        return Blank(index, alternatives[0].text, alternatives, tokens, shown.ids)

    def _beams(self, index: int, mask: Mask, beams: Iterable[Beam], *, final: bool) -> Beams:
        texts = tuple(
            BeamText(self._filling.shown(mask, text), logprob, score, ended) for text, logprob, score, ended in beams
        )
        return Beams(index, final, texts)

    def _name(self, token: int) -> str:
        """One token as text: a byte has no text of its own."""
        return (
            self._tokenizer.piece(token) if self._tokenizer.byte(token) is not None else self._tokenizer.surface(token)
        )

    def _count(self, stream: Stream, finished: Finished) -> None:
        assert stream.given_at is not None and stream.ended_at is not None
        self._made, self._others_made = [], 0
        self._prompt_tokens += len(stream.request.prompt.ids)
        self._new_tokens += sum(len(result.ids) for result in finished.results)
        self._active_seconds += stream.ended_at - stream.given_at
        if self._first_token_seconds is None and stream.first_text_at is not None:
            self._first_token_seconds = stream.first_text_at - self._accepted_at
        self._largest_batch = max(self._largest_batch, finished.largest_batch)


def _beam(result: Result) -> Beam:
    assert result.score is not None
    return Beam(result.text, result.logprob, result.score, result.reason == "stop")
