"""What a visitor must never lose: stop, reload, a lost connection, a restarted server, errors, other visitors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from playwright.sync_api import Page, WebSocketRoute, expect

from app.errors import TABLE
from app.ui.texts import TEXTS
from tests.browser.actions import (
    LONG,
    as_stored,
    ask,
    filled_text,
    remembered,
    set_number,
    set_seed,
    stored_conversations,
    stored_run,
    wait_for_status,
)
from tests.browser.conftest import OpenPage, Server, Watch, start_server


@pytest.mark.parametrize("pane", ["chat", "blanks"])
def test_stop_ends_the_run(page: Page, pane: str) -> None:
    set_number(page, "max_new_tokens", LONG)
    if pane == "chat":
        ask(page, "Tell me a long story.")
        page.wait_for_function("(document.querySelector('.glm-assistant .glm-body')?.textContent.length ?? 0) > 50")
        page.click("#glm-chat-stop")
        state = wait_for_status(page, "cancelled")
        shown = state["content"]
        expect(page.locator("#glm-chat-send")).to_be_visible()
        assert "Stopped" in page.inner_text(".glm-facts")
    else:
        page.click("#glm-tab-blanks-button")
        page.fill("#glm-blanks-input", "Once upon a time [gMASK]")
        page.click("#glm-blanks-fill")
        page.wait_for_function("(document.querySelector('#glm-fill-0')?.textContent.length ?? 0) > 50")
        page.click("#glm-blanks-stop")
        page.wait_for_selector("#glm-blanks-result[data-status=cancelled]")
        state = remembered(page, "blanks")["filled"]
        shown = filled_text(page)
        expect(page.locator("#glm-blanks-fill")).to_be_visible()
    record = stored_run(page, state["run"])
    assert record["status"] == "cancelled"
    # What was there when it ended, and no more: the run is really over.
    assert record["output"] == as_stored(shown)
    assert 50 < len(shown) < LONG


def test_a_reload_in_the_middle_of_an_answer_keeps_it_whole(page: Page) -> None:
    set_number(page, "max_new_tokens", 1500)
    ask(page, "Tell me a long story.")
    page.wait_for_function("(document.querySelector('.glm-assistant .glm-body')?.textContent.length ?? 0) > 50")
    run = remembered(page, "chat")["messages"][-1]["run"]
    page.reload()
    expect(page.locator(".glm-assistant")).to_have_attribute("data-status", "running")
    message = wait_for_status(page, "done", timeout=180_000)
    record = stored_run(page, run)
    assert message["run"] == run
    assert as_stored(message["content"]) == record["output"]
    assert record["status"] == "done"
    expect(page.locator(".glm-message")).to_have_count(2)
    assert len(stored_conversations(page)) == 1
    # And once more when it is over: the page remembers it.
    page.reload()
    expect(page.locator(".glm-message")).to_have_count(2)
    assert as_stored(remembered(page, "chat")["messages"][-1]["content"]) == record["output"]


def test_a_lost_connection_loses_and_doubles_nothing(open_page: OpenPage) -> None:
    routes: list[WebSocketRoute] = []
    sent: list[dict[str, Any]] = []

    def through(route: WebSocketRoute) -> None:
        upstream = route.connect_to_server()
        routes.append(route)

        def pass_on(message: str | bytes) -> None:
            sent.append(json.loads(message))
            upstream.send(message)

        route.on_message(pass_on)

    page = open_page(prepare=lambda page: page.route_web_socket(re.compile(r"/ws$"), through))
    set_number(page, "max_new_tokens", 1500)
    ask(page, "Tell me a long story.")
    for cut in range(2):
        page.wait_for_function(
            f"(document.querySelector('.glm-assistant .glm-body')?.textContent.length ?? 0) > {50 + 300 * cut}"
        )
        routes[-1].close()
        expect(page.locator("#glm-status")).to_have_attribute("data-state", "reconnecting")
        expect(page.locator("#glm-status")).to_have_text("Reconnecting")
        expect(page.locator("#glm-status")).to_have_attribute("data-state", "ready")
    message = wait_for_status(page, "done")
    assert as_stored(message["content"]) == stored_run(page, message["run"])["output"]
    assert [one["type"] for one in sent] == ["chat", "resume", "resume"]
    assert 0 < sent[1]["after"] < sent[2]["after"]


def test_an_error_is_a_sentence_with_a_way_on(page: Page, watch: Watch) -> None:
    watch.expected += ["422"]  # the estimate of what can't be sent
    set_seed(page, "twelve")
    set_number(page, "max_new_tokens", 5)
    ask(page, "Hello")
    box = page.locator(".glm-error")
    expect(box).to_contain_text("The server can't use this input.")
    expect(box).to_contain_text("seed")
    set_seed(page, "12")
    page.click(".glm-retry")
    message = wait_for_status(page, "done")
    expect(page.locator(".glm-error")).to_have_count(0)
    assert stored_run(page, message["run"])["seed"] == 12
    page.click("#glm-tab-blanks-button")
    page.fill("#glm-blanks-input", "An [XMASK] here")
    page.click("#glm-blanks-fill")
    expect(page.locator("#glm-blanks-result .glm-error")).to_contain_text("Use [MASK], [sMASK] or [gMASK].")
    page.click("#glm-language-zh")
    expect(page.locator("#glm-blanks-result .glm-error")).to_contain_text("请使用 [MASK]、[sMASK] 或 [gMASK]。")


def test_the_page_says_when_the_model_is_not_ready(page: Page) -> None:
    page.route(re.compile("api/info$"), lambda route: route.fulfill(json={"ready": False, "state": "loading"}))
    page.evaluate("window.dispatchEvent(new Event('online'))")
    expect(page.locator("#glm-status")).to_have_text(TEXTS["en"]["status.loading"])
    page.unroute(re.compile("api/info$"))
    expect(page.locator("#glm-status")).to_have_text(TEXTS["en"]["status.ready"])


def test_a_server_that_is_started_again_takes_up_the_page(
    slow_model_folder: Path, tmp_path: Path, open_page: OpenPage, watch: Watch
) -> None:
    watch.expected += ["net::ERR_", "WebSocket connection", "status 503"]
    first = start_server(slow_model_folder, tmp_path)
    server = next(first)
    page = open_page(address=server.address)
    set_number(page, "max_new_tokens", LONG)
    ask(page, "Tell me a long story.")
    page.wait_for_function("(document.querySelector('.glm-assistant .glm-body')?.textContent.length ?? 0) > 50")
    first.close()
    expect(page.locator("#glm-status")).to_have_attribute("data-state", "reconnecting")
    second = start_server(slow_model_folder, tmp_path, port=urlsplit(server.address).port or 0)
    try:
        next(second)
        expect(page.locator("#glm-status")).to_have_attribute("data-state", "ready", timeout=30_000)
        expect(page.locator(".glm-error")).to_contain_text("restarted in the middle")
        # What had come stays, and the way on is one click.
        assert len(page.inner_text(".glm-assistant .glm-body")) > 50
        set_number(page, "max_new_tokens", 5)
        page.click(".glm-retry")
        wait_for_status(page, "done")
    finally:
        second.close()


def test_another_visitor_sees_nothing_of_it(open_page: OpenPage, server: Server) -> None:
    first, second = open_page(), open_page()
    set_number(first, "max_new_tokens", 5)
    ask(first, "Hello")
    run = wait_for_status(first, "done")["run"]
    expect(second.locator(".glm-message")).to_have_count(0)
    assert second.request.get(f"{server.address}api/runs/{run}").status == 404
    assert stored_conversations(second) == []


def test_a_full_server_says_so_and_the_page_goes_on_by_itself(
    slow_model_folder: Path, tmp_path: Path, open_page: OpenPage, watch: Watch
) -> None:
    watch.expected += ["net::ERR_", "WebSocket connection"]  # the server goes before the pages do
    running = start_server(slow_model_folder, tmp_path, 0, "--slots", "1", "--queue", "1")
    try:
        server = next(running)
        busy, second, waiting = (open_page(address=server.address) for _ in range(3))
        set_number(busy, "max_new_tokens", LONG)
        ask(busy, "Tell me a long story.")
        busy.wait_for_function("(document.querySelector('.glm-assistant .glm-body')?.textContent.length ?? 0) > 50")
        for page in (second, waiting):
            set_number(page, "max_new_tokens", 5)
        ask(second, "Hello")
        expect(second.locator(".glm-waiting")).to_contain_text("Place 1 in the queue")
        ask(waiting, "Hello")
        box = waiting.locator(".glm-error")
        expect(box).to_contain_text(TABLE["queue_full"].en)
        expect(box.locator(".glm-step")).to_have_text(TABLE["queue_full"].step_en)
        expect(box.locator(".glm-countdown")).to_be_visible()
        busy.click("#glm-chat-stop")
        wait_for_status(busy, "cancelled")
        # Nobody touches the waiting page: it asks again, and has one answer in the same place.
        wait_for_status(waiting, "done")
        expect(waiting.locator(".glm-error")).to_have_count(0)
        expect(waiting.locator(".glm-turn-count")).to_have_count(0)
        assert [message["role"] for message in remembered(waiting, "chat")["messages"]] == ["user", "assistant"]
        (conversation,) = stored_conversations(waiting)
        runs = waiting.request.get(f"{server.address}api/conversations/{conversation['id']}").json()["runs"]
        assert [run["status"] for run in runs].count("done") == 1
        assert {run["error_kind"] for run in runs if run["status"] == "error"} <= {"queue_full"}
    finally:
        running.close()


def test_a_model_process_that_dies_is_seen_and_comes_back(
    slow_model_folder: Path, tmp_path: Path, open_page: OpenPage, watch: Watch
) -> None:
    watch.expected += ["net::ERR_", "WebSocket connection", "status 503"]
    running = start_server(slow_model_folder, tmp_path)
    try:
        server = next(running)
        page = open_page(address=server.address)
        set_number(page, "max_new_tokens", LONG)
        ask(page, "Tell me a long story.")
        page.wait_for_function("(document.querySelector('.glm-assistant .glm-body')?.textContent.length ?? 0) > 50")
        children = psutil.Process(server.process.pid).children(recursive=True)
        (worker,) = [child for child in children if "engine.serving.worker" in " ".join(child.cmdline())]
        worker.kill()
        expect(page.locator(".glm-error")).to_contain_text(TABLE["worker_died"].en)
        assert len(page.inner_text(".glm-assistant .glm-body")) > 50  # what had come stays
        expect(page.locator("#glm-status")).to_have_attribute("data-state", "loading")
        expect(page.locator("#glm-status")).to_have_attribute("data-state", "ready", timeout=60_000)
        set_number(page, "max_new_tokens", 5)
        page.click(".glm-retry")
        wait_for_status(page, "done")
    finally:
        running.close()
