"""What a person does on the page, and what the server and the page remember of it."""

from __future__ import annotations

import json
from typing import Any

from playwright.sync_api import Page, expect

LONG = 3000  # tokens: some seconds


def ask(page: Page, text: str) -> None:
    page.fill("#glm-chat-input", text)
    page.press("#glm-chat-input", "Enter")


def set_number(page: Page, name: str, value: float) -> None:
    box = f"#glm-{name} input[type=number]"
    page.fill(box, str(value))
    page.press(box, "Tab")
    page.wait_for_function(f"JSON.parse(localStorage['glm.settings']).{name} === {value}")


def set_seed(page: Page, seed: str) -> None:
    box = "#glm-seed textarea, #glm-seed input"
    page.fill(box, seed)
    page.press(box, "Tab")
    page.wait_for_function(f"JSON.parse(localStorage['glm.settings']).seed === '{seed}'")


def remembered(page: Page, pane: str) -> Any:
    return json.loads(page.evaluate(f"sessionStorage['glm.{pane}']"))


def filled_text(page: Page) -> str:
    return page.evaluate("document.querySelector('#glm-blanks-filled').textContent")


def as_stored(text: str) -> str:
    """As storage writes it: a random model says anything, NUL included, which databases can't hold."""
    return text.replace("\0", "\u2400")


def stored_run(page: Page, run: str) -> dict[str, Any]:
    """The server's record of a run; asked as the visitor of the page."""
    answer = page.request.get(f"{page.url.rstrip('/')}/api/runs/{run}")
    assert answer.ok
    return answer.json()


def stored_conversations(page: Page) -> list[dict[str, Any]]:
    return page.request.get(f"{page.url.rstrip('/')}/api/conversations").json()["conversations"]


def wait_for_status(page: Page, status: str, timeout: float = 60_000) -> dict[str, Any]:
    """The last message of the chat, once it has this status."""
    page.wait_for_selector(f".glm-assistant[data-status={status}] >> nth=-1", timeout=timeout)
    expect(page.locator(".glm-assistant").last).to_have_attribute("data-status", status, timeout=timeout)
    return remembered(page, "chat")["messages"][-1]


def open_tab(page: Page, name: str) -> None:
    page.click(f"#glm-tab-{name}-button")
    page.wait_for_selector(f"#glm-{name}", state="visible")
