"""Freed memory stays in the process once it is asked to."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
