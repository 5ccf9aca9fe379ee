"""Amounts of memory as people write them: `12GiB`, `12GB`, `1.5 MiB`, `800000`. Torch-free."""

from __future__ import annotations

import re

from engine.errors import GLMError

UNITS = {"": 1, "B": 1} | {
    f"{prefix}{ending}": base**power
    for ending, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate(("K", "M", "G", "T"), start=1)
}


def parse_size(text: str) -> int:
    """Bytes. K, M, G and T count in thousands before B and in 1024s before iB; capitals don't matter.

    GLMError bad_request for anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    units = {unit.lower(): factor for unit, factor in UNITS.items()}
    if match is None or match[2].lower() not in units:
        raise GLMError("bad_request", f"{text!r} is not a size: write it as 12GiB, 12GB or 800MiB.", field="size")
    return int(float(match[1]) * units[match[2].lower()])


def format_size(size: int) -> str:
    """In the largest unit of 1024s that leaves at least 1, as `12 GiB`, `1.5 MiB`, `800 B`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= UNITS[unit]:
            return f"{size / UNITS[unit]:.1f}".removesuffix(".0") + f" {unit}"
    return f"{size} B"
