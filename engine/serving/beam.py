"""Beam search over one prompt, exactly as GLM-130B's BeamSearchStrategy ranks and stops. Torch-free.

Every step, each live beam's log-probabilities are added to its own; of all continuations together the best `count` * (end
tokens + 1) are candidates (or so many are drawn). In the order of their sums, those that end are finished answers, of which
the best `count` are kept, and the others go on, up to `count`. The search is done when as many answers are finished and no
live beam scores better than the worst of them, or when the tokens are used up.

The beams share the cache: the prompt's columns are there once, and behind them each token that was read stays where it was
written, for all beams that come from it. A beam is a path through these columns, so nothing is copied when beams change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from engine.glm.stream_decoder import StreamDecoder
from engine.glm.tokenizer import Tokenizer
from engine.serving.protocol import Beam, Request, Result, derive_seed
from engine.serving.text import TextStream
from engine.serving.work import Tree

# Steps from one news of a search to the next: the texts are made anew each time.
_NEWS_EVERY = 4


class Candidate(NamedTuple):
    """A continuation: `parent` is the number of a live beam; logprob of this token, score of all up to it. `finite` is False
    where the logits had inf or nan."""

    parent: int
    token: int
    logprob: float
    score: float
    finite: bool = True


class BeamAsk(NamedTuple):
    """What `Sampler.expand` must know: of each live beam its sum of log-probabilities and the tokens that it may not have."""

    count: int  # candidates
    scores: tuple[float, ...]
    banned: tuple[tuple[int, ...], ...]
    seed: int | None  # of this step's draw; None: the best candidates


@dataclass(frozen=True, slots=True)
class _Branch:
    """An answer so far: its tokens and their log-probabilities, their sum, and where they are behind the prompt."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    score: float = 0.0
    path: tuple[int, ...] = ()
    end_logprob: float | None = None  # of the end token, which is not among the tokens


class BeamSearch:
    """The search for one request, in cache slots of so many columns. `ask` and `book` take turns until `done`."""

    def __init__(
        self, request: Request, slots: tuple[int, ...], columns: int, end_ids: tuple[int, ...], tokenizer: Tokenizer
    ) -> None:
        assert request.sampling.beams is not None and request.sampling.seed is not None
        self.request, self.slots = request, slots
        self._columns, self._end_ids, self._tokenizer = columns, end_ids, tokenizer
        self._beams, self._seed = request.sampling.beams, request.sampling.seed
        self._live: list[_Branch] = [_Branch()]
        self._ended: list[tuple[float, _Branch]] = []  # penalised score, best first
        self._steps = 0
        self._satisfied = False  # no live beam can become better than what has ended

    @property
    def done(self) -> bool:
        return self._satisfied or not self._live or self._steps == self.request.sampling.max_new_tokens

    @property
    def rows(self) -> int:
        """Live beams."""
        return len(self._live)

    def ask(self) -> BeamAsk:
        sampling = self.request.sampling
        always = tuple(sampling.banned_ids)
        if self._steps < sampling.min_new_tokens:
            always += self._end_ids
        return BeamAsk(
            self._beams.count * (max(1, len(self._end_ids)) + 1),
            tuple(branch.score for branch in self._live),
            tuple(always + sampling.banned_next(branch.tokens) + self._repeats(branch) for branch in self._live),
            # A seed for each step: what is drawn depends on the request alone.
            derive_seed(self._seed, 1 + self._steps) if self._beams.sampled else None,
        )

    def book(self, candidates: Sequence[Candidate]) -> None:
        """The candidates of a step, best first: fewer than asked for where everything else is banned."""
        live: list[_Branch] = []
        first = self._steps * self._beams.count
        for candidate in candidates:
            parent = self._live[candidate.parent]
            if candidate.token in self._end_ids:
                ended = _Branch(parent.tokens, parent.logprobs, candidate.score, parent.path, candidate.logprob)
                self._add_ended(ended, len(parent.tokens) + 1)
            elif len(live) < self._beams.count:
                live.append(
                    _Branch(
                        (*parent.tokens, candidate.token),
                        (*parent.logprobs, candidate.logprob),
                        candidate.score,
                        (*parent.path, first + len(live)),
                    )
                )
            else:
                break
        self._live = live
        self._steps += 1
        if live and len(self._ended) == self._beams.count:
            best = self._penalised(max(branch.score for branch in live), self._steps)
            self._satisfied = self._ended[-1][0] >= best

    def tree(self) -> Tree:
        """The live beams' last tokens, to be read."""
        prompt = self.request.prompt
        return Tree(
            self.slots,
            len(prompt.ids),
            (self._steps - 1) * self._beams.count,
            prompt.position(self._steps - 1),
            tuple(branch.tokens[-1] for branch in self._live),
            tuple(branch.path for branch in self._live),
        )

    def results(self) -> tuple[Result, ...]:
        """The beams, best first, when it is done."""
        if self._live and not self._beams.consider_end:
            return tuple(self._result(branch, self._penalised(branch.score, self._steps)) for branch in self._live)
        if not self._satisfied:
            for branch in self._live:
                self._add_ended(branch, len(branch.tokens))
        return tuple(self._result(branch, score) for score, branch in self._ended)

    def news(self) -> tuple[Beam, ...]:
        """Ended and live answers, best first, every few steps; else nothing."""
        if self._steps % _NEWS_EVERY:
            return ()
        found = [(score, branch, True) for score, branch in self._ended]
        found += [(self._penalised(branch.score, self._steps), branch, False) for branch in self._live]
        found.sort(key=lambda entry: -entry[0])
        best = found[: self._beams.count]
        return tuple(Beam(self._text(branch), branch.score, score, ended) for score, branch, ended in best)

    def _add_ended(self, branch: _Branch, generated: int) -> None:
        """Keep the best `count`; of equal ones the later stands first."""
        score = self._penalised(branch.score, generated)
        place = len(self._ended)
        while place > 0 and score >= self._ended[place - 1][0]:
            place -= 1
        self._ended.insert(place, (score, branch))
        del self._ended[self._beams.count :]

    def _penalised(self, score: float, generated: int) -> float:
        length = len(self.request.prompt.ids) + self._beams.padding + generated
        return score / ((5 + length) / 6) ** self._beams.length_penalty

    def _repeats(self, branch: _Branch) -> tuple[int, ...]:
        """Tokens that would end an n-gram which ended in an earlier generated token of this beam."""
        length = self.request.sampling.no_repeat_ngram - 1
        if length < 0:
            return ()
        before = (*self.request.prompt.ids, *[0] * self._beams.padding)
        ids = (*before[-length:], *branch.tokens) if length else branch.tokens
        if length >= len(ids):
            return ()
        last = ids[len(ids) - length :]
        start = max(0, len(ids) - len(branch.tokens) - length)  # of the n-gram that ends in the first generated token
        return tuple(ids[at + length] for at in range(start, len(ids) - length) if ids[at : at + length] == last)

    def _text(self, branch: _Branch) -> str:
        decoder = StreamDecoder(self._tokenizer, self.request.first_of_text)
        return "".join([decoder.push(token) for token in branch.tokens])

    def _result(self, branch: _Branch, score: float) -> Result:
        text = TextStream(self._tokenizer, (), self.request.first_of_text)
        for token in branch.tokens:
            text.push(token)
        text.finish()
        reason = "length" if branch.end_logprob is None else "stop"
        return Result(branch.tokens, branch.logprobs, tuple(text.pieces), reason, branch.end_logprob, score=score)
