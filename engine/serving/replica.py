"""One replica as the web process sees it: a child process, a pipe, and two threads that keep the event loop free.

The child is a new Python (`python -m engine.serving.worker`), not a fork and not a re-import of the parent's main module;
the pipe is multiprocessing's. The parent closes the child's end, so that either side reads EOF when the other is gone.
Messages to send are queued without bound for the writer thread; what arrives is handed to the loop. Torch-free.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from engine.serving.protocol import Options, Stop

log = logging.getLogger(__name__)

PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class Replica:
    """A running child. `on_message(message)` and then once `on_death(exit code)` are called in the loop that made it."""

    def __init__(self, options: Options, on_message: Callable[[object], None], on_death: Callable[[int], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_message, self._on_death = on_message, on_death
        self._connection, child = multiprocessing.Pipe(duplex=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
        paths = [str(PACKAGE_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "engine.serving.worker", str(child.fileno())],
                env=environment,
                pass_fds=(child.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=2,  # a library that prints must not end up in our own output
            )
        except OSError:
            self._connection.close()
            raise
        finally:
            child.close()
        self._outbox: queue.SimpleQueue = queue.SimpleQueue()
        self._outbox.put(options)
        self._threads = [
            threading.Thread(target=self._read, daemon=True, name=f"replica {self.pid} reader"),
            threading.Thread(target=self._write, daemon=True, name=f"replica {self.pid} writer"),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: object) -> None:
        """Queue a message; never blocks. After the child's death it goes nowhere: its death is news of its own."""
        self._outbox.put(message)

    def kill(self) -> None:
        """End the child now, whatever it does; `on_death` follows."""
        self._process.kill()

    async def close(self, patience: float = 2.0) -> None:
        """Tell the child to leave, wait, and kill it if it doesn't. Returns when it is gone and the threads have ended."""
        self.send(Stop())
        await asyncio.to_thread(self._close, patience)

    def _close(self, patience: float) -> None:
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            log.warning("worker %d did not leave and is killed", self.pid)
            self._process.kill()
        for thread in self._threads:
            thread.join()

    def _read(self) -> None:
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                break
            self._hand_over(self._on_message, message)
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:  # its pipe is closed: it is of no use any more
            self._process.kill()
            code = self._process.wait()
        self._outbox.put(None)
        self._threads[1].join()
        self._connection.close()
        self._hand_over(self._on_death, code)

    def _hand_over(self, callback: Callable, value: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, value)
        except RuntimeError:
            log.debug("the event loop is closed; news of worker %d is dropped", self.pid)

    def _write(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                self._connection.send(message)
            except OSError:
                return  # the reader sees the end too
