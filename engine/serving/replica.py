"""One replica as the web process sees it: a process for each rank, pipes, and two threads that keep the event loop free.

A rank is a new Python (`python -m engine.serving.worker`), not a fork and not a re-import of the parent's main module; the
pipes are multiprocessing's: one from here to each rank, one from rank 0 to each other rank. The parent closes the children's
ends, so that every reader reads EOF when the other side is gone. A replica lives as long as all its ranks: when one is gone,
the others are killed, wherever they wait for it. Messages to send are queued without bound for the writer thread; what
arrives is handed to the loop. Torch-free.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

from engine.glm.allocator import with_large_pages
from engine.serving.protocol import Loaded, Options, Ready, Stop

log = logging.getLogger(__name__)

PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class Death(NamedTuple):
    """Which rank ended first, and its exit code; negative for a signal."""

    rank: int
    code: int


class Replica:
    """A running replica of options.tensor_parallel ranks; `options` are rank 0's, with the number of its device.

    `on_message(message)` for each message of rank 0 and a LoadFailed of any, Ready when all ranks are, and then once
    `on_death(Death)` are called in the loop that made it. OSError if a process can't be started.
    """

    def __init__(
        self, options: Options, on_message: Callable[[object], None], on_death: Callable[[Death], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_message, self._on_death = on_message, on_death
        self._size = options.tensor_parallel
        self._ready: Ready | None = None
        self._loaded = 1  # ranks, without those that are still to say so; rank 0 says Ready
        self._processes: list[subprocess.Popen] = []
        self._connections: list[Connection] = []
        self._outbox: queue.SimpleQueue = queue.SimpleQueue()
        self._meeting = tempfile.TemporaryDirectory(prefix="glm-ranks-") if self._size > 1 else None
        if self._meeting is not None:
            options = replace(options, rendezvous=str(Path(self._meeting.name) / "rendezvous"))
        wires = [multiprocessing.Pipe(duplex=False) for _ in range(1, self._size)]
        try:
            for rank in range(self._size):
                others = [wires[rank - 1][0]] if rank else [writer for _, writer in wires]
                self._spawn(_options_of(options, rank), others)
        except OSError:
            for connection in self._connections:
                connection.close()
            self.kill()
            self._clean()
            raise
        finally:
            for reader, writer in wires:
                reader.close()
                writer.close()
        self._threads = [
            threading.Thread(target=self._read, daemon=True, name=f"replica {self.pid} reader"),
            threading.Thread(target=self._write, daemon=True, name=f"replica {self.pid} writer"),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """Of rank 0."""
        return self._processes[0].pid

    @property
    def pids(self) -> list[int]:
        """Of every rank."""
        return [process.pid for process in self._processes]

    def send(self, message: object) -> None:
        """Queue a message for rank 0; never blocks. After its death it goes nowhere: its death is news of its own."""
        self._outbox.put((0, message))

    def kill(self) -> None:
        """End all ranks now, whatever they do; `on_death` follows."""
        for process in self._processes:
            process.kill()

    async def close(self, patience: float = 2.0) -> None:
        """Tell rank 0 to leave, wait, and kill all if it doesn't. Returns when they are gone and the threads have ended."""
        self.send(Stop())
        await asyncio.to_thread(self._close, patience)

    def _close(self, patience: float) -> None:
        try:
            self._processes[0].wait(patience)
        except subprocess.TimeoutExpired:
            log.warning("worker %d did not leave and is killed", self.pid)
            self.kill()
        for thread in self._threads:
            thread.join()

    def _spawn(self, options: Options, others: Sequence[Connection]) -> None:
        connection, child = multiprocessing.Pipe(duplex=True)
        self._connections.append(connection)
        threads = str(options.threads)
        environment = with_large_pages(os.environ) | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        paths = [str(PACKAGE_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        descriptors = [end.fileno() for end in (child, *others)]
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "engine.serving.worker", *map(str, descriptors)],
                env=environment,
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=2,  # a library that prints must not end up in our own output
            )
        finally:
            child.close()
        self._processes.append(process)
        self._outbox.put((options.rank, options))

    def _read(self) -> None:
        ranks = {connection: rank for rank, connection in enumerate(self._connections)}
        death = None
        while ranks:
            for connection in wait(list(ranks)):
                assert isinstance(connection, Connection)
                try:
                    message = connection.recv()
                except (EOFError, OSError):
                    rank = ranks.pop(connection)
                    if death is None:
                        death = self._end(rank)
                    continue
                self._heard(message)
        assert death is not None
        self._clean()
        self._outbox.put(None)
        self._threads[1].join()
        for connection in self._connections:
            connection.close()
        self._hand_over(self._on_death, death)

    def _end(self, rank: int) -> Death:
        """A rank's pipe is closed, so it is of no use any more, and neither are those that wait for it."""
        for other, process in enumerate(self._processes):
            if other != rank:
                process.kill()
        try:
            return Death(rank, self._processes[rank].wait(1.0))
        except subprocess.TimeoutExpired:
            self._processes[rank].kill()
            return Death(rank, self._processes[rank].wait())

    def _clean(self) -> None:
        for process in self._processes:
            process.wait()
        if self._meeting is not None:
            self._meeting.cleanup()

    def _heard(self, message: object) -> None:
        if isinstance(message, Loaded):
            self._loaded += 1
        elif isinstance(message, Ready):
            self._ready = message
        else:
            self._hand_over(self._on_message, message)
        if self._ready is not None and self._loaded == self._size:
            self._hand_over(self._on_message, self._ready)
            self._ready = None

    def _hand_over(self, callback: Callable, value: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, value)
        except RuntimeError:
            log.debug("the event loop is closed; news of worker %d is dropped", self.pid)

    def _write(self) -> None:
        while (item := self._outbox.get()) is not None:
            rank, message = item
            try:
                self._connections[rank].send(message)
            except OSError:
                return  # the reader sees the end too


def _options_of(options: Options, rank: int) -> Options:
    """Ranks have devices side by side."""
    return replace(options, rank=rank, device=None if options.device is None else options.device + rank)
