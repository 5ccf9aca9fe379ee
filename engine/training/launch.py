"""Join the other processes of a run, whoever started them: one process alone, torchrun, or the deepspeed launcher."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import torch


def join(folder: Path) -> tuple[int, int]:
    """(rank, number of ranks). folder: where a process that is alone meets itself; no port is taken then."""
    with contextlib.redirect_stdout(sys.stderr):  # what it has to say goes to the stream that it finds now
        import deepspeed

    # gloo needs no shared-memory kernel; without this DeepSpeed would compile one.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", 0)))
    if torch.distributed.is_initialized():
        return rank, world
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists, even for one process without a launcher
    alone: dict[str, str] = {}
    if "MASTER_ADDR" not in os.environ:
        meeting = folder.resolve() / ".rendezvous"
        meeting.unlink(missing_ok=True)
        alone = {"init_method": f"file://{meeting}"}
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    deepspeed.init_distributed(
        dist_backend=torch.distributed.get_default_backend_for_device(device),
        rank=rank,
        world_size=world,
        auto_mpi_discovery=False,
        verbose=False,
        **alone,
    )
    return rank, world
