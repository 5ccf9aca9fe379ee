"""What visitors decide about their data: the switch that keeps nothing, the deletion with its receipt; the staff's statistics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from app.admin.texts import merged
from app.ui.texts import TEXTS
from tests.browser.actions import ask, remembered, set_number, stored_conversations, wait_for_status
from tests.browser.conftest import OpenPage, Server, start_server
from tests.browser.test_accessibility import DESKTOP, PHONE, barriers

TEXT = TEXTS["en"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("private")


@pytest.fixture(scope="module")
def private(slow_model_folder: Path, folder: Path) -> Iterator[Server]:
    flags = ("--allow-unlogged", "--retention", "90d", "--retention-failed", "7d", "--quota", "1GiB")
    yield from start_server(slow_model_folder, folder, 0, *flags)


def say(page: Page, words: str, status: str = "done") -> dict:
    ask(page, words)
    return wait_for_status(page, status)


def test_nothing_is_kept_while_the_switch_is_on(open_page: OpenPage, private: Server) -> None:
    page = open_page(private.address)
    set_number(page, "max_new_tokens", 5)
    expect(page.locator("#glm-kept")).to_have_text("Texts are kept for 90 days.")
    switch = page.get_by_label(TEXT["privacy.switch"])
    switch.check()
    expect(page.locator("#glm-kept")).to_have_text(TEXT["privacy.off"])
    answer = say(page, "A secret question")
    assert answer["unlogged"] is True
    expect(page.locator(".glm-assistant .glm-facts")).to_contain_text(TEXT["unlogged"])
    expect(page.locator(".glm-good, .glm-comment, #glm-chat-share:visible")).to_have_count(0)
    assert stored_conversations(page) == []
    # The browser remembers it; what the chat holds goes on unkept even when the switch is off again.
    page.reload()
    page.wait_for_selector("#glm-status[data-state=ready]")
    expect(switch).to_be_checked()
    expect(page.locator(".glm-assistant .glm-facts")).to_contain_text(TEXT["unlogged"])
    switch.uncheck()
    assert say(page, "More of it")["unlogged"] is True and stored_conversations(page) == []
    page.click("#glm-chat-new")
    assert say(page, "An open question")["unlogged"] is False
    expect(page.locator(".glm-good")).to_have_count(1)
    assert [one["title"] for one in stored_conversations(page)] == ["An open question"]


def test_a_host_that_keeps_all_has_no_switch(open_page: OpenPage) -> None:
    chosen_elsewhere = "localStorage['glm.unlogged'] = 'true'"
    page = open_page(
        prepare=lambda page: page.add_init_script(f"if (!localStorage['glm.unlogged']) {chosen_elsewhere}")
    )
    expect(page.locator("#glm-notice")).to_have_text(TEXT["privacy.refused"])
    expect(page.locator("#glm-kept")).to_have_text(TEXT["privacy.forever"])
    expect(page.get_by_label(TEXT["privacy.switch"])).to_have_count(0)
    set_number(page, "max_new_tokens", 5)
    assert say(page, "Kept")["unlogged"] is False


def test_everything_is_deleted_with_a_receipt(open_page: OpenPage, private: Server, tmp_path: Path) -> None:
    page = open_page(private.address)
    set_number(page, "max_new_tokens", 5)
    say(page, "Forget me")
    set_number(page, "max_new_tokens", 3000)
    ask(page, "A long one, under way")
    page.wait_for_function("document.querySelectorAll('.glm-assistant').length === 2")
    page.focus("#glm-privacy-open")
    page.keyboard.press("Enter")
    expect(page.locator("#glm-privacy-counts")).to_have_text(
        TEXT["privacy.counts"].format(runs=2, conversations=1, shared_pages=0)
    )
    assert barriers(page) == []
    # It asks first, and Enter presses "Cancel".
    page.locator("#glm-privacy-delete").press("Enter")
    expect(page.locator("#glm-privacy")).to_contain_text(TEXT["privacy.sure"])
    page.keyboard.press("Enter")
    expect(page.locator("#glm-privacy-yes")).to_have_count(0)
    page.locator("#glm-privacy-delete").press("Enter")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#glm-receipt li").first).to_have_text("2 answers with their prompts")
    with page.expect_download() as download:
        page.click("#glm-receipt-save")
    download.value.save_as(tmp_path / "receipt.json")
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    checked = page.request.get(receipt.pop("check")).json()
    assert checked == {"receipt": receipt, "texts_left": 0} and receipt["erased"]["runs"] == 2
    page.keyboard.press("Escape")
    page.wait_for_function("document.querySelectorAll('.glm-message').length === 0")
    page.wait_for_selector("#glm-status[data-state=ready]")
    assert stored_conversations(page) == []
    # The same visitor may go on.
    page.wait_for_selector("#glm-chat-input")
    set_number(page, "max_new_tokens", 5)
    say(page, "Hello again")
    assert remembered(page, "chat")["messages"][-1]["status"] == "done" and len(stored_conversations(page)) == 1


def test_the_dialog_fits_a_phone_and_speaks_chinese(open_page: OpenPage, private: Server) -> None:
    page = open_page(
        private.address, locale="zh-CN", viewport=PHONE, is_mobile=True, has_touch=True, color_scheme="dark"
    )
    page.tap("#glm-privacy-open")
    expect(page.locator("#glm-privacy-title")).to_have_text(TEXTS["zh"]["privacy"])
    expect(page.locator("#glm-privacy")).to_contain_text("文字保存90天。")
    box = page.locator("#glm-privacy").bounding_box()
    assert box and box["x"] >= 0 and box["x"] + box["width"] <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert barriers(page) == []


def log_in(page: Page, private: Server, folder: Path) -> None:
    (line,) = [one for one in folder.iterdir() if "password" in one.name]
    page.goto(f"{private.address}admin#statistics")
    page.fill("#glm-login-name", "admin")
    page.fill("#glm-login-password", line.read_text().strip().splitlines()[-1])
    page.keyboard.press("Enter")


@pytest.mark.parametrize("language, viewport, scheme", [("en-US", DESKTOP, "light"), ("zh-CN", PHONE, "dark")])
def test_statistics_as_plots_and_as_tables(
    open_page: OpenPage, private: Server, folder: Path, language: str, viewport: dict, scheme: str
) -> None:
    texts = merged()[language[:2]]
    page = open_page(private.address, locale=language, viewport=viewport, color_scheme=scheme)
    set_number(page, "max_new_tokens", 5)
    say(page, "Count me")
    page.click(".glm-good")
    expect(page.locator(".glm-good")).to_have_attribute("aria-pressed", "true")
    log_in(page, private, folder)
    page.wait_for_selector("#glm-plot-runs svg")
    expect(page.locator("#glm-plot-runs h3")).to_have_text(texts["statistics.runs"])
    expect(page.locator("#glm-disk")).to_contain_text("1 GiB")
    expect(page.locator("#glm-retention")).to_contain_text("90")
    page.select_option("#glm-statistics-bucket", "hour")
    page.select_option("#glm-statistics-by", "mode")
    expect(page.locator("#glm-statistics-summary tbody tr").first).to_contain_text(texts["statistics.series.chat"])
    # With keys the last hour is read aloud: all runs were made in it, or in the one before.
    page.focus("#glm-plot-runs svg")
    page.keyboard.press("End")
    expect(page.locator("#glm-plot-runs .glm-plot-said")).to_contain_text(texts["statistics.series.chat"])
    page.locator("#glm-plot-runs summary").click()
    expect(page.locator("#glm-plot-runs-table tbody tr").first).to_contain_text(":")
    page.select_option("#glm-statistics-latency", "p99")
    expect(page.locator("#glm-plot-total h3")).to_contain_text(texts["statistics.latency.p99"])
    expect(page.locator("#glm-plot-thumbs svg")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert barriers(page) == []
    assert "bucket=hour" in page.url
