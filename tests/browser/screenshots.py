"""Make the README's pictures anew: `python -m tests.browser.screenshots [FOLDER]` (the embedded model, real Chromium)."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.conftest import CHROMIUM, FLAGS, ROOT, start_server

DESKTOP = {"width": 1180, "height": 760}
PHONE = {"width": 390, "height": 780}


def open_page(browser: Browser, address: str, language: str, size: dict[str, int], scheme: str = "light") -> Page:
    context = browser.new_context(viewport=size, locale=language, color_scheme=scheme)
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("#glm-chat-input")
    page.wait_for_function("document.body.innerText.includes('Ready') || document.body.innerText.includes('就绪')")
    return page


def precise(page: Page) -> None:
    """Temperature 0: the pictures show what everybody gets."""
    page.locator("#glm-preset label").first.click()
    page.wait_for_function("JSON.parse(localStorage['glm.settings']).temperature === 0")


def chat(page: Page, questions: list[str]) -> None:
    for number, question in enumerate(questions, 1):
        page.fill("#glm-chat-input", question)
        page.press("#glm-chat-input", "Enter")
        page.wait_for_function(
            f"document.querySelectorAll('.glm-assistant[data-status=done]').length === {number}", timeout=60_000
        )


def fill(page: Page, text: str) -> None:
    page.click("#glm-tab-blanks-button")
    page.fill("#glm-blanks-input", text)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#glm-blanks-result[data-status=done]")


def review(page: Page, address: str, password: str) -> None:
    """The review desk with a word of an answer about to be corrected."""
    page.goto(f"{address}admin")
    page.fill("input[autocomplete=username]", "admin")
    page.fill("input[type=password]", password)
    page.keyboard.press("Enter")
    page.locator(".glm-row", has_text="What is the capital of France?").first.click()
    page.wait_for_selector("#glm-output:has-text('Paris')")
    page.evaluate(
        """() => {
        const walker = document.createTreeWalker(document.querySelector("#glm-output"), NodeFilter.SHOW_TEXT);
        const range = document.createRange();
        for (let node = walker.nextNode(); node; node = walker.nextNode()) {
            const place = node.data.indexOf("Paris");
            if (place >= 0) { range.setStart(node, place); range.setEnd(node, place + 5); }
        }
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        }"""
    )
    page.click("#glm-correct")
    page.wait_for_selector(".glm-mask-fill")


def make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    program = next(filter(None, map(shutil.which, CHROMIUM)))
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        for server in start_server("embedded", Path(temporary)):
            page = open_page(browser, server.address, "en", DESKTOP)
            precise(page)
            chat(page, ["Hello!", "What is the capital of France?", "Where is the Eiffel Tower?"])
            page.click("#glm-chat-again")
            page.wait_for_selector(".glm-turn-count")
            page.fill("#glm-chat-input", "And which city is the capital of Italy?")
            page.wait_for_selector("#glm-chat-meter:not([hidden])")
            page.screenshot(path=folder / "chat-en.png")
            page.locator("#glm-preset label").last.click()
            page.fill("#glm-seed textarea, #glm-seed input", "11")
            page.keyboard.press("Tab")
            fill(page, "Paris is the capital of [MASK]. The opposite of big is [MASK].")
            page.click("#glm-fill-1")
            page.screenshot(path=folder / "blanks-en.png")
            page = open_page(browser, server.address, "en", DESKTOP)
            page.click("#glm-tab-compare-button")
            page.fill("#glm-compare-input", "What is the capital of Japan?")
            page.click("#glm-compare-start")
            page.wait_for_function("document.querySelectorAll('#glm-compare [data-status=done]').length === 2")
            page.screenshot(path=folder / "compare-en.png")
            page = open_page(browser, server.address, "zh-CN", DESKTOP)
            page.click("#glm-tab-complete-button")
            precise(page)
            page.fill("#glm-complete-input", "白日依山尽，")
            page.click("#glm-complete-start")
            page.wait_for_function("document.querySelectorAll('#glm-complete [data-status=done]').length === 2")
            page.screenshot(path=folder / "complete-zh.png")
            page = open_page(browser, server.address, "zh-CN", PHONE, "dark")
            page.locator("#glm-preset label").first.scroll_into_view_if_needed()
            precise(page)
            chat(page, ["你是谁？", "法国的首都是哪里？"])
            page.locator("#glm-chat-input").scroll_into_view_if_needed()
            page.evaluate("scrollTo(0, 0)")
            page.screenshot(path=folder / "chat-zh-phone.png")
            page = browser.new_context(viewport=DESKTOP, locale="en").new_page()
            review(page, server.address, (Path(temporary) / "glm-admin-password.txt").read_text().strip())
            page.screenshot(path=folder / "review-en.png")
        browser.close()


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "static" / "screenshots")
