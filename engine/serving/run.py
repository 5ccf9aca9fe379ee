"""One run of `generate`: from an accepted job to its last event. Torch-free.

Blanks are filled from left to right, or the most confident first: then every round fills all blanks that are still open, side
by side, from prompts that have the fills placed so far, and the surest of those fills is placed; the others are forgotten.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import replace

from engine.errors import GLMError
from engine.glm.blanks import Mask
from engine.glm.filling import Filling
from engine.glm.tokenizer import Tokenizer
from engine.serving import events, protocol
from engine.serving.events import Alternative, Beams, BeamText, Blank, Delta, Done, Error, Event, TokenText, Usage
from engine.serving.pinned import Pinned
from engine.serving.pool import Pool
from engine.serving.protocol import Beam, Cancelled, Finished, Limits, Request, Result, Search, Token
from engine.serving.run_job import Job
from engine.serving.stream import Queued, Started, Stream


class Run:
    """Iterate over it, once, for its events; the last one is Done, Cancelled or Error. Made by `generate`'s functions.

    `seed` is the one in use, `prompt_tokens` counts the first prompt, `limits` are those that it was checked against.
    """

    def __init__(self, pool: Pool | Pinned, tokenizer: Tokenizer, job: Job, run_id: str | None = None) -> None:
        """Check the job and queue its first blank, or the blanks of its first round. Errors: those of `Pool.stream`; nothing is
        left behind then."""
        self.id = run_id or uuid.uuid4().hex
        self._pool = pool = pool.pinned()  # all its blanks are filled by the same weights
        self.limits: Limits = pool.require_limits()
        protocol.check_sampling(job.sampling, self.limits)
        seed = job.sampling.seed
        self.seed: int = secrets.randbelow(2**32) if seed is None else seed
        self.cancelled = False
        self._tokenizer, self._job = tokenizer, job
        self._filling = Filling(job.document, tokenizer)
        self._at_work: Mask | None = None
        self._fill = ""  # alternative 0 of the blank at work, or of the last one
        self._accepted_at = time.monotonic()
        self._told_started = False
        self._prompt_tokens = self._new_tokens = self._largest_batch = 0
        self._active_seconds = 0.0
        self._first_token_seconds: float | None = None
        self._made: list[tuple[int, float]] = []  # (token, logprob) of alternative 0 of the blank at work
        self._others_made = 0  # tokens of its other alternatives, or of a round's fills
        self._reason = ""  # why the last fill ended
        self._fingerprint = self.limits.fingerprint()

        if job.answers:
            requests = self._scores()
        elif job.order == "confident":
            requests = [self._request(index, len(job.targets) - 1) for index in range(len(job.targets))]
        else:
            requests = [self._request(0, len(job.targets) - 1)]
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
        self._stop_streams()

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
        try:
            async for event in self._rounds() if self._job.order == "confident" else self._left_to_right():
                yield event
                if event.terminal:
                    return
        except GLMError as error:
            self._stop_streams()
            yield Error.of(error)
            return
        finally:
            self._pool.forget(self)
            self._pool.release()
        yield Done(self.text, self._reason, self.usage, self.seed, self._fingerprint)

    async def _left_to_right(self) -> AsyncIterator[Event]:
        """The events of all blanks, one blank after the other; Cancelled if it was."""
        for index, mask in enumerate(self._job.targets):
            if self.cancelled and index > 0:
                yield events.Cancelled(self.text)
                return
            if index == len(self._streams):
                request = self._request(index, len(self._job.targets) - 1 - index)
                self._streams.append(self._pool.stream(request, first=True))
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
            beams = self._job.sampling.beams is not None
            if beams:
                yield self._beams(index, mask, [_beam(result) for result in finished.results], final=True)
            for event in self._place(index, finished.results, told=not beams):
                yield event

    async def _rounds(self) -> AsyncIterator[Event]:
        """The events of all blanks, the most confident first; Cancelled if it was."""
        still_open = list(range(len(self._job.targets)))
        while still_open:
            if len(still_open) < len(self._job.targets):  # the first round is under way
                if self.cancelled:
                    yield events.Cancelled(self.text)
                    return
                self._streams = []
                # Each goes before all that wait, so the last one comes first.
                for request in reversed([self._request(index, len(still_open) - 1) for index in still_open]):
                    self._streams.insert(0, self._pool.stream(request, first=True))
            ends: list[Finished] = []
            async for event in self._round():
                if isinstance(event, Finished):
                    ends.append(event)
                else:
                    yield event
            if len(ends) < len(still_open):
                yield events.Cancelled(self.text)
                return
            self._count(self._streams, ends)
            sure = [confidence(end.results[0]) for end in ends]
            surest = sure.index(max(sure))  # the leftmost of equals
            for event in self._place(still_open.pop(surest), ends[surest].results, told=False):
                yield event

    async def _round(self) -> AsyncIterator[Event | Finished]:
        """What is told of streams that run side by side, and their Finished in their order; fewer if it was cancelled. They
        run whether they are read or not, so they are read one after the other."""
        failure = None
        for stream in self._streams:
            try:
                async for event in stream:
                    if isinstance(event, Finished):
                        yield event
                    elif isinstance(event, Token):
                        self._others_made += event.token is not None
                    elif isinstance(event, (Queued, Started)) and stream is self._streams[0]:  # the first in the queue
                        for told in self._begun(event):
                            yield told
            except GLMError as error:
                failure = failure or error
                self._stop_streams()
        if failure is not None:
            raise failure

    def _begun(self, event: Queued | Started) -> Iterator[Event]:
        if isinstance(event, Started):
            self._fingerprint = event.limits.fingerprint()
        if self._told_started:
            return
        if isinstance(event, Queued):
            yield events.Queued(event.position, event.eta_s)
        else:
            self._told_started = True
            yield events.Started(event.limits.model, self.prompt_tokens, self._job.dropped_messages)

    def _stop_streams(self) -> None:
        for stream in self._streams:
            self._pool.cancel_request(stream.request.id)

    async def _blank(self, index: int, mask: Mask) -> AsyncIterator[Event | Finished]:
        """The events of one blank; the last one is Finished, unless it was cancelled."""
        stream = self._streams[index]
        begun = [False] * self._job.alternatives
        async for event in stream:
            if isinstance(event, (Queued, Started)):
                for told in self._begun(event):
                    yield told
            elif isinstance(event, Finished):
                self._count([stream], [event])
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

    def _request(self, index: int, to_come: int) -> Request:
        """The request of a blank, with those filled that are; so many others are still open."""
        job, mask = self._job, self._job.targets[index]
        prompt = self._filling.prompt(mask)
        budget = job.budget(mask.kind, len(prompt.ids), to_come, self.limits)
        sampling = replace(
            job.sampling,
            seed=protocol.derive_seed(self.seed, index),
            max_new_tokens=budget,
            min_new_tokens=min(job.sampling.min_new_tokens, budget),
        )
        first_of_text = job.own_text or not self._filling.left(mask)
        # A blank is asked for in several rounds.
        name = f"{self.id}.{index}" if job.order == "left" else f"{self.id}.{index}.{to_come}"
        return Request(name, prompt, sampling, job.alternatives, first_of_text=first_of_text)

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

    def _place(self, index: int, results: tuple[Result, ...], *, told: bool) -> list[Event]:
        """Fill a blank for good; what there is to tell of it, with its text where the visitor has not seen it grow."""
        mask, shown = self._job.targets[index], results[0]
        blank = self._describe(index, mask, results)
        deltas = [] if told else [Delta(index, number, each.text) for number, each in enumerate(blank.alternatives)]
        # Behind a stop string the tokens go further than the text.
        ids = self._tokenizer.encode_plain(shown.text) if shown.reason == "stop_string" else shown.ids
        self._at_work, self._fill, self._reason = None, blank.text, shown.reason
        self._filling.place(mask, ids, shown.text)
        if shown.reason != "scored":
            self._pool.pace.note_length(
                self._job.answer_kind(mask.kind), len(shown.ids), ended=shown.reason != "length"
            )
        return [*(delta for delta in deltas if delta.text), blank]

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

    def _count(self, streams: Sequence[Stream], ends: Sequence[Finished]) -> None:
        """Streams that ran side by side are over."""
        given = [stream.given_at for stream in streams if stream.given_at is not None]
        ended = [stream.ended_at for stream in streams if stream.ended_at is not None]
        first = [stream.first_text_at for stream in streams if stream.first_text_at is not None]
        self._made, self._others_made = [], 0
        self._prompt_tokens += sum(len(stream.request.prompt.ids) for stream in streams)
        self._new_tokens += sum(len(result.ids) for end in ends for result in end.results)
        self._active_seconds += max(ended) - min(given)
        if self._first_token_seconds is None and first:
            self._first_token_seconds = min(first) - self._accepted_at
        self._largest_batch = max(self._largest_batch, *(end.largest_batch for end in ends))


def confidence(result: Result) -> float:
    """The mean log-probability of a fill's tokens, its end token included. Rounded, since its last digits depend on what runs
    beside it: they must not decide between fills that are equally sure."""
    return round(result.logprob / max(1, len(result.ids) + (result.end_logprob is not None)), 5)


def _beam(result: Result) -> Beam:
    assert result.score is not None
    return Beam(result.text, result.logprob, result.score, result.reason == "stop")
