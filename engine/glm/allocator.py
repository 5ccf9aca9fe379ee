"""Keep freed memory in the process: glibc gives large blocks back to the system at once, and gets them again page by page.

A training step or a prefill makes and frees the same large tensors every time. Measured at 10.9M parameters, 32 x 256 tokens
a step, two cores: 1,036 tokens/s with glibc's defaults, 1,644 with freed blocks kept. Torch-free.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # mallopt's names, from glibc's malloc.h
_MOST = 2**31 - 1
_AT_ONCE = 64 << 20  # bytes that the heap grows by


def keep_freed_memory() -> bool:
    """Ask this process's allocator to keep what is freed, up to its peak. False where it isn't glibc's; nothing changes then."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no such library call: macOS, musl, Windows
        return False
    wanted = ((_MMAP_THRESHOLD, _MOST), (_TRIM_THRESHOLD, _MOST), (_TOP_PAD, _AT_ONCE))
    done = [mallopt(name, value) == 1 for name, value in wanted]
    return all(done)
