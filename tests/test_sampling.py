"""Sampling: against slow and plain formulas, row by row, and in mixed batches."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from engine.serving.job import Ask, Choice
from engine.serving.protocol import uniform
from engine.serving.sampling import Sampler

VOCABULARY = 40
END = 7
ASK = Ask(1.0, 0, 1.0, 1.0, (), (), 0.5, 0)


@pytest.fixture
def sampler() -> Sampler:
    return Sampler(VOCABULARY, [3, 4], END, torch.device("cpu"))


def random_logits(rows: int, seed: int = 0, vocabulary: int = VOCABULARY) -> torch.Tensor:
    return 2 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def allowed(sampler: Sampler, logits: torch.Tensor, ask: Ask, count: int = 400) -> Counter[int]:
    """What comes out for evenly spread uniform numbers."""
    rows = logits.expand(count, -1)
    choices = sampler(rows, [ask._replace(uniform=(i + 0.5) / count) for i in range(count)])
    return Counter(choice.token for choice in choices)


def plain(logits: torch.Tensor, ask: Ask, never: tuple[int, ...] = (3, 4)) -> int:
    """The definition in plain Python, one row."""
    scores = logits.double().tolist()
    for token in ask.seen:
        scores[token] = (
            scores[token] / ask.repetition_penalty if scores[token] > 0 else scores[token] * ask.repetition_penalty
        )
    for token in (*never, *ask.banned):
        scores[token] = -math.inf
    if ask.temperature == 0:
        return max(range(len(scores)), key=scores.__getitem__)
    scores = [score / ask.temperature for score in scores]
    order = sorted(range(len(scores)), key=lambda token: -scores[token])
    kept = order[: ask.top_k] if ask.top_k else order
    best = scores[kept[0]]
    weights = {token: math.exp(scores[token] - best) for token in kept}
    total, cumulative, nucleus = sum(weights.values()), 0.0, set()
    for token in kept:
        if ask.top_p < 1 and cumulative >= ask.top_p * total:
            break
        nucleus.add(token)
        cumulative += weights[token]
    total, cumulative = sum(weights[token] for token in nucleus), 0.0
    for token in sorted(nucleus):
        cumulative += weights[token]
        if cumulative > ask.uniform * total:
            return token
    raise AssertionError


def mixed_asks(count: int) -> list[Ask]:
    asks = []
    for row in range(count):
        asks.append(
            Ask(
                temperature=[0.0, 0.5, 1.0, 1.7][row % 4],
                top_k=[0, 1, 5, 0, 30][row % 5],
                top_p=[1.0, 0.9, 0.3][row % 3],
                repetition_penalty=[1.0, 1.3][row % 2],
                seen=tuple(range(row % 11)),
                banned=tuple(range(20, 20 + row % 7)),
                uniform=uniform(9, 0, row),
                logprobs=row % 4,
            )
        )
    return asks


def test_mixed_batch_is_the_definition_for_every_row(sampler: Sampler) -> None:
    asks = mixed_asks(120)
    logits = random_logits(120)
    found = [choice.token for choice in sampler(logits, asks)]
    assert found == [plain(row, ask) for row, ask in zip(logits, asks, strict=True)]
    assert len(set(found)) > 15


def test_a_row_alone_is_the_row_in_a_mixed_batch(sampler: Sampler) -> None:
    asks = mixed_asks(60)
    logits = random_logits(60, seed=1)
    together = sampler(logits, asks)
    for row in range(60):
        [alone] = sampler(logits[row : row + 1], asks[row : row + 1])
        assert alone.token == together[row].token
        assert alone.logprob == pytest.approx(together[row].logprob, abs=1e-6)


def test_greedy_and_its_other_names(sampler: Sampler) -> None:
    logits = random_logits(50, seed=2)
    expected = [plain(row, ASK._replace(temperature=0)) for row in logits]
    for change in (
        {"temperature": 0.0},
        {"top_k": 1},
        {"temperature": 1e-300},
        {"temperature": 0.0001},
        {"top_p": 1e-9},
    ):
        asks = [ASK._replace(uniform=uniform(1, 0, i), **change) for i in range(50)]
        assert [choice.token for choice in sampler(logits, asks)] == expected, change
    tied = torch.zeros(1, VOCABULARY)
    greedy, top_1 = (
        sampler(tied, [ASK._replace(uniform=0.99, **change)])[0] for change in ({"temperature": 0.0}, {"top_k": 1})
    )
    assert greedy.token == top_1.token


def test_tiny_temperature_on_huge_logits_does_not_overflow(sampler: Sampler) -> None:
    logits = random_logits(4) * 1e4
    choices = sampler(logits, [ASK._replace(temperature=t) for t in (0.0001, 0.00002, 0.001, 100.0)])
    assert all(choice.finite and math.isfinite(choice.logprob) for choice in choices)


def test_frequencies_are_the_distribution(sampler: Sampler) -> None:
    logits = random_logits(1, seed=3)
    probabilities = (logits[0] / 0.8).index_fill(0, torch.tensor([3, 4]), -math.inf).softmax(-1)
    found = allowed(sampler, logits, ASK._replace(temperature=0.8), 4000)
    for token in range(VOCABULARY):
        assert abs(found[token] / 4000 - probabilities[token]) < 1 / 2000, token


def test_top_k_and_top_p(sampler: Sampler) -> None:
    logits = random_logits(1, seed=4)
    order = [token for token in logits[0].argsort(descending=True).tolist() if token not in (3, 4)]
    assert set(allowed(sampler, logits, ASK._replace(top_k=3, temperature=3.0))) == set(order[:3])
    probabilities = logits[0].index_fill(0, torch.tensor([3, 4]), -math.inf).softmax(-1)
    cumulative = 0.0
    nucleus = set()
    for token in order:
        nucleus.add(token)
        cumulative += float(probabilities[token])
        if cumulative >= 0.7:
            break
    assert set(allowed(sampler, logits, ASK._replace(top_p=0.7), 4000)) == nucleus


def test_top_p_beyond_the_first_candidates() -> None:
    """A flat distribution over 2000 tokens: half of its mass is 1000 tokens."""
    sampler = Sampler(2000, [], END, torch.device("cpu"))
    logits = torch.linspace(1e-3, 0, 2000)[None]
    found = allowed(sampler, logits, ASK._replace(top_p=0.5), 4000)
    assert 995 <= max(found) <= 1005 and len(found) > 990
    # in one batch with rows that need nothing of the kind
    asks = [
        ASK._replace(top_p=0.5, uniform=0.9999),
        ASK._replace(uniform=0.9999),
        ASK._replace(top_k=3, uniform=0.9999),
    ]
    tokens = [choice.token for choice in sampler(logits.expand(3, -1), asks)]
    assert 995 <= tokens[0] <= 1005 and tokens[1] >= 1995 and tokens[2] == 2


def test_extreme_uniform_numbers(sampler: Sampler) -> None:
    logits = torch.full((1, VOCABULARY), -50.0)
    logits[0, 10] = logits[0, 20] = 0.0
    low, high = (sampler(logits, [ASK._replace(uniform=u)])[0].token for u in (0.0, 1 - 2**-53))
    assert low in range(11) and high in range(20, VOCABULARY)
    banned = ASK._replace(banned=tuple(range(21, VOCABULARY)))
    assert sampler(logits, [banned._replace(uniform=1 - 2**-53)])[0].token == 20


def test_bans_and_what_is_left_when_all_is_banned(sampler: Sampler) -> None:
    logits = random_logits(3, seed=5)
    logits[:, 3] = 100.0  # never allowed
    everything = tuple(range(VOCABULARY))
    asks = [ASK._replace(banned=everything), ASK._replace(banned=everything, temperature=0.0), ASK]
    choices = sampler(logits, asks)
    assert [choice.token for choice in choices[:2]] == [END, END]
    assert choices[2].token not in (3, 4)


def test_logprobs_are_those_of_the_raw_logits(sampler: Sampler) -> None:
    logits = random_logits(6, seed=6)
    asks = [ask._replace(logprobs=row) for row, ask in enumerate(mixed_asks(6))]
    logprobs = logits.log_softmax(-1)
    for row, choice in enumerate(sampler(logits, asks)):
        assert choice.logprob == pytest.approx(float(logprobs[row, choice.token]), abs=1e-5)
        best = logprobs[row].topk(row)
        assert [token for token, _ in choice.top] == best.indices.tolist()
        assert [value for _, value in choice.top] == pytest.approx(best.values.tolist(), abs=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_rows_are_marked_and_disturb_nobody(sampler: Sampler, value: float) -> None:
    logits = random_logits(5, seed=7)
    good = sampler(logits, mixed_asks(5))
    logits[2, 11] = value
    found = sampler(logits, mixed_asks(5))
    assert [choice.finite for choice in found] == [True, True, False, True, True]
    for row in (0, 1, 3, 4):
        assert isinstance(found[row], Choice) and found[row] == good[row]
    logits[2] = value
    assert [choice.finite for choice in sampler(logits, mixed_asks(5))] == [True, True, False, True, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits(sampler: Sampler, dtype: torch.dtype) -> None:
    logits = random_logits(20, seed=8).to(dtype)
    asks = mixed_asks(20)
    assert [choice.token for choice in sampler(logits, asks)] == [
        plain(row, ask) for row, ask in zip(logits, asks, strict=True)
    ]
