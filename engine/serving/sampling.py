"""From logits to tokens, for rows that all want something else, in one batch.

A row's choice depends on its own logits and its own Ask alone. Sampling inverts the cumulative distribution, in the order
of the ids and in float64, at one uniform number a token (protocol.uniform): rounding in the logits moves a choice only when
that number lies within the rounding of a border between two tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.serving.beam import BeamAsk, Candidate
from engine.serving.scheduler import Ask, Choice

# Below this a difference of 0.001 between two logits is a factor of e^100: greedy, without dividing by almost nothing.
_GREEDY_TEMPERATURE = 1e-5
# Candidates looked at first for top_p without top_k. The whole vocabulary is sorted only if they don't hold top_p.
_FIRST_CANDIDATES = 256


class Sampler:
    """`never`: ids that are never chosen; `end_id` is chosen where a row has banned everything else.

    vocabulary: columns of the logits. Log-probabilities are those of the raw logits, before any of an Ask is applied.
    """

    def __init__(self, vocabulary: int, never: Sequence[int], end_id: int, device: torch.device) -> None:
        self._device, self._end_id = device, end_id
        self._bias = torch.zeros(vocabulary, device=device)
        self._bias[torch.tensor(never, dtype=torch.long, device=device)] = float("-inf")

    @torch.inference_mode()
    def __call__(self, logits: Tensor, asks: Sequence[Ask]) -> list[Choice]:
        """logits: (rows, vocabulary), any float type; one Ask a row."""
        raw = logits.float()
        scores = self._banned(self._penalised(raw, asks) + self._bias, asks)
        best, chosen = scores.max(dim=-1)
        drawn = [row for row, ask in enumerate(asks) if ask.temperature > _GREEDY_TEMPERATURE and ask.top_k != 1]
        if drawn:
            rows = self._indices(drawn)
            temperature = self._column([asks[row].temperature for row in drawn])
            # Subtracting the maximum first keeps small temperatures from overflowing.
            relative = (scores[rows] - best[rows, None]) / temperature
            relative = self._cut(relative, [asks[row] for row in drawn])
            chosen[rows] = self._invert(relative, [asks[row].uniform for row in drawn])
        chosen = torch.where(best == float("-inf"), self._end_id, chosen)

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
        pairs = [(row, token) for row, banned in enumerate(ask.banned) for token in banned]
        if pairs:
            rows, tokens = (self._indices(list(part)) for part in zip(*pairs, strict=True))
            masked[rows, tokens] = float("-inf")
        if not bool(torch.isfinite(raw.sum())):
            return [Candidate(0, self._end_id, 0.0, 0.0, finite=False)]
        # Where a beam has banned everything, -inf minus itself is no number: it has no candidates.
        steps = masked.log_softmax(dim=-1)
        steps = torch.where(steps.isnan(), float("-inf"), steps)
        scores = (steps + torch.tensor(ask.scores, device=self._device)[:, None]).flatten()
        ranked = scores
        if ask.seed is not None:
            generator = torch.Generator().manual_seed(ask.seed)  # on the CPU: the same on every device
            uniform = torch.rand(scores.shape, generator=generator).clamp(min=1e-20).to(self._device)
            ranked = scores - (-uniform.log()).clamp(min=1e-20).log()
        chosen = ranked.topk(min(ask.count, ranked.shape[0])).indices
        chosen = chosen[scores[chosen] > float("-inf")]
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

    def _penalised(self, scores: Tensor, asks: Sequence[Ask]) -> Tensor:
        pairs = [(row, token) for row, ask in enumerate(asks) if ask.repetition_penalty != 1.0 for token in ask.seen]
        if not pairs:
            return scores
        rows, tokens = (self._indices(list(part)) for part in zip(*pairs, strict=True))
        penalty = torch.tensor([ask.repetition_penalty for ask in asks], device=self._device)[rows]
        values = scores[rows, tokens]
        scores = scores.clone()
        scores[rows, tokens] = torch.where(values > 0, values / penalty, values * penalty)
        return scores

    def _banned(self, scores: Tensor, asks: Sequence[Ask]) -> Tensor:
        pairs = [(row, token) for row, ask in enumerate(asks) for token in ask.banned]
        if pairs:
            rows, tokens = (self._indices(list(part)) for part in zip(*pairs, strict=True))
            scores[rows, tokens] = float("-inf")
        return scores

    def _cut(self, scores: Tensor, asks: Sequence[Ask]) -> Tensor:
        """top_k, then top_p within what is left. Tokens that tie with the last one kept are kept too."""
        vocabulary = scores.shape[-1]
        narrow = [row for row, ask in enumerate(asks) if 0 < ask.top_k < vocabulary or ask.top_p < 1]
        if not narrow:
            return scores
        candidates = max(asks[row].top_k or _FIRST_CANDIDATES for row in narrow)
        rows = self._indices(narrow)
        cut, whole = self._cut_rows(scores[rows], [asks[row] for row in narrow], min(candidates, vocabulary))
        if not all(whole):
            again = self._indices([row for row, good in zip(narrow, whole, strict=True) if not good])
            asks_again = [asks[row] for row, good in zip(narrow, whole, strict=True) if not good]
            cut[self._indices([i for i, good in enumerate(whole) if not good])] = self._cut_rows(
                scores[again], asks_again, vocabulary
            )[0]
        scores = scores.clone()
        scores[rows] = cut
        return scores

    def _cut_rows(self, scores: Tensor, asks: Sequence[Ask], candidates: int) -> tuple[Tensor, list[bool]]:
        """The cut scores, and for each row whether `candidates` tokens were enough to find its cut."""
        lowest = float("-inf")
        best = scores.topk(candidates, dim=-1).values  # descending
        last = self._indices([(ask.top_k or candidates) - 1 for ask in asks]).clamp(max=candidates - 1)
        limited = torch.tensor([ask.top_k > 0 for ask in asks], device=self._device)
        least = torch.where(limited, best.gather(1, last[:, None])[:, 0], lowest)[:, None]
        scores = scores.masked_fill(scores < least, lowest)
        top_p = self._column([ask.top_p for ask in asks])
        probabilities = (best.masked_fill(best < least, lowest) - scores.logsumexp(dim=-1, keepdim=True)).exp()
        before = probabilities.cumsum(dim=-1) - probabilities
        kept = (before < top_p).sum(dim=-1, keepdim=True).clamp(min=1)
        least = torch.where(top_p < 1, best.gather(1, kept - 1), lowest)
        whole = (kept[:, 0] < candidates) | limited | (top_p[:, 0] >= 1)
        whole = torch.ones_like(whole) if candidates == scores.shape[-1] else whole
        return scores.masked_fill(scores < least, lowest), whole.tolist()

    def _invert(self, scores: Tensor, uniforms: Sequence[float]) -> Tensor:
        cumulative = scores.exp().double().cumsum(dim=-1)
        total = cumulative[:, -1:]
        target = torch.tensor(uniforms, dtype=torch.float64, device=self._device)[:, None] * total
        # The first token whose cumulative weight is above the target. Rounding can put the target on the total: then the
        # last token of any weight, which is the first one to reach the total.
        index = torch.searchsorted(cumulative, target, right=True)
        return torch.minimum(index, (cumulative < total).sum(dim=-1, keepdim=True)).clamp(max=scores.shape[-1] - 1)[
            :, 0
        ]

    def _top(self, raw: Tensor, norm: Tensor, most: int) -> list[list[tuple[int, float]]]:
        values, tokens = (raw - norm[:, None]).topk(min(most, raw.shape[-1]), dim=-1)
        return [list(zip(*row, strict=True)) for row in zip(tokens.tolist(), values.tolist(), strict=True)]

    def _indices(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)[:, None]
