"""Shares of a stage's tokens: of instructions in pre-training, to which GLM-130B gave 5% (arXiv 2210.02414, section 2.3), and of
general data in fine-tuning, replayed so that it isn't forgotten."""

from __future__ import annotations

from collections.abc import Mapping

from engine.errors import GLMError
from engine.training.recipe import Stage


def mixed_weights(
    weights: Mapping[str, float],
    added: Mapping[str, float],
    share: float,
    names: tuple[str, str] = ("documents", "instructions"),
) -> dict[str, float]:
    """Weights that add up to 1: the `added` sources get `share` in all, the others the rest, each in proportion.

    names: of both groups, for messages. Error: bad_data, for a share that can't be kept.
    """
    if not 0 <= share <= 1:
        raise GLMError("bad_data", f"The share of {names[1]} is {share}, not from 0 to 1.", field="share")
    if twice := sorted(weights.keys() & added.keys()):
        raise GLMError("bad_data", f"{twice[0]} is among the {names[0]} and the {names[1]}.", field="weights")
    mixed = {}
    for what, group, part in ((names[0], weights, 1 - share), (names[1], added, share)):
        if negative := [name for name, size in group.items() if size < 0]:
            raise GLMError("bad_data", f"{negative[0]}: {group[negative[0]]} is below 0.", field="weights")
        total = sum(group.values())
        if part > 0 and total <= 0:
            raise GLMError("bad_data", f"There are no {what} for {part:.0%} of the tokens.", field="weights")
        mixed |= {name: part * size / total if total else 0.0 for name, size in group.items()}
    return mixed


def stage_weights(stage: Stage, sizes: Mapping[str, int]) -> dict[str, float]:
    """Shares of a stage's tokens by source. sizes: rows of each, with caps applied, by which instructions are weighed: a large
    data set doesn't crowd out the others. GLMError bad_data where they can't be kept."""
    weights = stage.weights
    if stage.replay is not None:
        weights = mixed_weights(weights, stage.replay.weights, stage.replay.share, ("own data", "replayed data"))
    if stage.multitask is not None:
        instructions = {name: sizes[name] for name in stage.multitask.sources}
        weights = mixed_weights(weights, instructions, stage.multitask.share)
    return weights
