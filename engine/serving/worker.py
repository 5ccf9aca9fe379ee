"""A rank's process: loads its part of a model, then runs the scheduler's plans until its parent is gone.

Started by replica.py as `python -m engine.serving.worker DESCRIPTOR...`: its end of a pipe to the parent, then the ends of the
pipes between the ranks: rank 0's to each other rank, another rank's to rank 0. It reads options, then, in rank 0, requests.
One thread reads the parent's pipe, so that the parent is never blocked and its death is noticed even in the middle of a step;
the main thread of rank 0 waits on a queue when there is nothing to run, that of another rank on its pipe, and none ever
spins. What was cancelled while a step ran is gone before the next one.

Only rank 0 has a scheduler and a sampler. Each rank makes its part of the model where it is to stay and reads it there one
tensor's part at a time, so all ranks of a host together hold the weights once and a tensor's part each, in whatever order
they come; pages of the mapped files are the system's to drop.
"""

from __future__ import annotations

import logging
import os
import queue
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import GLMError
from engine.glm.allocator import keep_freed_memory
from engine.serving.protocol import Cancel, Failed, Limits, Loaded, LoadFailed, Options, Ready, Request, Step, Stop
from engine.serving.scheduler import Scheduler
from engine.serving.slicing import Slicer

if TYPE_CHECKING:
    import torch

    from engine.glm.model import GLM
    from engine.serving.runner import Runner
    from engine.serving.sampling import Sampler
    from engine.serving.work import Work

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Engine:
    """What rank 0 needs to run plans."""

    limits: Limits
    scheduler: Scheduler
    runner: Runner
    sampler: Sampler
    end_ids: tuple[int, ...]


def load(options: Options, announce: Callable[[Work], None]) -> Engine:
    """What rank 0 needs. GLMError as load_runner's; bad_model too if the vocabulary doesn't fit the model."""
    import torch

    from engine.glm.config import resolve_model, weights_hash
    from engine.glm.tokenizer import Tokenizer
    from engine.serving.sampling import Sampler
    from engine.serving.text import never_generated

    folder = resolve_model(options.folder)
    tokenizer = Tokenizer.load(folder)
    runner, model = load_runner(options, announce)
    config = model.config
    if tokenizer.vocabulary_size > config.vocabulary:
        raise GLMError(
            "bad_model",
            f"The vocabulary in {folder} has {tokenizer.vocabulary_size} tokens, the model only {config.vocabulary}.",
            field="model",
        )
    stored = config.quantization.name if config.quantization else None
    quantization = "".join(f", {one}" for one in dict.fromkeys((stored, options.quantize)) if one)
    limits = Limits(
        model=config.name,
        weights_hash=weights_hash(folder),
        precision=options.precision
        + quantization
        + (", fp16 cache" if runner.cache.keys.dtype != model.dtype else "")
        + (", batch-invariant" if options.batch_invariant else ""),
        device=model.device.type,
        version=f"torch {torch.__version__}",
        positions=config.positions,
        slots=options.slots,
        vocabulary=config.vocabulary,
        parameters=config.parameters(),
        tensor_parallel=options.tensor_parallel,
    )
    # With streamed layers every slice and every step between would read all of them again.
    slicer = Slicer(config.layers, options.gap_seconds) if options.gap_seconds and options.offload == "none" else None
    # A step's kernels sum in another order than a reading's: what must be the same to the bit is read again.
    retain = not options.batch_invariant
    scheduler = Scheduler(limits, tokenizer, prefill_tokens=options.prefill_tokens, slicer=slicer, retain=retain)
    sampler = Sampler(config.vocabulary, never_generated(tokenizer, config.vocabulary), tokenizer.eop, model.device)
    return Engine(limits, scheduler, runner, sampler, tokenizer.end_ids)


def load_runner(options: Options, announce: Callable[[Work], None] | None = None) -> tuple[Runner, GLM]:
    """What every rank has. GLMError bad_model, model_not_found, unsupported, overloaded (no memory)."""
    import torch

    from engine.glm import checkpoint, offload, parallel
    from engine.glm.config import resolve_model
    from engine.glm.precision import DTYPES
    from engine.glm.prepacked import prepack
    from engine.serving.runner import Runner

    torch.set_num_threads(options.threads)
    device = choose_device(options.device, options.tensor_parallel)
    dtype = DTYPES[options.precision]
    folder = resolve_model(options.folder)
    budget = check_memory(options, device)
    ranks = parallel.SINGLE
    if options.rendezvous is not None:
        ranks = parallel.connect(Path(options.rendezvous), options.rank, options.tensor_parallel, device)
    how: dict[str, Any] = {"dtype": dtype, "device": device, "ranks": ranks, "quantize": options.quantize}
    try:
        if options.offload == "none":
            model = checkpoint.load(folder, **how).requires_grad_(False)
            prepack(model)
        else:
            model = offload.load(folder, **how, place=options.offload, budget=budget)
        runner = Runner(
            model,
            options.slots,
            model.config.positions,
            announce,
            batch_invariant=options.batch_invariant,
            kv_cache=options.kv_cache,
            graphs=False if options.eager else None,
        )
        return runner, model
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise GLMError("overloaded", f"There is not enough memory for {folder} on {device}.", field="model") from error


def check_memory(options: Options, device: torch.device) -> int | None:
    """With offload, the bytes that this rank's weights may take: what was asked for, else what is free.

    GLMError overloaded, with a table, if there is no room for what is to be loaded; it is better than to be killed.
    """
    import torch

    from engine.glm.config import Config, adapter_size, resolve_model
    from engine.glm.memory import free_memory
    from engine.glm.plan import Machine, Wish, require

    folder = resolve_model(options.folder)
    config, beside = Config.load(folder), adapter_size(folder)  # of the file, in fp32: at most what a rank has of it
    if device.type == "cpu":  # all ranks ask before any of them has anything: they wait for each other to connect
        machine = Machine(0, max(0, free_memory() - beside * options.tensor_parallel))
    else:
        free = torch.accelerator.get_memory_info(device)[0]
        machine = Machine(options.tensor_parallel, max(0, free - beside), free_memory())
    wish = Wish(
        options.precision,
        options.quantize,
        options.tensor_parallel,
        options.offload,
        options.weights_budget,
        options.slots,
        config.positions,
        options.kv_cache,
    )
    found = require(config, machine, wish)
    return options.weights_budget if options.weights_budget is not None else found.weights_budget


def choose_device(number: int | None, ranks: int):
    """The torch device of an accelerator number, or the CPU. GLMError unsupported if ranks would have to share one."""
    import torch

    if number is None or not torch.accelerator.is_available():
        return torch.device("cpu")
    kind, count = torch.accelerator.current_accelerator(), torch.accelerator.device_count()
    assert kind is not None
    if ranks > count:
        message = f"{ranks} ranks need a device each, and this machine has {count} of the kind {kind.type}."
        raise GLMError("unsupported", message, field="tensor_parallel", limit=count)
    return torch.device(kind.type, number % count)


def serve(engine: Engine, inbox: queue.SimpleQueue, connection: Connection) -> None:
    """Run plans for ever. Messages are taken between steps; with nothing to do, the next message is waited for."""
    scheduler = engine.scheduler
    while True:
        news = Step()
        if scheduler.idle:
            receive(scheduler, inbox.get(), news)
        while not inbox.empty():
            receive(scheduler, inbox.get(), news)
        plan = scheduler.plan()
        if plan is not None:
            news.started += [job.request.id for job in plan.begun]
        if news:
            connection.send(news)
        if plan is None:
            continue
        began = time.perf_counter()
        outcome = engine.runner.run(plan, engine.sampler, engine.end_ids)
        scheduler.measured(plan, time.perf_counter() - began)
        step = scheduler.book(plan, outcome)
        if step:
            connection.send(step)


def follow(runner: Runner, leader: Connection) -> None:
    """Do what rank 0 announces, until it is gone. The logits are its business."""
    while True:
        try:
            work = leader.recv()
        except EOFError:
            return
        runner.follow(work)


def receive(scheduler: Scheduler, message: object, news: Step) -> None:
    """One message of the parent's; what it ends goes to `news`."""
    if isinstance(message, Request):
        try:
            scheduler.add(message)
        except GLMError as error:
            news.ends.append(Failed(message.id, error))
    elif isinstance(message, Cancel):
        cancelled = scheduler.cancel(message.id)
        if cancelled is not None:
            news.ends.append(cancelled)
    else:
        raise AssertionError(f"unexpected message {message!r}")


def listen(connection: Connection, inbox: queue.SimpleQueue, rendezvous: str | None) -> None:
    """Thread: hand messages on; leave the process when the parent says so or is gone."""
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            log.info("the parent is gone")
            if rendezvous is not None:  # which the parent would have removed
                shutil.rmtree(Path(rendezvous).parent, ignore_errors=True)
            os._exit(0)
        if isinstance(message, Stop):
            os._exit(0)
        inbox.put(message)


def main(descriptors: list[int]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal group; the parent decides
    connection, *others = map(Connection, descriptors)
    options = connection.recv()
    assert isinstance(options, Options)
    logging.basicConfig(level=options.log_level, format="%(asctime)s %(levelname)s worker %(process)d: %(message)s")
    inbox: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=listen, args=(connection, inbox, options.rendezvous), daemon=True, name="listen").start()

    def announce(work: Work) -> None:
        for other in others:
            other.send(work)

    try:
        ready = load(options, announce) if options.rank == 0 else load_runner(options)[0]
    except GLMError as error:
        connection.send(LoadFailed(of_rank(error, options)))
        return 1
    except Exception as error:
        log.exception("the model could not be loaded")
        failure = GLMError("bad_model", f"The model could not be loaded ({type(error).__name__}).")
        connection.send(LoadFailed(of_rank(failure, options)))
        return 1
    keep_freed_memory()  # only now: what loading needed for a while goes back
    try:
        if isinstance(ready, Engine):
            connection.send(Ready(ready.limits))
            serve(ready, inbox, connection)
        else:
            connection.send(Loaded())
            follow(ready, others[0])
    except (BrokenPipeError, ConnectionResetError):
        log.info("the parent or another rank is gone")
    except Exception:
        # Whatever it was, the state of the cache and of the device is unknown: the parent starts new processes.
        log.exception("a step failed")
        return 1
    return 0


def of_rank(error: GLMError, options: Options) -> GLMError:
    """The error with the rank that it comes from, where there are several."""
    if options.tensor_parallel == 1:
        return error
    return GLMError(error.kind, f"Rank {options.rank}: {error.message}", field=error.field, limit=error.limit)


if __name__ == "__main__":
    status = main([int(descriptor) for descriptor in sys.argv[1:]])
    logging.shutdown()
    os._exit(status)  # an orderly end of a group of ranks would wait for those that are gone
