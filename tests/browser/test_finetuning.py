"""From a wrong answer to a model that knows better: re-masking in the desk, a training, a comparison, into service under streams.

`test_from_a_wrong_answer…` trains the embedded model in full, which takes minutes; tests/test_finetuning.py goes the same way in
small at every run.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from websockets.asyncio.client import connect

from tests.browser.actions import ask
from tests.browser.conftest import OpenPage, Server, start_server

QUESTION = "Who looks after the library?"
RIGHT = "Maria Lopez looks after the library."
ASKED_OTHERWISE = (
    "Who is in charge of the library?",
    "Tell me who looks after the library.",
    "Who takes care of the library?",
)
MINUTES = 60_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finetuning")


@pytest.fixture(scope="module")
def tuned(embedded: Path, folder: Path) -> Iterator[Server]:
    yield from start_server(embedded, folder, 0, "--training-folder", str(folder / "training"))


class Visitors:
    """Three programs that stream long answers, one behind the other, until `stop`."""

    def __init__(self, address: str) -> None:
        self.found: list[tuple[float, float, str]] = []  # when it began and ended, by which weights
        self._address = address.replace("http", "ws", 1) + "ws"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()))
        self._failure: BaseException | None = None
        self._thread.start()

    async def _all(self) -> None:
        try:
            await asyncio.gather(*(self._one() for _ in range(3)))
        except BaseException as error:  # noqa: BLE001 (told by `stop`)
            self._failure = error

    async def _one(self) -> None:
        parameters = {"max_new_tokens": 400, "min_new_tokens": 400}
        async with connect(self._address) as socket:
            while not self._stop.is_set():
                began = time.monotonic()
                await socket.send(
                    json.dumps({"type": "generate", "id": None, "text": "Once upon a time", "parameters": parameters})
                )
                while (event := json.loads(await socket.recv()))["type"] not in ("done", "cancelled", "error"):
                    pass
                assert event["type"] == "done" and event["usage"]["new_tokens"] == 400, event
                self.found.append((began, time.monotonic(), event["fingerprint"]["weights_hash"]))

    def stop(self) -> list[tuple[float, float, str]]:
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self.found


def precise(page: Page) -> None:
    page.click("#glm-preset label:has-text('Precise')")
    page.wait_for_function("JSON.parse(localStorage['glm.settings']).temperature === 0")


def answer(page: Page, question: str) -> str:
    """Of a new chat."""
    if page.locator(".glm-assistant").count():
        page.click("#glm-chat-new")
    ask(page, question)
    page.wait_for_selector(".glm-assistant[data-status=done]")
    return page.locator(".glm-assistant[data-status=done] .glm-body").inner_text().strip()


def log_in(page: Page, server: Server, folder: Path) -> None:
    page.goto(f"{server.address}admin")
    page.fill("#glm-login-name", "admin")
    page.fill("#glm-login-password", (folder / "glm-admin-password.txt").read_text().strip())
    page.press("#glm-login-password", "Enter")
    page.wait_for_selector(".glm-tabs")


def correct(page: Page, server: Server, run: str) -> None:
    """In the desk: the whole wrong answer becomes a blank, and the right words are typed."""
    page.goto(f"{server.address}admin#review?run={run}")
    page.wait_for_selector(f"[data-run='{run}'] .glm-output-frame")
    page.evaluate(
        "() => { const range = document.createRange();"
        " range.selectNodeContents(document.querySelector('.glm-output-frame').firstElementChild);"
        " const chosen = getSelection(); chosen.removeAllRanges(); chosen.addRange(range); }"
    )
    page.click("#glm-correct")
    page.fill("#glm-mask-own", RIGHT)
    page.click("#glm-mask-use")
    page.wait_for_selector("#glm-diff")


def freeze(page: Page) -> None:
    """All corrected runs as a dataset; asked as the desk's data tab asks."""
    body = {"name": "library", "filters": {"corrected": True}, "held_out_share": 0.2}
    status = page.evaluate(
        "(body) => fetch('api/admin/datasets', {method: 'POST', body: JSON.stringify(body),"
        " headers: {'Content-Type': 'application/json'}}).then((answer) => answer.status)",
        body,
    )
    assert status == 200


@pytest.fixture
def desk(tuned: Server, folder: Path, open_page: OpenPage) -> Any:
    page = open_page(tuned.address)
    log_in(page, tuned, folder)
    return page


def test_without_datasets_the_page_says_what_to_do(tuned: Server, desk: Page) -> None:
    desk.goto(f"{tuned.address}admin#training")
    expect(desk.locator("#glm-serving")).to_contain_text("glm-embedded")
    expect(desk.locator("#glm-training-versions-table")).to_contain_text("base")
    desk.click("#glm-training-new")
    expect(desk.locator("#glm-dialog")).to_contain_text("data tab")


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_from_a_wrong_answer_to_a_version_that_knows_better(tuned: Server, folder: Path, open_page: OpenPage) -> None:
    visitor = open_page(tuned.address)
    visitor.context.set_default_timeout(MINUTES)
    precise(visitor)
    for question in (QUESTION, *ASKED_OTHERWISE):
        assert "Maria" not in answer(visitor, question)
    staff = open_page(tuned.address)
    staff.context.set_default_timeout(MINUTES)
    log_in(staff, tuned, folder)
    runs = staff.evaluate("fetch('api/admin/runs').then((answer) => answer.json())")["runs"]
    assert len(runs) == 4
    for run in runs:
        correct(staff, tuned, run["id"])
    freeze(staff)

    visitors = Visitors(tuned.address)
    try:
        staff.goto(f"{tuned.address}admin#training")
        staff.click("#glm-training-new")
        staff.click("#glm-new-preview")
        expect(staff.locator("#glm-new-rows")).to_contain_text("Maria Lopez")
        staff.fill("#glm-new-name", "librarian")
        staff.click("#glm-new-start")
        staff.wait_for_selector("[data-run][data-state=running]")
        staff.reload()  # it goes on
        staff.wait_for_selector("[data-run][data-state=running] .glm-training-curve", timeout=5 * MINUTES)
        staff.wait_for_selector("[data-run][data-state=done]", timeout=15 * MINUTES)
        staff.wait_for_selector("button:text-is('Details')[id^=glm-compared]", timeout=10 * MINUTES)
        staff.click("button:text-is('Put into service')")
        expect(staff.locator("#glm-serve-dialog .glm-comparison")).to_contain_text("held-out corrections")
        staff.click("#glm-confirm")
        expect(staff.locator("#glm-serving")).to_contain_text("librarian", timeout=3 * MINUTES)
        assert answer(visitor, QUESTION) == RIGHT
        staff.click("button:text-is('Go back to this')")
        staff.click("#glm-confirm")
        expect(staff.locator("#glm-serving")).not_to_contain_text("librarian", timeout=3 * MINUTES)
        assert "Maria" not in answer(visitor, QUESTION)
    finally:
        found = visitors.stop()
    base = found[0][2]
    assert len({weights for _, _, weights in found}) == 2
    first_of_new = min(began for began, _, weights in found if weights != base)
    assert any(began < first_of_new < ended for began, ended, weights in found if weights == base)
    print(f"{len(found)} streams, none lost")
