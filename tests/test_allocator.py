"""Freed memory stays in the process once it is asked to; large blocks lie in large pages."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from engine.glm.allocator import with_large_pages

PROGRAM = """
import resource, sys
import numpy
from engine.glm.allocator import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else None

def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        numpy.ones(1 << 23)  # 64 MiB, made and freed
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(2)
print(kept, faults(20))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library's mallopt")
def test_freed_memory_is_kept() -> None:
    def run(how: str) -> tuple[str, int]:
        shown = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
        kept, faults = shown.stdout.split()
        return kept, int(faults)

    (_, usual), (kept, few) = run("usual"), run("keep")
    if kept == "False":
        pytest.skip("another C library than glibc")
    assert few < usual / 20


LARGE = """
import re
kept = b"1" * (1 << 27)
print(re.search(r"AnonHugePages:\\s+(\\d+)", open("/proc/self/smaps_rollup").read()).group(1))
"""


def test_large_pages() -> None:
    """128 MiB lie in pages of 2 MiB, and what the user says stays."""
    assert with_large_pages({"A": "1"}) == {"A": "1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    assert with_large_pages({"GLIBC_TUNABLES": "glibc.malloc.check=3"}) == {
        "GLIBC_TUNABLES": "glibc.malloc.check=3:glibc.malloc.hugetlb=1"
    }
    said = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
    assert with_large_pages(said) == said
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if (
        not enabled.is_file()
        or "[madvise]" not in enabled.read_text()
        or tuple(map(int, _glibc().split("."))) < (2, 35)
    ):
        pytest.skip("no large pages for those who ask, or no glibc that asks")

    def kibibytes(environment: Mapping[str, str]) -> int:
        shown = subprocess.run(
            [sys.executable, "-c", LARGE], env=environment, capture_output=True, text=True, check=True
        )
        return int(shown.stdout)

    usual = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    assert kibibytes(with_large_pages(usual)) > kibibytes(usual) + 100_000


def _glibc() -> str:
    kind, version = platform.libc_ver()
    return version if kind == "glibc" else "0"
