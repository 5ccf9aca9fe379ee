"""The page with the model that ships with the project: the suggested examples give what they promise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenPage, Server, start_server


@pytest.fixture(scope="module")
def embedded_server(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from start_server("embedded", tmp_path_factory.mktemp("embedded"))


def test_it_knows_a_capital_in_both_languages(embedded_server: Server, open_page: OpenPage) -> None:
    page = open_page(address=embedded_server.address)
    page.click("#glm-preset label:has-text('Precise')")
    page.wait_for_function("JSON.parse(localStorage['glm.settings']).temperature === 0")
    page.fill("#glm-chat-input", "What is the capital of France?")
    page.press("#glm-chat-input", "Enter")
    expect(page.locator(".glm-assistant[data-status=done] .glm-body")).to_contain_text("Paris")
    page.click("#glm-chat-new")
    page.fill("#glm-chat-input", "法国的首都是哪里？")
    page.press("#glm-chat-input", "Enter")
    expect(page.locator(".glm-assistant[data-status=done] .glm-body")).to_contain_text("巴黎")


def test_it_fills_the_example(embedded_server: Server, open_page: OpenPage) -> None:
    page = open_page(address=embedded_server.address)
    page.click("#glm-preset label:has-text('Precise')")
    page.wait_for_function("JSON.parse(localStorage['glm.settings']).temperature === 0")
    page.click("#glm-tab-blanks-button")
    page.click("#glm-blanks-example-0")
    page.wait_for_selector("#glm-blanks-result[data-status=done]")
    expect(page.locator("#glm-fill-0")).to_have_text("Japan")
