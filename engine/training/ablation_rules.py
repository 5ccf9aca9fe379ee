"""Which of GLM-130B's claims of stability an ablation's results show, by numbers that are fixed here beforehand. No torch.

`verdict` is one of the words below, or says one of them of stability and one of the final loss; `why` holds the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, median, pstdev, variance

from engine.training.watch import Watch

SHOWS, PARTLY, NOT, AGAINST = "shows", "shows in part", "does not show", "the opposite shows"
MIXED, OPEN, UNTESTED = "mixed", "open", "untested"

WATCH = {"factor": 1.2, "window": 20, "patience": 3}
LAST = 0.1  # share of the steps whose mean loss is a run's final loss
EARLY = 0.25  # share of the steps that count as early
LEAST = 0.02  # nats: a smaller difference of final losses is none, however sure
MORE_EVENTS = 2  # spikes and diverged runs of a cell
VANISHED = 0.01  # of the embedding's gradient norm
# Student's t, two-sided 5%, by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 8: 2.306, 10: 2.228, 14: 2.145, 20: 2.086, 30: 2.042}

RULES = (
    f"Final loss: the mean of the last {LAST:.0%} of the steps. All variants of a seed see the same batches.",
    f"Spike: engine.training.watch's rule with factor {WATCH['factor']}, window {WATCH['window']}, patience {WATCH['patience']}: "
    "so many losses in a row as the patience above the factor times the median of the window's good ones. The window then begins "
    "anew, so that a loss that stays high counts once; and in the first half of a window nothing counts.",
    "Diverged: 20 steps in a row without a finite loss and gradient.",
    "Cell: one depth at one learning rate. Final losses differ where Student's t over the seeds, with the pooled spread, is "
    f"beyond 5% (two-sided) and the difference is over {LEAST} nats; one cell in twenty does so by chance alone. Stability "
    f"differs where the spikes and diverged runs of all seeds differ by {MORE_EVENTS} or more.",
    f"A claim that A is better than B, of stability and of final loss apart: {SHOWS} if A is better in at least one cell and B in "
    f"none; {AGAINST} if it is the other way round; {MIXED} if both happen; {NOT} if no cell differs; {OPEN} with one "
    f"seed; {UNTESTED} for the stability of variants none of whose runs spiked or diverged.",
    f"Stuck: over the last {LAST:.0%} of the steps the median layer's gradient norm is below {VANISHED:g} of the embedding's "
    "(medians of the steps): next to nothing is learnt but how frequent each token is. No verdict comes of it; it explains some.",
)


@dataclass(frozen=True, slots=True)
class Verdict:
    claim: str
    verdict: str
    why: str


@dataclass(frozen=True, slots=True)
class Cell:
    """One variant's runs at one depth and rate, one a seed."""

    variant: str
    depth: int
    rate: float
    runs: list[dict]

    @property
    def losses(self) -> list[float]:
        """Final ones, of the runs that have one."""
        return [loss for run in self.runs if (loss := final_loss(run)) is not None]

    @property
    def spikes(self) -> int:
        return sum(spikes(run["curves"]["loss"]) for run in self.runs)

    @property
    def diverged(self) -> int:
        return sum(run["diverged"] for run in self.runs)

    @property
    def stuck(self) -> int:
        return sum(map(stuck, self.runs))

    @property
    def events(self) -> int:
        return self.spikes + self.diverged


def cells(results: Iterable[dict]) -> dict[tuple[int, float], dict[str, Cell]]:
    """(depth, rate) -> variant -> its runs."""
    found: dict[tuple[int, float], dict[str, Cell]] = {}
    for row in results:
        place = found.setdefault((row["depth"], row["rate"]), {})
        place.setdefault(row["variant"], Cell(row["variant"], row["depth"], row["rate"], [])).runs.append(row)
    return dict(sorted(found.items()))


def final_loss(run: dict) -> float | None:
    """None for a diverged run."""
    losses = run["curves"]["loss"]
    last = [loss for loss in losses[-max(1, round(len(losses) * LAST)) :] if loss is not None]
    return None if run["diverged"] or not last else fmean(last)


def spikes(losses: list[float | None]) -> int:
    """By the rule above. A loss without a number is no spike of its own: see `diverged`."""
    watch, count = Watch(**WATCH), 0
    for loss in losses:
        if loss is not None and watch.after(loss, None) == "rewind":
            count += 1
            watch.forget([])
    return count


def stuck(run: dict) -> bool:
    """By the rule above; a diverged run is not."""
    size = max(1, round(len(run["curves"]["loss"]) * LAST))
    layers, embedding = (
        [value for value in run["curves"][name][-size:] if value is not None] for name in ("layer_median", "embedding")
    )
    return bool(layers and embedding) and not run["diverged"] and median(layers) < VANISHED * median(embedding)


def t_limit(freedom: int) -> float:
    """Student's t that 5% of chance differences are beyond; that of fewer degrees of freedom where the table has a gap."""
    return _T[max(known for known in _T if known <= freedom)]


def loss_difference(one: list[float], other: list[float]) -> tuple[float, float | None]:
    """(mean of other - mean of one, how far it must be from 0 to count; None if the seeds are too few to tell)."""
    if len(one) < 2 or len(other) < 2:
        return (fmean(other) - fmean(one) if one and other else math.nan), None
    freedom = len(one) + len(other) - 2
    pooled = ((len(one) - 1) * variance(one) + (len(other) - 1) * variance(other)) / freedom
    error = math.sqrt(pooled * (1 / len(one) + 1 / len(other)))
    return fmean(other) - fmean(one), max(LEAST, t_limit(freedom) * error)


def compare(claim: str, results: list[dict], better: str, worse: str) -> Verdict | None:
    """A verdict on "better is better than worse"; None if no cell has both."""
    stability, losses, parts, told, events = set(), set(), [], False, 0
    for (depth, rate), variants in cells(results).items():
        if better not in variants or worse not in variants:
            continue
        one, other = variants[better], variants[worse]
        more = other.events - one.events
        events += other.events + one.events
        if abs(more) >= MORE_EVENTS:
            stability.add(more > 0)
        difference, needed = loss_difference(one.losses, other.losses)
        differs = needed is not None and abs(difference) > needed
        if differs:
            losses.add(difference > 0)
        told = told or needed is not None
        limit = "too few runs to tell" if needed is None else f"needs {needed:.3f}"
        mark = "*" if differs else ""
        parts.append(
            f"{depth} layers at {rate:g}: loss {difference:+.3f}{mark} ({limit}), spikes and divergences {more:+d}"
            + ("*" if abs(more) >= MORE_EVENTS else "")
        )
    if not parts:
        return None
    verdict = f"stability: {_of(stability) if events else UNTESTED}; final loss: {_of(losses) if told else OPEN}"
    return Verdict(claim, verdict, f"{worse} minus {better}. " + "; ".join(parts) + ".")


def _of(signs: set[bool]) -> str:
    """signs: whether the claim's side was the better one, of the cells that differ."""
    return {(): NOT, (True,): SHOWS, (False,): AGAINST}.get(tuple(signs), MIXED)


def _early(run: dict, name: str) -> list[float]:
    values = run["curves"][name]
    return [value for value in values[: max(2, math.ceil(len(values) * EARLY))] if value]


def embedding_ratio(run: dict, name: str = "embedding") -> float:
    """Median over the early steps of a gradient's norm, over that of the layers' (each step's median layer)."""
    layers = median(_early(run, "layer_median") or [math.nan])
    return median(_early(run, name) or [math.nan]) / layers


def fluctuation(run: dict, name: str) -> float:
    """Of a norm in the early steps: the standard deviation of the change of its decimal logarithm from step to step."""
    logs = [math.log10(value) for value in _early(run, name)]
    changes = [after - before for before, after in zip(logs, logs[1:], strict=False)]
    return pstdev(changes) if changes else math.nan


def growth(run: dict) -> float:
    """Of the hidden states: root mean square behind the last layer over that behind the first, at the end of the run."""
    first, last = run["hidden"][0], run["hidden"][-1]
    return last / first if first and last else math.nan


def verdicts(results: list[dict]) -> list[Verdict]:
    """On every claim that the results have the variants for."""
    found: list[Verdict] = []
    raw = [run for run in results if run["variant"] == "no-shrink"]
    if raw:
        found += [_larger(raw), _fluctuates(raw)]
    for claim, worse in (
        ("Shrinking the embedding's gradient to a tenth stabilises training (section 3.3).", "no-shrink"),
        ("DeepNorm's post-LN is better than pre-LN (section 2.2).", "pre-ln"),
        ("DeepNorm's post-LN is better than plain post-LN (section 2.2).", "post-ln"),
        ("A softmax in fp32 is better than one in fp16 (appendix B).", "fp16-softmax"),
    ):
        if (verdict := compare(claim, results, "glm-130b", worse)) is not None:
            found.append(verdict)
    if (verdict := _bounded(results)) is not None:
        found.append(verdict)
    found.append(_scores(results))
    return found


def _larger(runs: list[dict]) -> Verdict:
    ratios = [embedding_ratio(run) for run in runs]
    learnt = [ratio for ratio, run in zip(ratios, runs, strict=True) if not stuck(run)]
    of_them = f"; {min(learnt):.3g} to {max(learnt):.3g} in the {len(learnt)} that were not stuck" if learnt else ""
    lookup = median(embedding_ratio(run, "lookup") for run in runs)
    verdict = SHOWS if min(ratios) >= 100 else PARTLY if min(ratios) >= 10 else NOT
    why = (
        f"The embedding's gradient norm over the median layer's, median of the first {EARLY:.0%} of the steps, without shrink: "
        f"{min(ratios):.3g} to {max(ratios):.3g} over {len(runs)} runs{of_them} (of the looked-up part alone {lookup:.2f} in the "
        f"median run; the rest is the tied output's). Rule: at least 100 in every run {SHOWS}, at least 10 {PARTLY}."
    )
    claim = "Early in training the embedding's gradient norm is orders of magnitude above the layers' (section 3.3)."
    return Verdict(claim, verdict, why)


def _fluctuates(runs: list[dict]) -> Verdict:
    ratios = [fluctuation(run, "embedding") / (fluctuation(run, "layer_median") or math.nan) for run in runs]
    more = sum(ratio >= 1.5 for ratio in ratios)
    verdict = SHOWS if more == len(runs) else PARTLY if 2 * more > len(runs) else NOT
    why = (
        "Standard deviation of the norm's change from step to step (of its logarithm), embedding over median layer, early, "
        f"without shrink: median {median(ratios):.2f}; at least 1.5 in {more} of {len(runs)} runs. Rule: in all of them {SHOWS}, "
        f"in most {PARTLY}."
    )
    return Verdict("Early the embedding's gradient norm fluctuates more than the layers' (section 3.3).", verdict, why)


def _bounded(results: list[dict]) -> Verdict | None:
    shown, parts = 0, []
    for (depth, rate), variants in cells(results).items():
        if {"glm-130b", "pre-ln"} <= variants.keys():
            ours, theirs = (fmean(map(growth, variants[name].runs)) for name in ("glm-130b", "pre-ln"))
            shown += theirs >= 2 * ours
            parts.append(f"{depth} layers at {rate:g}: {theirs:.3g} against {ours:.3g}")
    if not parts:
        return None
    verdict = SHOWS if shown == len(parts) else PARTLY if shown else NOT
    why = (
        "Root mean square of the hidden states behind the last layer over behind the first, at the end, pre-LN against DeepNorm. "
        + "; ".join(parts)
        + f". Rule: at least twice DeepNorm's in every cell {SHOWS}, in some {PARTLY}."
    )
    return Verdict("Pre-LN's hidden states grow with the layers, DeepNorm's stay bounded (appendix B).", verdict, why)


def _scores(results: list[dict]) -> Verdict:
    beyond = sum(run["largest_score"] is None or run["largest_score"] >= 65504 for run in results)
    top = max(results, key=lambda run: run["largest_score"] or 0.0)
    where = f"{top['variant']}, {top['depth']} layers at {top['rate']:g}"
    why = (
        f"Largest attention score at the end of any run: {top['largest_score'] or math.nan:.4g} ({where}); fp16 ends at "
        f"65504. Beyond it: {beyond} of {len(results)} runs. Rule: any run {SHOWS}."
    )
    return Verdict("Attention scores grow beyond the range of fp16 (appendix B).", SHOWS if beyond else NOT, why)
