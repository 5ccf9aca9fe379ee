"""What this machine can do: operations of matrix products a second, and bytes of memory read a second.

machine = measure_machine()
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

_READ_BYTES = 1 << 29
_SIZES = {"cpu": (256, 512, 1024, 2048)}
_ACCELERATOR_SIZES = (1024, 2048, 4096, 8192)
_BLOCK = (
    0.01  # seconds of multiplications between two looks at the clock, which on an accelerator cost a synchronisation
)


def matmul_peak(
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


def read_bandwidth(seconds: float, device: torch.device) -> float:
    """Bytes a second: the best of several sums over more numbers than any cache holds."""
    numbers = torch.ones(_READ_BYTES // 4, device=device)
    best, ends = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < ends:
        began = time.perf_counter()
        float(numbers.sum())
        best = min(best, time.perf_counter() - began)
    return _READ_BYTES / best


@dataclass(frozen=True, slots=True)
class Machine:
    """flops: of fp32 matrix products a second; bandwidth: bytes of memory read a second."""

    threads: int
    flops: float
    bandwidth: float


def measure_machine(device: torch.device, seconds: float = 1.0) -> Machine:
    """With the present number of threads; it takes twice the seconds."""
    return Machine(torch.get_num_threads(), matmul_peak(seconds, device=device), read_bandwidth(seconds, device))
