"""The list of a visitor's conversations: search, open, rename, delete; nobody else's is in it."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from app.ui.texts import TEXTS
from tests.browser.actions import LONG, as_stored, ask, remembered, set_number, stored_conversations, wait_for_status
from tests.browser.conftest import OpenPage, Server

TEXT = TEXTS["en"]


def converse(page: Page, *questions: str) -> None:
    set_number(page, "max_new_tokens", 5)
    page.click("#glm-tab-chat-button")
    for question in questions:
        if page.locator("#glm-chat-new").is_visible():
            page.click("#glm-chat-new")
        ask(page, question)
        wait_for_status(page, "done")


def test_a_conversation_is_found_and_opened_with_all_its_branches(page: Page) -> None:
    converse(page, "Pears and plums")
    page.click("#glm-chat-again")
    page.wait_for_function(
        "JSON.parse(sessionStorage['glm.chat']).messages.filter((one) => one.status === 'done').length === 2"
    )
    page.click(".glm-good")
    expect(page.locator(".glm-good")).to_have_attribute("aria-pressed", "true")
    answer = remembered(page, "chat")["messages"][-1]["content"]
    converse(page, "苹果和梨")
    page.click("#glm-history-open")
    rows = page.locator("#glm-history-rows li")
    expect(rows.locator(".glm-history-name")).to_have_text(["苹果和梨", "Pears and plums"])
    page.fill("#glm-history-search", "PLUMS")
    expect(rows).to_have_count(1)
    page.fill("#glm-history-search", "no such words anywhere")
    expect(rows).to_have_count(0)
    expect(page.locator("#glm-history-remark")).to_have_text(TEXT["history.nothing"])
    page.fill("#glm-history-search", "苹果")
    expect(rows.locator(".glm-history-name")).to_have_text(["苹果和梨"])
    page.fill("#glm-history-search", "")
    expect(rows).to_have_count(2)
    rows.last.locator(".glm-history-open").click()
    expect(page.locator("#glm-history")).to_be_hidden()
    expect(page.locator(".glm-user .glm-body")).to_have_text("Pears and plums")
    expect(page.locator(".glm-turn-count")).to_have_text("2 / 2")
    expect(page.locator(".glm-good")).to_have_attribute("aria-pressed", "true")
    assert as_stored(remembered(page, "chat")["messages"][-1]["content"]) == as_stored(answer)
    # It goes on as the same conversation.
    ask(page, "More")
    page.wait_for_function(
        "JSON.parse(sessionStorage['glm.chat']).messages.filter((one) => one.status === 'done').length === 3"
    )
    assert [one["title"] for one in stored_conversations(page)] == ["Pears and plums", "苹果和梨"]


def test_rename_and_delete_with_keys_alone(page: Page) -> None:
    converse(page, "First", "Second")
    page.focus("#glm-history-open")
    page.keyboard.press("Enter")
    rows = page.locator("#glm-history-rows li")
    expect(rows).to_have_count(2)
    rows.first.locator(".glm-history-rename").press("Enter")
    page.keyboard.type("A better title")
    page.keyboard.press("Enter")
    expect(rows.locator(".glm-history-name")).to_have_text(["A better title", "First"])
    assert [one["title"] for one in stored_conversations(page)] == ["A better title", "First"]
    # Escape leaves the title as it is, and the dialog open.
    rows.first.locator(".glm-history-rename").press("Enter")
    page.keyboard.type("Never mind")
    page.keyboard.press("Escape")
    expect(page.locator("#glm-history")).to_be_visible()
    expect(rows.locator(".glm-history-name")).to_have_text(["A better title", "First"])
    # Deleting asks first, and "Cancel" is what Enter presses.
    rows.first.locator(".glm-history-delete").press("Enter")
    expect(rows.first).to_contain_text("A better title")
    page.keyboard.press("Enter")
    expect(rows.locator(".glm-history-name")).to_have_text(["A better title", "First"])
    rows.first.locator(".glm-history-delete").press("Enter")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(rows).to_have_count(1)
    expect(rows.locator(".glm-history-name")).to_have_text(["First"])
    assert [one["title"] for one in stored_conversations(page)] == ["First"]
    # The deleted one was open in the chat: it is gone there, too.
    page.keyboard.press("Escape")
    expect(page.locator(".glm-message")).to_have_count(0)


def test_an_answer_under_way_is_taken_up_in_another_tab(page: Page) -> None:
    set_number(page, "max_new_tokens", LONG)
    ask(page, "Tell me a long story.")
    page.wait_for_function("(document.querySelector('.glm-assistant .glm-body')?.textContent.length ?? 0) > 50")
    other = page.context.new_page()
    other.goto(page.url)
    other.wait_for_selector("#glm-status[data-state=ready]")
    expect(other.locator(".glm-message")).to_have_count(0)
    other.click("#glm-history-open")
    other.locator("#glm-history-rows .glm-history-open").first.click()
    other.wait_for_function("(document.querySelector('.glm-assistant .glm-body')?.textContent.length ?? 0) > 50")
    # Both show the same run, and either may stop it.
    other.click("#glm-chat-stop")
    here, there = wait_for_status(page, "cancelled"), wait_for_status(other, "cancelled")
    assert here["run"] == there["run"] and here["content"] == there["content"]


def test_nobody_elses_conversations_are_listed_or_reached(open_page: OpenPage, server: Server) -> None:
    first, second = open_page(), open_page()
    converse(first, "Mine alone")
    (mine,) = stored_conversations(first)
    second.click("#glm-history-open")
    expect(second.locator("#glm-history-remark")).to_have_text(TEXT["history.empty"])
    address = f"{server.address}api/conversations/{mine['id']}"
    assert second.request.get(address).status == 404
    assert second.request.patch(address, data={"title": "taken"}).status == 404
    assert second.request.delete(address).status == 404
    assert stored_conversations(first) == [mine]


def test_the_list_fits_a_phone_and_speaks_chinese(open_page: OpenPage) -> None:
    page = open_page(locale="zh-CN", viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    converse(page, "一个很长很长的题目" * 8)
    page.tap("#glm-history-open")
    box = page.locator("#glm-history").bounding_box()
    assert box and box["x"] >= 0 and box["x"] + box["width"] <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    expect(page.locator("#glm-history-title")).to_have_text(TEXTS["zh"]["history"])
    for button in page.locator("#glm-history-rows button").all():
        size = button.bounding_box()
        assert size and size["height"] >= 40
