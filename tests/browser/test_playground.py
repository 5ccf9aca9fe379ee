"""The playground in a real browser, against a real server: chat, settings, languages, phone, keys, safety."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from app.ui.playground import PANES, PRESETS
from app.ui.texts import EXAMPLES, TEXTS
from tests.browser.actions import (
    as_stored,
    ask,
    remembered,
    set_number,
    stored_run,
    wait_for_status,
)
from tests.browser.conftest import OpenPage

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


def test_a_chat_streams_its_answer(page: Page) -> None:
    set_number(page, "max_new_tokens", 400)
    page.evaluate(
        """() => {
            window.lengths = [];
            const note = () => window.lengths.push(document.querySelector('.glm-assistant .glm-body')?.textContent.length ?? 0);
            new MutationObserver(note).observe(document.querySelector('#glm-chat-log'), {childList: true, subtree: true});
        }"""
    )
    ask(page, "What is the capital of France?")
    expect(page.locator(".glm-user .glm-body")).to_have_text("What is the capital of France?")
    message = wait_for_status(page, "done")
    # Seen growing, not only at its end.
    lengths = [length for length in page.evaluate("window.lengths") if length]
    assert len(set(lengths)) > 5
    record = stored_run(page, message["run"])
    assert record["status"] == "done"
    assert record["output"] == as_stored(message["content"]) != ""
    assert record["prompt"][-1] == {"role": "user", "content": "What is the capital of France?"}
    facts = page.inner_text(".glm-facts")
    assert f"{record['new_tokens']} tokens" in facts and "tokens/s" in facts and f"seed {record['seed']}" in facts
    assert "slow" in facts
    # The next question goes to the same conversation, with the answer before it.
    set_number(page, "max_new_tokens", 5)
    ask(page, "And of Italy?")
    expect(page.locator(".glm-assistant[data-status=done]")).to_have_count(2)
    second = stored_run(page, remembered(page, "chat")["messages"][-1]["run"])
    assert second["conversation"] == record["conversation"]
    assert [turn["role"] for turn in second["prompt"]] == ["user", "assistant", "user"]


def test_an_example_asks_and_a_new_chat_begins_anew(page: Page) -> None:
    set_number(page, "max_new_tokens", 5)
    page.click("#glm-chat-example-0")
    wait_for_status(page, "done")
    expect(page.locator(".glm-user .glm-body")).to_have_text(EXAMPLES["chat"]["en"][0])
    page.click("#glm-chat-again")
    expect(page.locator(".glm-assistant")).to_have_count(1)
    wait_for_status(page, "done")
    page.click("#glm-chat-new")
    expect(page.locator(".glm-message")).to_have_count(0)
    expect(page.locator("#glm-chat-examples button")).to_have_count(8)
    assert page.evaluate("document.activeElement.id") == "glm-chat-input"


def test_settings_reach_the_run_and_are_remembered(page: Page) -> None:
    page.click("#glm-preset label:has-text('Precise')")
    page.wait_for_function("JSON.parse(localStorage['glm.settings']).temperature === 0")
    set_number(page, "max_new_tokens", 4)
    ask(page, "Hello")
    used = stored_run(page, wait_for_status(page, "done")["run"])["parameters"]
    temperature, top_k, top_p, penalty = PRESETS["precise"]
    assert used == {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "repetition_penalty": penalty,
        "max_new_tokens": 4,
    }
    # A slider moved by hand leaves the preset.
    expect(page.locator("#glm-preset input:checked")).to_have_count(1)
    set_number(page, "temperature", 0.3)
    expect(page.locator("#glm-preset input:checked")).to_have_count(0)
    page.reload()
    expect(page.locator("#glm-temperature input[type=number]")).to_have_value("0.3")
    expect(page.locator("#glm-max_new_tokens input[type=number]")).to_have_value("4")
    # The model's own limit, not the one from before it had loaded.
    expect(page.locator("#glm-max_new_tokens input[type=number]")).to_have_attribute("max", "4095")


def test_a_rating_is_stored_and_can_be_taken_back(page: Page) -> None:
    set_number(page, "max_new_tokens", 5)
    ask(page, "Hello")
    run = wait_for_status(page, "done")["run"]
    for expected in (1, 0):
        with page.expect_response(lambda response: response.url.endswith("/api/feedback")) as got:
            page.click(".glm-good")
        # What was stored is what the button shows: the page takes it from the answer. (Reading the answer's body here can
        # wait for ever, when the browser has dropped it already.)
        assert got.value.ok
        assert got.value.request.post_data_json == {"run": run, "rating": expected}
        expect(page.locator(".glm-good")).to_have_attribute("aria-pressed", "true" if expected else "false")
    expect(page.locator("#glm-notice")).to_have_text(TEXTS["en"]["feedback.thanks"])


def test_the_language_follows_the_browser_and_can_be_switched(open_page: OpenPage) -> None:
    page = open_page(locale="zh-CN")
    expect(page.locator("#glm-tab-chat-button")).to_have_text("聊天")
    expect(page.locator("#glm-review-notice")).to_have_text(TEXTS["zh"]["notice"])
    assert page.title() == TEXTS["zh"]["title"] and page.evaluate("document.documentElement.lang") == "zh-CN"
    page.click("#glm-language-en")
    expect(page.locator("#glm-tab-chat-button")).to_have_text("Chat")
    page.reload()
    expect(page.locator("#glm-tab-chat-button")).to_have_text("Chat")
    page.click("#glm-tab-blanks-button")
    expect(page.locator("#glm-blanks-fill")).to_have_text(TEXTS["en"]["blanks.fill"])
    assert not foreign_texts(page, "zh")
    page.click("#glm-language-zh")
    for name in PANES:  # Gradio writes them one after the other
        expect(page.locator(f"#glm-tab-{name}-button")).to_have_text(TEXTS["zh"][f"tab.{name}"])
    expect(page.locator("#glm-temperature")).to_contain_text(TEXTS["zh"]["temperature.help"])
    assert not foreign_texts(page, "en")


def foreign_texts(page: Page, language: str) -> list[str]:
    """Texts of this language that can be seen on the page, or are a label, a hint or a title there."""
    shown = page.evaluate(
        """() => document.body.innerText + [...document.querySelectorAll('*')].flatMap((node) =>
            ['aria-label', 'title', 'placeholder'].map((name) => node.getAttribute(name) ?? '')).join('\\n')"""
    )
    other = {"en": "zh", "zh": "en"}[language]
    own = [text for key, text in TEXTS[language].items() if text != TEXTS[other][key] and len(text) > 3]
    return [text for text in own if "{" not in text and re.search(rf"(?<!\w){re.escape(text)}(?!\w)", shown)]


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_a_phone_needs_no_sideways_scrolling(open_page: OpenPage, locale: str) -> None:
    page = open_page(locale=locale, **PHONE)
    set_number(page, "max_new_tokens", 150)
    page.evaluate("scrollTo(0, 0)")
    for _ in range(2):
        box = page.locator("#glm-chat-form").bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["y"] + box["height"] <= 844
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        if not page.locator(".glm-message").count():
            page.tap("#glm-chat-example-0")
            wait_for_status(page, "done")
            page.evaluate("scrollTo(0, 0)")
    page.tap("#glm-tab-blanks-button")
    page.tap("#glm-blanks-example-1")
    page.wait_for_selector("#glm-blanks-result[data-status=done]")
    page.tap("#glm-fill-0")
    card = page.locator("#glm-card").bounding_box()
    assert card and card["x"] >= 0 and card["x"] + card["width"] <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_everything_can_be_done_with_keys(page: Page) -> None:
    set_number(page, "max_new_tokens", 5)
    page.focus("#glm-language-zh")
    reached = []
    for _ in range(60):
        reached.append(page.evaluate("document.activeElement.id"))
        if reached[-1] == "glm-chat-send":
            break
        page.keyboard.press("Tab")
    assert {"glm-tab-chat-button", "glm-chat-example-0", "glm-chat-input", "glm-chat-send"} <= set(reached)
    page.focus("#glm-chat-input")
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    # Enter that chooses characters of an input method is not ours.
    page.evaluate(
        """() => document.querySelector('#glm-chat-input').dispatchEvent(
            new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true}))"""
    )
    expect(page.locator(".glm-message")).to_have_count(0)
    page.keyboard.press("Enter")
    expect(page.locator(".glm-user .glm-body")).to_have_text("one\ntwo")
    wait_for_status(page, "done")
    expect(page.locator("#glm-chat-input")).to_be_focused()


def test_text_never_becomes_markup(page: Page) -> None:
    set_number(page, "max_new_tokens", 3)
    evil = "<img src=x onerror=alert(1)> **not bold**"
    ask(page, evil)
    wait_for_status(page, "done")
    expect(page.locator(".glm-user .glm-body")).to_have_text(evil)
    assert page.evaluate("document.querySelectorAll('#glm-chat-log img').length") == 0
    source = (
        "# Title\n\nA **bold** and *it* `a<b>` word, 2*3*4 and snake_case.\n\n- one\n- two\n\n3. three\n\n> said\n\n"
        "```html\n<script>alert(1)</script>\n\n```\n<b>no</b> [a](javascript:alert(1)) ![i](http://example.com/i.png)"
    )
    result = page.evaluate(
        """async (source) => {
            const { render } = await import(new URL('static/markdown.js', document.baseURI));
            const whole = document.createElement('div'), streamed = document.createElement('div');
            render(whole, source);
            for (let end = 1; end <= source.length; end += 1) render(streamed, source.slice(0, end));
            const names = [...new Set([...whole.querySelectorAll('*')].map((node) => node.localName))];
            return {html: whole.innerHTML, same: whole.innerHTML === streamed.innerHTML, names};
        }""",
        source,
    )
    assert result["same"]
    assert not {"script", "a", "img", "b"} & set(result["names"])
    assert {"h3", "strong", "em", "code", "ul", "ol", "li", "blockquote", "pre", "p"} <= set(result["names"])
    assert "2*3*4" in result["html"] and "&lt;script&gt;" in result["html"] and 'start="3"' in result["html"]
