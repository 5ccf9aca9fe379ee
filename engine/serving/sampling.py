"""From logits to tokens, for rows that all want something else, in one batch.

A row's choice depends on its own logits and its own Ask alone. Sampling inverts the cumulative distribution, in the order
of the ids and in float64, at one uniform number a token (protocol.uniform): rounding in the logits moves a choice only when
that number lies within the rounding of a border between two tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

import numpy
import torch
from torch import Tensor

from engine.serving.beam import BeamAsk, Candidate
from engine.serving.job import Ask, Choice

# Below this a difference of 0.001 between two logits is a factor of e^100: greedy, without dividing by almost nothing.
_GREEDY_TEMPERATURE = 1e-5
# Candidates looked at first for top_p without top_k, and the factor for rows that they don't hold top_p of.
_FIRST_CANDIDATES, _MORE = 64, 8
# Columns of a block: maxima and sums are found in blocks first, then in one block a row.
_BLOCK = 64
_NONE = float("-inf")


class Sampler:
    """`never`: ids that are never chosen; `end_id` is chosen where a row has banned everything else.

    vocabulary: columns of the logits. Log-probabilities are those of the raw logits, before any of an Ask is applied.
    """

    def __init__(self, vocabulary: int, never: Sequence[int], end_id: int, device: torch.device) -> None:
        self._device, self._end_id, self._vocabulary = device, end_id, vocabulary
        self._bias = torch.zeros(vocabulary, device=device)
        self._bias[torch.tensor(never, dtype=torch.long, device=device)] = _NONE
        self._width = -(-vocabulary // _BLOCK) * _BLOCK
        self._scores = torch.empty(
            0, self._width, device=device
        )  # used again in every step; the last columns stay -inf

    @torch.inference_mode()
    def __call__(self, logits: Tensor, asks: Sequence[Ask]) -> list[Choice]:
        """logits: (rows, vocabulary), any float type; one Ask a row."""
        raw = logits.float()
        scores = self._changed(raw, asks)
        chosen, best = self._largest(scores)
        drawn = [row for row, ask in enumerate(asks) if ask.temperature > _GREEDY_TEMPERATURE and ask.top_k != 1]
        whole = [row for row in drawn if not self._is_cut(asks[row])]
        cut = [row for row in drawn if self._is_cut(asks[row])]
        for rows, draw in ((whole, self._draw), (cut, self._draw_cut)):
            if rows:
                part, least = (scores, best) if len(rows) == len(asks) else (scores[rows], best[rows])
                chosen[rows] = draw(part, least, [asks[row] for row in rows])
        chosen = torch.where(best == _NONE, self._end_id, chosen)

        norm = raw.logsumexp(dim=-1)
        logprobs = raw.gather(1, chosen[:, None])[:, 0] - norm
        finite = torch.isfinite(raw.sum(dim=-1))
        values = torch.stack((chosen.double(), logprobs.double(), finite.double()), dim=1).tolist()
        most = max(ask.logprobs for ask in asks)
        top = self._top(raw, norm, most) if most else [()] * len(asks)
        return [
            Choice(int(token), logprob, bool(good), tuple(candidates[: ask.logprobs]))
            for (token, logprob, good), candidates, ask in zip(values, top, asks, strict=True)
        ]

    @torch.inference_mode()
    def expand(self, logits: Tensor, ask: BeamAsk) -> list[Candidate]:
        """The candidates of a search, best first. logits: (live beams, vocabulary). Log-probabilities are those of what is
        not banned. Drawing without replacement is taking the top after adding Gumbel noise (arXiv 1903.06059)."""
        raw = logits.float()
        masked = raw + self._bias
        if any(ask.banned):
            masked[self._places(ask.banned)] = _NONE
        if not bool(torch.isfinite(raw.sum())):
            return [Candidate(0, self._end_id, 0.0, 0.0, finite=False)]
        # Where a beam has banned everything, -inf minus itself is no number: it has no candidates.
        steps = masked.log_softmax(dim=-1)
        steps = torch.where(steps.isnan(), _NONE, steps)
        scores = (steps + torch.tensor(ask.scores, device=self._device)[:, None]).flatten()
        ranked = scores
        if ask.seed is not None:
            generator = torch.Generator().manual_seed(ask.seed)  # on the CPU: the same on every device
            uniform = torch.rand(scores.shape, generator=generator).clamp(min=1e-20).to(self._device)
            ranked = scores - (-uniform.log()).clamp(min=1e-20).log()
        chosen = ranked.topk(min(ask.count, ranked.shape[0])).indices
        chosen = chosen[scores[chosen] > _NONE]
        if not len(chosen):
            logprob = float(raw[0, self._end_id] - raw[0].logsumexp(dim=-1))
            return [Candidate(0, self._end_id, logprob, ask.scores[0] + logprob)]
        chosen = chosen[scores[chosen].argsort(descending=True, stable=True)]
        values = torch.stack((steps.flatten()[chosen].double(), scores[chosen].double()), dim=1).tolist()
        vocabulary = raw.shape[-1]
        return [
            Candidate(place // vocabulary, place % vocabulary, logprob, score)
            for place, (logprob, score) in zip(chosen.tolist(), values, strict=True)
        ]

    def _changed(self, raw: Tensor, asks: Sequence[Ask]) -> Tensor:
        """The logits with penalties and bans, (rows, whole blocks), in memory of this object: it holds until the next call."""
        if len(self._scores) < len(raw):
            self._scores = raw.new_full((len(raw), self._width), _NONE)
        scores = self._scores[: len(raw)]
        torch.add(raw, self._bias, out=scores[:, : self._vocabulary])
        seen = [ask.seen if ask.repetition_penalty != 1.0 else () for ask in asks]
        if any(seen):
            rows, tokens = self._places(seen)
            penalty = self._numbers([ask.repetition_penalty for ask in asks])[rows]
            values = raw[rows, tokens]
            scores[rows, tokens] = torch.where(values > 0, values / penalty, values * penalty) + self._bias[tokens]
        banned = [ask.banned for ask in asks]
        if any(banned):
            scores[self._places(banned)] = _NONE
        return scores

    def _largest(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Column and value of each row's largest score."""
        blocks = scores.view(len(scores), -1, _BLOCK)
        largest = blocks.amax(dim=-1)
        best, block = largest.max(dim=-1)
        inside = blocks[self._rows(scores), block].argmax(dim=-1)
        return block * _BLOCK + inside, best

    def _is_cut(self, ask: Ask) -> bool:
        return 0 < ask.top_k < self._vocabulary or ask.top_p < 1

    def _weights(self, scores: Tensor, best: Tensor, asks: Sequence[Ask]) -> Tensor:
        """exp of the scores at each row's temperature; the largest is 1. Subtracting the maximum first keeps small
        temperatures from overflowing."""
        return ((scores - best[:, None]) / self._numbers([ask.temperature for ask in asks])[:, None]).exp_()

    def _draw(self, scores: Tensor, best: Tensor, asks: Sequence[Ask]) -> Tensor:
        """From the whole vocabulary: a block by the blocks' sums, then a token of it."""
        weights = self._weights(scores, best, asks).view(len(scores), -1, _BLOCK)
        blocks = weights.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
        target = self._uniforms(asks) * blocks[:, -1]
        block = _invert(blocks, target)
        before = blocks.gather(1, (block - 1).clamp(min=0)[:, None])[:, 0].masked_fill(block == 0, 0.0)
        inside = weights[self._rows(scores), block].double().cumsum(dim=-1)
        return (block * _BLOCK + _invert(inside, target - before)).clamp(max=self._vocabulary - 1)

    def _draw_cut(self, scores: Tensor, best: Tensor, asks: Sequence[Ask]) -> Tensor:
        """top_k, then top_p within what is left. Tokens that tie with the last one kept are kept too."""
        chosen = torch.empty(len(asks), dtype=torch.long, device=self._device)
        left = list(range(len(asks)))
        count = max((ask.top_k or _FIRST_CANDIDATES) for ask in asks) + 1  # one more shows whether the last one ties
        while left:
            count = min(count, self._vocabulary)
            whole = len(left) == len(asks)
            part, least = (scores, best) if whole else (scores[left], best[left])
            found, enough = self._draw_of_candidates(part, least, [asks[row] for row in left], count)
            chosen[left] = found
            left = [row for row, good in zip(left, enough.tolist(), strict=True) if not good]
            count *= _MORE
        return chosen

    def _draw_of_candidates(
        self, scores: Tensor, best: Tensor, asks: Sequence[Ask], count: int
    ) -> tuple[Tensor, Tensor]:
        """A token of each row's `count` best, and whether they were enough to find its cut."""
        values, tokens = scores.topk(count, dim=-1)  # descending
        # Rows with top_k: what lies below the k-th is gone before top_p is applied to the rest.
        last = self._indices([min(ask.top_k or count, count) - 1 for ask in asks])
        limited = torch.tensor([0 < ask.top_k < self._vocabulary for ask in asks], device=self._device)
        least = torch.where(limited, values.gather(1, last[:, None])[:, 0], _NONE)
        weights = self._weights(values, best, asks).double().masked_fill_(values < least[:, None], 0.0)
        total = weights.sum(dim=-1)
        if not all(0 < ask.top_k < self._vocabulary for ask in asks):  # top_p of the whole vocabulary
            mass = self._weights(scores, best, asks).sum(dim=-1, dtype=torch.float64)
            total = torch.where(limited, total, mass)
        top_p = torch.tensor([ask.top_p for ask in asks], dtype=torch.float64, device=self._device)
        before = weights.cumsum(dim=-1) - weights
        kept = (before < (top_p * total)[:, None]).sum(dim=-1).clamp(min=1)
        narrow = top_p < 1
        least = torch.maximum(least, torch.where(narrow, values.gather(1, kept[:, None] - 1)[:, 0], _NONE))
        # Behind the last candidate there is nothing that belongs to the cut: neither top_p's rest nor a tie.
        enough = (values[:, -1] < least) if count < self._vocabulary else torch.ones_like(narrow)
        tokens, order = tokens.sort(dim=-1)
        weights = weights.masked_fill_(values < least[:, None], 0.0).gather(1, order)
        cumulative = weights.cumsum(dim=-1)
        place = _invert(cumulative, self._uniforms(asks) * cumulative[:, -1])
        return tokens.gather(1, place[:, None])[:, 0], enough

    def _top(self, raw: Tensor, norm: Tensor, most: int) -> list[list[tuple[int, float]]]:
        values, tokens = (raw - norm[:, None]).topk(min(most, raw.shape[-1]), dim=-1)
        return [list(zip(*row, strict=True)) for row in zip(tokens.tolist(), values.tolist(), strict=True)]

    def _indices(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)

    def _numbers(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)

    def _uniforms(self, asks: Sequence[Ask]) -> Tensor:
        return torch.tensor([ask.uniform for ask in asks], dtype=torch.float64, device=self._device)

    def _rows(self, scores: Tensor) -> Tensor:
        return torch.arange(len(scores), device=self._device)

    def _places(self, tokens: Sequence[Collection[int]]) -> tuple[Tensor, Tensor]:
        """Rows and columns of the tokens of each row. By numpy: torch.tensor takes a microsecond a number."""
        counts = [len(row) for row in tokens]
        rows = numpy.repeat(numpy.arange(len(counts)), counts)
        columns = numpy.fromiter(itertools.chain.from_iterable(tokens), dtype=numpy.int64, count=sum(counts))
        return torch.from_numpy(rows).to(self._device), torch.from_numpy(columns).to(self._device)


def _invert(cumulative: Tensor, target: Tensor) -> Tensor:
    """The first column of each row whose cumulative weight is above its target. Rounding can put the target on the total:
    then the last column of any weight, which is the first one to reach the total."""
    index = torch.searchsorted(cumulative, target[:, None], right=True)
    return torch.minimum(index, (cumulative < cumulative[:, -1:]).sum(dim=-1, keepdim=True))[:, 0]
