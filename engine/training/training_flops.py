"""How many operations a training step needs: divided by its seconds and the machine's matmul peak, it is the share of peak.

    needed = training_flops(config, batch.tokens, targets, attended(batch.document))
    share = needed / seconds / matmul_peak(1.0)     # of one process; divide by their number where `needed` is of all

Operations are those of PaLM's "model FLOPs utilisation" (arXiv 2204.02311, appendix B): what forward and backward need once.
What is computed again under activation checkpointing, padding, the optimiser, softmax, gelu and LayerNorm are not counted.
"""

from __future__ import annotations

import numpy

from engine.glm.config import Config


def training_flops(config: Config, tokens: int, target_tokens: int, attended: int) -> int:
    """Floating point operations of forward and backward of a step, a multiplication and an addition counted as two.

    matrices of the layers   6 * parameters * tokens             2 forward, 4 backward: by the input and by the weight
    attention                12 * layers * hidden * attended     query times key and weights times value: 4 forward, 8 backward
    logits                   6 * vocabulary * hidden * target_tokens     they are made only where a target is

    attended: the sum of squared lengths of what attends to itself, see `attended`. Sources: Kaplan et al., arXiv 2001.08361,
    table 1; Chowdhery et al., arXiv 2204.02311, appendix B, which counts masked pairs in full, as here.
    """
    # query_key_value and dense; dense_h_to_4h with its two halves and dense_4h_to_h
    matrices = config.layers * (4 * config.hidden**2 + 3 * config.hidden * config.inner)
    return (
        6 * matrices * tokens
        + 12 * config.layers * config.hidden * attended
        + 6 * config.vocabulary * config.hidden * target_tokens
    )


def attended(document: numpy.ndarray) -> int:
    """Sum of squared sample lengths of a packed batch: document (rows, length) numbers the samples of a row, 0 is padding.

    A kernel that can't leave out what is masked computes rows * length ** 2 pairs instead.
    """
    return sum(int((numpy.bincount(row)[1:] ** 2).sum()) for row in document)
