"""How fast a model decodes here: real steps of a Runner, and what they read from the disk.

    measures = [measure(model, rows, prompt=8, steps=4) for rows in (1, 16)]

The disk's own rate is that of the same files, read by the same number of readers that do nothing else.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.errors import GLMError
from engine.glm.blanks import Prompt
from engine.glm.direct_reader import PIECE, DirectFile, aligned_bytes
from engine.glm.layer_stream import READERS
from engine.glm.memory import free_memory
from engine.glm.model import GLM
from engine.glm.offload import OffloadedGLM
from engine.glm.size import format_size
from engine.serving.cache import kept_dtype
from engine.serving.runner import Runner
from engine.serving.work import Reading


@dataclass(frozen=True, slots=True)
class Measure:
    """Means over the steps with so many rows; a step makes a token of each row."""

    rows: int
    prompt_seconds: float  # of the one pass that read the prompts of all rows
    step_seconds: float
    read_bytes: int  # from the device, a step
    waited_seconds: float  # for layers that had not come, a step

    @property
    def token_seconds(self) -> float:
        return self.step_seconds / self.rows

    @property
    def read_rate(self) -> float:
        """Bytes a second."""
        return self.read_bytes / self.step_seconds

    @property
    def compute_share(self) -> float:
        """Of a step's time, the part in which the layers did not wait."""
        return 1 - self.waited_seconds / self.step_seconds


def measure(model: GLM, rows: int, prompt: int, steps: int) -> Measure:
    """Read `rows` prompts of so many tokens in one pass, then take `steps` steps with all rows."""
    runner = Runner(model, rows, prompt + steps + 1)
    readings = random_readings(model, rows, prompt)
    began = time.perf_counter()
    state = runner.read(readings)
    runner.advance(state)
    tokens = runner.logits(state).argmax(dim=-1).tolist()
    prompt_seconds = time.perf_counter() - began
    began, read, waited = time.perf_counter(), device_bytes(), _waited(model)
    for step in range(steps):
        column = prompt + 1 + step
        state = runner.step(range(rows), tokens, [column] * rows, [column] * rows)
        runner.advance(state)
        logits = runner.logits(state)
        if not torch.isfinite(logits).all():
            raise GLMError("non_finite_logits", "The model gave inf or nan.")
        tokens = logits.argmax(dim=-1).tolist()
    return Measure(
        rows,
        prompt_seconds,
        (time.perf_counter() - began) / steps,
        (device_bytes() - read) // steps,
        (_waited(model) - waited) / steps,
    )


def random_readings(model: GLM, rows: int, prompt: int) -> list[Reading]:
    """Prompts of so many random tokens and a `sop`, for slots 0 to rows - 1."""
    ids = torch.randint(0, model.config.vocabulary, (rows, prompt + 1), generator=torch.Generator().manual_seed(rows))
    return [
        Reading(Prompt(tuple(row), tuple(range(prompt + 1)), prompt, prompt, 1), slot)
        for slot, row in enumerate(ids.tolist())
    ]


def _waited(model: GLM) -> float:
    return model.waited if isinstance(model, OffloadedGLM) else 0.0


def device_bytes() -> int:
    """What this process has had read from block devices so far, as the kernel counts it."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def peak_memory() -> int:
    """The most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cache_bytes(model: GLM, rows: Sequence[int], prompt: int, steps: int) -> int:
    """The keys and values of the largest Runner that `measure` makes."""
    columns = max(rows) * (prompt + steps + 1)
    number = kept_dtype(model, "auto").itemsize
    return 2 * columns * len(model.layers) * (model.config.hidden // model.ranks.size) * number


def check_memory(needed: int) -> None:
    """GLMError overloaded, if the system doesn't have so many bytes."""
    free = free_memory()
    if needed > free:
        message = f"{format_size(needed)} of memory are needed for weights and cache, {format_size(free)} are free."
        raise GLMError("overloaded", message, field="weights_budget", limit=free)


def disk_rate(files: Sequence[DirectFile], limit: int = 12 << 30) -> float:
    """Bytes a second when the files are read one after the other, past the page cache, up to `limit` bytes."""
    ranges = [(file, offset) for file in files for offset in range(0, file.size, PIECE)][: max(1, limit // PIECE)]
    if not ranges:
        return 0.0
    work = iter(ranges)

    def read(_: int) -> int:
        buffer, done = aligned_bytes(PIECE), 0
        for file, offset in iter(lambda: next(work, None), None):
            wanted = min(PIECE, file.size - offset)
            file.read(buffer, offset, wanted)
            done += wanted
        return done

    began = time.perf_counter()
    with ThreadPoolExecutor(READERS) as readers:
        return sum(readers.map(read, range(READERS))) / (time.perf_counter() - began)
