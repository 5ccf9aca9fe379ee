"""The share of instructions in pre-training: GLM-130B spent 5% of its tokens on them (arXiv 2210.02414, section 2.3)."""

from __future__ import annotations

from engine.errors import GLMError


def multitask_weights(
    documents: dict[str, float], instructions: dict[str, int], share: float = 0.05
) -> dict[str, float]:
    """Weights of a stage, shares of its tokens that add up to 1: instructions get `share` in all, each in proportion.

    documents: source -> weight among the documents. instructions: source -> its rows, with caps applied, so that one large
    data set doesn't crowd out the others. Error: bad_data, for a share that can't be kept.
    """
    if not 0 <= share <= 1:
        raise GLMError("bad_data", f"The share of instructions is {share}, not from 0 to 1.", field="share")
    if twice := sorted(documents.keys() & instructions.keys()):
        raise GLMError("bad_data", f"{twice[0]} is among the documents and the instructions.", field="weights")
    weights = {}
    for what, group, part in (("documents", documents, 1 - share), ("instructions", instructions, share)):
        if negative := [name for name, size in group.items() if size < 0]:
            raise GLMError("bad_data", f"{negative[0]}: {group[negative[0]]} is below 0.", field="weights")
        total = sum(group.values())
        if part > 0 and total <= 0:
            raise GLMError("bad_data", f"There are no {what} for {part:.0%} of the tokens.", field="weights")
        weights |= {name: part * size / total if total else 0.0 for name, size in group.items()}
    return weights
