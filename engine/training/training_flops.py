"""How many operations a training step needs: divided by its seconds and the machine's matmul peak, it is the share of peak.

    needed = training_flops(config, batch.tokens, targets, attended(batch.document))
    share = needed / seconds / matmul_peak(1.0)     # of one process; divide by their number where `needed` is of all

Operations are those of PaLM's "model FLOPs utilisation" (arXiv 2204.02311, appendix B): what forward and backward need once.
What is computed again under activation checkpointing, padding, the optimiser, softmax, gelu and LayerNorm are not counted.
"""

from __future__ import annotations

import numpy

from engine.glm.config import Config
from engine.glm.forward_flops import forward_flops


def training_flops(config: Config, tokens: int, target_tokens: int, attended: int) -> int:
    """Floating point operations of forward and backward of a step: the backward pass needs each product twice, by the input and by
    the weight. Logits are made only where a target is. attended: see `attended`.
    """
    return 3 * forward_flops(config, tokens, target_tokens, attended)


def attended(document: numpy.ndarray) -> int:
    """Sum of squared sample lengths of a packed batch: document (rows, length) numbers the samples of a row, 0 is padding.

    A kernel that can't leave out what is masked computes rows * length ** 2 pairs instead.
    """
    return sum(int((numpy.bincount(row)[1:] ** 2).sum()) for row in document)
