"""A replica's process: loads a model, then runs the scheduler's plans until its parent is gone.

Started by replica.py as `python -m engine.serving.worker DESCRIPTOR`, with one end of a multiprocessing pipe. It reads
options, then requests. One thread reads the pipe, so that the parent is never blocked and its death is noticed even in
the middle of a step; the main thread waits on a queue when there is nothing to run and never spins. What was cancelled
while a step ran is gone before the next one.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from engine.errors import GLMError
from engine.serving.protocol import Cancel, Failed, Limits, LoadFailed, Options, Ready, Request, Step, Stop
from engine.serving.scheduler import Scheduler

if TYPE_CHECKING:
    from engine.serving.runner import Runner
    from engine.serving.sampling import Sampler

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Engine:
    """What a rank needs to run plans."""

    limits: Limits
    scheduler: Scheduler
    runner: Runner
    sampler: Sampler
    end_ids: tuple[int, ...]


def load(options: Options) -> Engine:
    """Read the model folder. GLMError bad_model, model_not_found, unsupported, overloaded (no memory)."""
    import torch

    from engine.glm import checkpoint
    from engine.glm.config import resolve_model, weights_hash
    from engine.glm.tokenizer import Tokenizer
    from engine.serving.runner import Runner
    from engine.serving.sampling import Sampler
    from engine.serving.text import never_generated

    torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[options.precision]
    folder = resolve_model(options.folder)
    tokenizer = Tokenizer.load(folder)
    try:
        model = checkpoint.load(folder, dtype=dtype, device=device).requires_grad_(False)
        config = model.config
        if tokenizer.vocabulary_size > config.vocabulary:
            raise GLMError(
                "bad_model",
                f"The vocabulary in {folder} has {tokenizer.vocabulary_size} tokens, the model only {config.vocabulary}.",
                field="model",
            )
        runner = Runner(model, options.slots, config.positions)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise GLMError("overloaded", f"There is not enough memory for {folder} on {device}.", field="model") from error
    limits = Limits(
        model=config.name,
        weights_hash=weights_hash(folder),
        precision=options.precision,
        device=device.type,
        version=f"torch {torch.__version__}",
        positions=config.positions,
        slots=options.slots,
        vocabulary=config.vocabulary,
        parameters=config.parameters(),
    )
    scheduler = Scheduler(limits, tokenizer, prefill_tokens=options.prefill_tokens)
    sampler = Sampler(config.vocabulary, never_generated(tokenizer, config.vocabulary), tokenizer.eop, device)
    return Engine(limits, scheduler, runner, sampler, tokenizer.end_ids)


def choose_device(number: int | None):
    """The torch device of an accelerator number, or the CPU."""
    import torch

    if number is None or not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return torch.device(kind.type, number % torch.accelerator.device_count())


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
            news.started += [job.request.id for job in plan.prompts]
        if news:
            connection.send(news)
        if plan is None:
            continue
        step = scheduler.book(plan, *engine.runner.run(plan, engine.sampler, engine.end_ids))
        if step:
            connection.send(step)


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


def listen(connection: Connection, inbox: queue.SimpleQueue) -> None:
    """Thread: hand messages on; leave the process when the parent says so or is gone."""
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            log.info("the parent is gone")
            os._exit(0)
        if isinstance(message, Stop):
            os._exit(0)
        inbox.put(message)


def main(descriptor: int) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal group; the parent decides
    connection = Connection(descriptor)
    options = connection.recv()
    assert isinstance(options, Options)
    logging.basicConfig(level=options.log_level, format="%(asctime)s %(levelname)s worker %(process)d: %(message)s")
    inbox: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=listen, args=(connection, inbox), daemon=True, name="listen").start()
    try:
        engine = load(options)
    except GLMError as error:
        connection.send(LoadFailed(error))
        return 1
    except Exception as error:
        log.exception("the model could not be loaded")
        connection.send(LoadFailed(GLMError("bad_model", f"The model could not be loaded ({type(error).__name__}).")))
        return 1
    connection.send(Ready(engine.limits))
    try:
        serve(engine, inbox, connection)
    except (BrokenPipeError, ConnectionResetError):
        log.info("the parent is gone")
    except Exception:
        # Whatever it was, the state of the cache and of the device is unknown: the parent starts a new process.
        log.exception("a step failed")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
