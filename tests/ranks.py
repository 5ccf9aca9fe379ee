"""Run a function in several tensor parallel ranks, each a process of its own."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def run_ranks(size: int, task: Callable[..., Any], *arguments: Any) -> list[Any]:
    """task(ranks, *arguments) of every rank, in order. The results travel by pickle: no tensors."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(size, multiprocessing.get_context("spawn")) as processes,
    ):
        rendezvous = Path(folder) / "rendezvous"
        futures = [processes.submit(as_rank, rendezvous, rank, size, task, arguments) for rank in range(size)]
        return [future.result() for future in futures]


def as_rank(rendezvous: Path, rank: int, size: int, task: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """One rank's life."""
    import torch

    from engine.glm import parallel

    torch.set_num_threads(1)
    ranks = parallel.connect(rendezvous, rank, size, torch.device("cpu"))
    try:
        return task(ranks, *arguments)
    finally:  # when this one fails, the others must not wait for it
        torch.distributed.destroy_process_group()
