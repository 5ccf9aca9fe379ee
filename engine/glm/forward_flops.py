"""How many operations a forward pass needs, a multiplication and an addition counted as two."""

from __future__ import annotations

from engine.glm.config import Config


def forward_flops(config: Config, tokens: int, logits: int, attended: int) -> int:
    """matrices of the layers   2 * parameters * tokens
    attention                4 * layers * hidden * attended     query times key and weights times value
    logits                   2 * vocabulary * hidden * logits   for so many tokens

    attended: the sum of squared lengths of what attends to itself. Sources: Kaplan et al., arXiv 2001.08361, table 1; Chowdhery
    et al., arXiv 2204.02311, appendix B, which counts masked pairs in full, as here. Softmax, gelu and LayerNorm aren't counted.
    """
    # query_key_value and dense; dense_h_to_4h with its two halves and dense_4h_to_h
    matrices = config.layers * (4 * config.hidden**2 + 3 * config.hidden * config.inner)
    return (
        2 * matrices * tokens
        + 4 * config.layers * config.hidden * attended
        + 2 * config.vocabulary * config.hidden * logits
    )
