"""95% confidence intervals: Wilson's for shares, the bootstrap's for everything else. The same rows give the same interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LEVEL = 0.95
_Z = 1.959963984540054  # of the normal distribution, two-sided
_SAMPLES = 2000
_CHUNK = 2_000_000  # numbers drawn at once: 16 MB

Interval = tuple[float, float]


def wilson(right: float, count: int) -> Interval:
    """Of the share right/count, as shares (Wilson 1927); good for few rows and near 0 and 1, too."""
    assert 0 <= right <= count and count > 0
    share = right / count
    denominator = 1 + _Z**2 / count
    middle = (share + _Z**2 / (2 * count)) / denominator
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)) / denominator
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap_mean(values: Sequence[float]) -> Interval:
    """Of the mean over rows (Efron's percentile bootstrap). A single row gives an interval of no width, which is told as none."""
    return bootstrap_ratio(values, np.ones(len(values)))


def bootstrap_ratio(above: Sequence[float], below: Sequence[float] | np.ndarray) -> Interval:
    """Of sum(above) / sum(below), rows drawn together: a loss by tokens."""
    tops, bottoms = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    assert len(tops) == len(bottoms) > 0
    ratios = np.concatenate([tops[drawn].sum(1) / bottoms[drawn].sum(1) for drawn in _draws(len(tops))])
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def bootstrap_difference(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Of mean(second) - mean(first) where the rows are others: each side is drawn by itself."""
    sides = [np.asarray(values, dtype=np.float64) for values in (first, second)]
    means = [
        np.concatenate([side[drawn].mean(1) for drawn in _draws(len(side), seed)]) for seed, side in enumerate(sides)
    ]
    low, high = np.quantile(means[1] - means[0], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _draws(count: int, seed: int = 0):
    """Rows drawn with replacement, a sample a line, in parts that fit memory."""
    generator = np.random.default_rng(seed)
    at_once = max(1, min(_SAMPLES, _CHUNK // count))
    for start in range(0, _SAMPLES, at_once):
        yield generator.integers(0, count, (min(at_once, _SAMPLES - start), count))
