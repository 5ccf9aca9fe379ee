"""A real server for tests: the application in uvicorn on a thread (`server`), or `python -m app` as a process (`Program`).

Clients are the websockets library and httpx. A test file asks for the fixtures with `pytest_plugins = ("tests.server",)`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import uvicorn
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from app.__main__ import configuration, listen
from app.main import create_app
from app.settings import Settings
from engine.serving.pool import Pool
from storage import Database

ROOT = Path(__file__).resolve().parent.parent
TERMINAL = ("done", "cancelled", "error")
PATIENCE = 60.0  # seconds that anything may take on a busy machine

# A random model repeats one token; this keeps its outputs different and long.
LIVELY = {"temperature": 2.0, "no_repeat_ngram": 2}


def eventually(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """The first true value of `condition()`; fails after `patience` seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)  # between two looks at another process, which nothing here can await
    raise AssertionError(f"not within {patience:g} s: {what}")


class Address:
    """Where a server is, and how to ask it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.http = f"http://127.0.0.1:{port}"
        self.ws = f"ws://127.0.0.1:{port}/ws"

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        return httpx.get(self.http + path, timeout=PATIENCE, **arguments)

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            try:
                return self.get("/readyz").status_code == 200
            except httpx.TransportError:
                return False

        eventually(ready, "the server is ready")


class Thread(Address):
    """The application on a thread of the test's own process, without the Gradio page; `service` is its Service."""

    def __init__(self, settings: Settings, **pool: Any) -> None:
        self.app = create_app(
            settings,
            Pool(settings.model, slots=settings.slots, queue=settings.queue, threads=1, **pool),
            Database(settings.database),
            page=False,
        )
        self.service = self.app.state.service
        listener = listen("127.0.0.1", 0)
        super().__init__(listener.getsockname()[1])
        self._server = uvicorn.Server(configuration(settings, self.app))
        self._thread = threading.Thread(target=self._run, args=(listener,), daemon=True)
        self._thread.start()

    def _run(self, listener: Any) -> None:
        asyncio.run(self._serve(listener))

    async def _serve(self, listener: Any) -> None:
        self.loop = asyncio.get_running_loop()
        await self._server.serve([listener])

    def call(self, work: Any) -> Any:
        """Run a coroutine in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


class Program(Address):
    """`python -m app` as a process of its own."""

    def __init__(
        self,
        model: Path,
        database: Path | str,
        *flags: str,
        environment: dict[str, str] | None = None,
        before: Sequence[str] = (),
    ) -> None:
        """`before`: the beginning of the command line, of a program that becomes this one."""
        arguments = [
            *before,
            sys.executable,
            "-m",
            "app",
            "--port",
            "0",
            "--model",
            str(model),
            "--database",
            str(database),
        ]
        self.process = subprocess.Popen(
            [*arguments, "--threads", "1", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | (environment or {}),
        )
        self._said: tuple[str, str] | None = None
        assert self.process.stdout is not None
        # Byte by byte: what a buffered reader had taken beyond the line, `communicate` would not see.
        line = bytearray()
        while not line.endswith(b"\n") and (piece := os.read(self.process.stdout.fileno(), 1)):
            line += piece
        self.line = line.decode()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", self.line)
        if found is None:
            raise AssertionError(f"no address: {self.line!r} {self.process.communicate(timeout=PATIENCE)}")
        super().__init__(int(found[1]))

    def workers(self) -> list[psutil.Process]:
        """The processes that run the model."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "engine.serving.worker" in " ".join(child.cmdline())]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> tuple[str, str]:
        """End it and wait; returns what else it wrote to stdout and stderr. May be called twice."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        if self._said is None:
            self._said = self.process.communicate(timeout=PATIENCE)
        return self._said


class Client:
    """One websocket with its events sorted by what they answer. Use as `async with Client(address) as client`."""

    def __init__(self, address: Address, cookie: str | None = None, key: str | None = None, **arguments: Any) -> None:
        headers = {"Cookie": cookie} if cookie else {}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        self._connecting = connect(
            address.ws, additional_headers=headers, max_size=None, compression=None, open_timeout=PATIENCE, **arguments
        )
        self.cookie = cookie

    async def __aenter__(self) -> Client:
        self.socket: ClientConnection = await self._connecting
        assert self.socket.response is not None
        if given := self.socket.response.headers.get("Set-Cookie"):
            self.cookie = given.partition(";")[0]
        return self

    async def __aexit__(self, *_: object) -> None:
        # The farewell of the server stands behind what wasn't read.
        await asyncio.gather(self.socket.close(), self._drain())

    async def _drain(self) -> None:
        with suppress(ConnectionClosed):
            while True:
                await self.socket.recv()

    async def send(self, message: Any) -> None:
        await self.socket.send(message if isinstance(message, str | bytes) else json.dumps(message))

    async def receive(self) -> dict[str, Any]:
        return json.loads(await asyncio.wait_for(self.socket.recv(), PATIENCE))

    async def ask(self, message: Any) -> dict[str, Any]:
        """Send a message; the next event."""
        await self.send(message)
        return await self.receive()

    async def until(self, kind: str) -> list[dict[str, Any]]:
        """The events up to and with the first of this type."""
        events = [await self.receive()]
        while events[-1]["type"] != kind:
            assert events[-1]["type"] not in TERMINAL, events[-1]
            events.append(await self.receive())
        return events

    async def all(self, count: int = 1) -> dict[str, list[dict[str, Any]]]:
        """Every run's events, until `count` terminal ones have come; errors outside of runs under their client id."""
        runs: dict[str, list[dict[str, Any]]] = {}
        while count:
            event = await self.receive()
            runs.setdefault(event["run"] or f"refused {event['id']}", []).append(event)
            count -= event["type"] in TERMINAL
        return runs

    async def run(self, message: Any) -> list[dict[str, Any]]:
        """Start one run and wait for its end; its events."""
        await self.send(message)
        (events,) = (await self.all()).values()
        return events


def text_of(events: list[dict[str, Any]], blank: int = 0) -> str:
    """The deltas of a run, joined."""
    return "".join(e["text"] for e in events if e["type"] == "delta" and e["blank"] == blank and e["alternative"] == 0)


def rows(database: Path, query: str, *arguments: Any) -> list[tuple]:
    """What a SQLite file holds, read beside the server."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return connection.execute(query, arguments).fetchall()


@contextmanager
def serving(settings: Settings) -> Iterator[Thread]:
    """A server with these settings that is ready; it is stopped at the end."""
    running = Thread(settings)
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def long_model(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with room for 4096 tokens, so that a run lasts long enough to be disturbed."""
    folder = tmp_path_factory.mktemp("long") / "model"
    shutil.copytree(tiny_model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"positions": 4096}))
    return folder


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the shared server's database."""
    return tmp_path_factory.mktemp("server") / "glm.db"


@pytest.fixture(scope="session")
def server(long_model: Path, database: Path) -> Iterator[Thread]:
    """One server for all tests that don't hurt it."""
    with serving(Settings.create(model=str(long_model), database=str(database))) as running:
        yield running


@pytest.fixture(scope="session")
def strict_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strict") / "glm.db"


@pytest.fixture(scope="session")
def strict(long_model: Path, strict_database: Path) -> Iterator[Thread]:
    """A server with little room and little patience: 2 slots, a queue of 2, no grace, no memory of finished runs."""
    limits = {"slots": 2, "queue": 2, "concurrent_runs": 4, "grace_seconds": 0.1, "finished_runs": 0}
    with serving(Settings.create(model=str(long_model), database=str(strict_database), **limits)) as running:
        yield running
