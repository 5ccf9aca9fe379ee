"""How the replicas of a pool are to run: what was asked for, checked before any process is started. Torch-free."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from engine.errors import GLMError
from engine.glm.cache_precision import KV_CACHES
from engine.glm.config import W8A8, Config, base_folder, check_split, resolve_model, weights_size
from engine.serving.protocol import OFFLOADS, PRECISIONS, Options

DEVICES = ("auto", "cpu")


def plan_replicas(
    model: str | Path,
    *,
    replicas: int,
    tensor_parallel: int,
    slots: int,
    threads: int | None,
    precision: str,
    quantize: str | None,
    offload: str,
    weights_budget: int | None,
    device: str,
    prefill_tokens: int,
    gap_seconds: float,
    batch_invariant: bool,
    kv_cache: str,
    eager: bool,
) -> list[Options]:
    """The options of each replica's rank 0; for the arguments see pool.Pool.

    GLMError bad_request for a value that can't be; model_not_found, bad_model, unsupported if the model can't be served so.
    """
    for name, value in (
        ("replicas", replicas),
        ("tensor_parallel", tensor_parallel),
        ("slots", slots),
        ("threads", threads),
        ("weights_budget", weights_budget),
    ):
        if value is not None and value < 1:
            raise GLMError("bad_request", f"{name} must be at least 1.", field=name, limit=1)
    for name, choice, known in (
        ("precision", precision, PRECISIONS),
        ("offload", offload, OFFLOADS),
        ("device", device, DEVICES),
        ("kv_cache", kv_cache, KV_CACHES),
    ):
        if choice not in known:
            raise GLMError("bad_request", f"{name} must be one of {', '.join(known)}.", field=name)
    if not 0 <= gap_seconds <= 3600:
        raise GLMError("bad_request", "gap_seconds must be from 0 to 3600.", field="gap_seconds", limit=3600)
    if weights_budget is not None and offload == "none":
        message = "weights_budget says how much is loaded at a time: it needs offload host or disk."
        raise GLMError("bad_request", message, field="weights_budget")
    # Every rank would find what follows by itself, one process start later.
    folder = resolve_model(model)
    if base_folder(folder) != folder and offload != "none":
        message = f"The layers of {model} can't be streamed, for it is an adapter: merge it with its base first."
        raise GLMError("unsupported", message, field="offload")
    if quantize == W8A8 and offload != "none":
        message = "w8a8 is for weights that are loaded: it can't be had with offload."
        raise GLMError("unsupported", message, field="quantize")
    check_split(Config.load(folder).quantized(quantize, tensor_parallel), tensor_parallel)
    if threads is None:
        # A parallel region waits for its slowest thread: with a busy web process on the same core it stalls.
        threads = max(1, (_cores() - 1) // (replicas * tensor_parallel))
    return [
        Options(
            folder=str(model),
            precision=precision,
            slots=slots,
            threads=threads,
            device=None if device == "cpu" else index * tensor_parallel,
            prefill_tokens=prefill_tokens,
            gap_seconds=gap_seconds,
            log_level=logging.getLogger().getEffectiveLevel(),
            tensor_parallel=tensor_parallel,
            quantize=quantize,
            offload=offload,
            weights_budget=weights_budget,
            batch_invariant=batch_invariant,
            kv_cache=kv_cache,
            eager=eager,
        )
        for index in range(replicas)
    ]


def loading_seconds(model: str | Path) -> float:
    """What loading may take: the weights are read twice, for the model and for their hash, from a disk of 100 MB/s."""
    return 600.0 + 2 * weights_size(resolve_model(model)) // 100_000_000


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
