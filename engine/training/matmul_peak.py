"""How fast this machine multiplies matrices, and how many operations a training step needs: their ratio is the share of peak.

    peak = measure(1.0, torch.float32, device)
    needed = training_flops(config, batch.tokens, targets, attended(batch.document))
    share = needed / seconds / peak          # of one process; divide by their number where `needed` is of all

Operations are those of PaLM's "model FLOPs utilisation" (arXiv 2204.02311, appendix B): what forward and backward need once.
What is computed again under activation checkpointing, padding, the optimiser, softmax, gelu and LayerNorm are not counted.
"""

from __future__ import annotations

import time

import numpy
import torch

from engine.glm.config import Config

_SIZES = {"cpu": (256, 512, 1024, 2048)}
_ACCELERATOR_SIZES = (1024, 2048, 4096, 8192)
_BLOCK = (
    0.01  # seconds of multiplications between two looks at the clock, which on an accelerator cost a synchronisation
)


def measure(
    seconds: float = 1.0, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> float:
    """FLOP/s: the best block of multiplications of square matrices of several sizes, with the present number of threads.

    It takes about `seconds`, more only where one multiplication of the smallest size does. device: the accelerator if there is
    one, else the CPU. fp32 is what torch.get_float32_matmul_precision makes of it.
    """
    assert seconds > 0
    if device is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    device = torch.device(device)
    sizes = _SIZES.get(device.type, _ACCELERATOR_SIZES)
    best, ends = 0.0, time.perf_counter() + seconds
    for number, size in enumerate(sizes):
        left = ends - time.perf_counter()
        # The next size takes eight times as long: not begun where two of it would not fit, the first being to warm up.
        if best and 2 * 2 * size**3 / best > left:
            break
        best = max(best, _of_size(size, left / (len(sizes) - number), dtype, device))
    return best


def _of_size(size: int, seconds: float, dtype: torch.dtype, device: torch.device) -> float:
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty(size, size, dtype=dtype, device=device)

    def block(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            torch.mm(left, right.t(), out=product)  # as a linear layer: on some CPUs fp16 is slow otherwise
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - started

    ends = time.perf_counter() + seconds
    block(1)  # libraries choose and load their kernels, memory is touched
    once = block(1)
    count = max(1, round(_BLOCK / max(once, 1e-9)))
    best = once
    while time.perf_counter() + count * best < ends:
        best = min(best, block(count) / count)
    return 2 * size**3 / best


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
