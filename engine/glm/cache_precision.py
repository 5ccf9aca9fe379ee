"""In what precision keys and values are kept. Torch-free.

Steps read them again and again: at 16 rows of some hundred tokens they are more bytes than the weights of 4 or 8 bits.
"""

from __future__ import annotations

AUTO, FULL, HALF = "auto", "full", "fp16"
KV_CACHES = (AUTO, FULL, HALF)


def cache_precision(kv_cache: str, precision: str, quantized: bool) -> str:
    """kv_cache: of KV_CACHES. full: that of the arithmetic; auto: the same, but fp16 where weights are quantised and the
    arithmetic is fp32, for their own rounding is coarser by far. fp16 ends at 65,504: GLMs, trained in it, stay below."""
    assert kv_cache in KV_CACHES
    half = kv_cache == HALF or (kv_cache == AUTO and quantized and precision == "fp32")
    return "fp16" if half else precision
