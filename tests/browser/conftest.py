"""A real server in a process of its own, and a real Chromium in front of it.

Every page of these tests is watched: a console error, a failed request, or a request to another host fails the test.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 120
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


@dataclass
class Server:
    """A running `python -m app`."""

    address: str  # http://127.0.0.1:PORT/
    process: subprocess.Popen[str]


def start_server(model: Path | str, folder: Path, port: int = 0, *flags: str) -> Generator[Server, None, None]:
    """Serve a model until the generator is closed; its database and log lie in `folder`. flags: more of `python -m app`."""
    command = [sys.executable, "-m", "app", "--port", str(port), "--model", str(model), "--threads", "1"]
    command += ["--database", str(folder / "glm.db"), *flags]
    log = folder / "server.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        try:
            yield Server(_ready_address(process, log), process)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def _ready_address(process: subprocess.Popen[str], log: Path) -> str:
    deadline = time.monotonic() + READY_SECONDS
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], READY_SECONDS)
    found = re.search(r"http://\S+", process.stdout.readline()) if readable else None
    assert found, f"the server gave no address: {log.read_text()}"
    while True:
        try:
            with urllib.request.urlopen(found[0] + "readyz", timeout=5):
                return found[0]
        except URLError as error:  # 503 while the model loads
            assert process.poll() is None, f"the server ended: {log.read_text()}"
            assert time.monotonic() < deadline, f"the model was not ready: {error}, {log.read_text()}"
            select.select([], [], [], 0.1)


@pytest.fixture(scope="session")
def slow_model_folder(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> Path:
    """A random model that never ends and writes not too fast, so that a test can act in the middle of an answer."""
    import torch

    from engine.glm import checkpoint
    from engine.glm.config import CHAT, Config
    from engine.glm.model import GLM, initialise
    from engine.glm.tokenizer import Tokenizer

    folder = tmp_path_factory.mktemp("slow")
    tokenizer = Tokenizer.load(vocabulary_file)
    model = GLM(Config("slow", 12, 128, 256, 4, tokenizer.vocabulary_size, 4096, chat=CHAT))
    generator = torch.Generator().manual_seed(3)
    initialise(model, generator)
    with torch.no_grad():
        # Embeddings this small make all tokens about equally likely, so the text is varied.
        model.word_embeddings.weight.normal_(0.0, 0.02, generator=generator)
        # Every state has a part along (1, 1, ...), and the end tokens point the other way.
        model.final_layernorm.bias.fill_(1.0)
        model.word_embeddings.weight[list(tokenizer.end_ids)] = -0.3
    checkpoint.save(model, folder, tokenizer=vocabulary_file, dtype=torch.float32)
    return folder


@pytest.fixture(scope="session")
def server(slow_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from start_server(slow_model_folder, tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # Not longer than a module: while Playwright's loop runs in this thread, tests of other modules can't run theirs.
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    if program is None:
        pytest.skip("no Chromium here: install it (Debian: apt-get install chromium) or name it in CHROMIUM")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield running
        running.close()


@dataclass
class Watch:
    """What went wrong on a page. A test that provokes a console error names a part of it in `expected`."""

    problems: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def note(self, problem: str) -> None:
        self.problems.append(problem)

    def unexpected(self) -> list[str]:
        return [problem for problem in self.problems if not any(part in problem for part in self.expected)]


OpenPage = Callable[..., Page]


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def open_page(server: Server, browser: Browser, watch: Watch) -> Iterator[OpenPage]:
    """open_page(address=..., **context options) -> a watched page of a new visitor that shows the playground."""
    contexts = []

    def open_one(
        address: str = server.address, prepare: Callable[[Page], None] | None = None, **options: object
    ) -> Page:
        settings: dict[str, object] = {"locale": "en-US", "viewport": {"width": 1280, "height": 800}} | options
        context = browser.new_context(**settings)  # type: ignore[arg-type]
        contexts.append(context)
        context.set_default_timeout(20_000)
        page = context.new_page()
        _watch(page, watch, urlsplit(address).netloc)
        if prepare:
            prepare(page)
        page.goto(address)
        page.wait_for_selector("#glm-chat-input")
        page.wait_for_selector("#glm-status[data-state=ready]")
        page.wait_for_function("localStorage['glm.settings'] !== undefined")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not watch.unexpected()


def _watch(page: Page, watch: Watch, host: str) -> None:
    page.on("console", lambda line: watch.note(f"console: {line.text}") if line.type == "error" else None)
    page.on("pageerror", lambda error: watch.note(f"page error: {error}"))
    page.on("response", lambda got: watch.note(f"status {got.status}: {got.url}") if got.status >= 400 else None)

    def asked(address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.netloc != host:
            watch.note(f"another host: {address}")

    page.on("request", lambda request: asked(request.url))
    page.on("websocket", lambda socket: asked(socket.url))


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    return open_page()
