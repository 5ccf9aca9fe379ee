"""The blanks pane in a real browser: blanks are put into a text, fill in place, and nothing is lost on the way."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from playwright.sync_api import Page, WebSocketRoute, expect

from app.ui.texts import TEXTS
from tests.browser.actions import (
    as_stored,
    filled_text,
    remembered,
    set_number,
    set_seed,
    stored_conversations,
    stored_run,
)
from tests.browser.conftest import OpenPage

INPUT = "#glm-blanks-input"
DONE = "#glm-blanks-result[data-status=done]"


def test_two_blanks_are_filled_in_place(page: Page) -> None:
    text = "[MASK] is the capital of France and Rome is the capital of [sMASK]."
    page.click("#glm-tab-blanks-button")
    set_number(page, "max_new_tokens", 40)
    page.fill(INPUT, text)
    expect(page.locator(".glm-mirror mark")).to_have_text(["[MASK]", "[sMASK]"])
    page.evaluate(
        """() => {
            window.seen = [];
            window.said = [];
            const result = document.querySelector('#glm-blanks-result'), live = document.querySelector('#glm-blanks-live');
            const note = () => window.seen.push(document.querySelector('#glm-blanks-filled')?.textContent);
            new MutationObserver(note).observe(result, {childList: true, subtree: true});
            const hear = (changes) => window.said.push(...changes.flatMap((one) => [...one.addedNodes]).map((one) => one.data));
            new MutationObserver(hear).observe(live, {childList: true});
        }"""
    )
    page.click("#glm-blanks-fill")
    page.wait_for_selector(DONE)
    filled = remembered(page, "blanks")["filled"]
    record = stored_run(page, filled["run"])
    assert record["status"] == "done" and record["mode"] == "fill"
    assert as_stored(filled_text(page)) == record["output"]
    first, second = page.inner_text("#glm-fill-0"), page.inner_text("#glm-fill-1")
    assert first and second
    # Blank by blank: while the first one was filling, the second one still stood there as a mask.
    seen = page.evaluate("window.seen")
    assert any("[sMASK]" in one and "[MASK]" not in one for one in seen)
    assert len(set(seen)) > 5
    # A screen reader hears each blank when it is filled, and the whole text at the end.
    expect(page.locator("#glm-blanks-live")).to_have_attribute("aria-live", "polite")
    said = page.evaluate("window.said")
    assert said[0] == TEXTS["en"]["blanks.filling"]
    assert [one.split(":")[0] for one in said[1:3]] == ["Blank 1", "Blank 2"]
    assert said[-1].startswith(TEXTS["en"]["answered"])


def test_masks_are_inserted_at_the_cursor_and_can_be_undone(page: Page) -> None:
    page.click("#glm-tab-blanks-button")
    page.fill(INPUT, "ab")
    page.press(INPUT, "ArrowLeft")
    page.click("#glm-insert-sMASK")
    assert page.input_value(INPUT) == "a[sMASK]b"
    page.keyboard.press("Control+z")
    assert page.input_value(INPUT) == "ab"
    page.click("#glm-blanks-clear")
    assert page.input_value(INPUT) == ""
    expect(page.locator("#glm-blanks-fill")).to_be_disabled()
    # What was cleared is a step of the browser's own undo, too.
    page.keyboard.press("Control+z")
    assert page.input_value(INPUT) == "ab"


def test_keys_insert_each_kind_of_blank_and_the_page_shows_them(page: Page) -> None:
    page.click("#glm-tab-blanks-button")
    page.focus(INPUT)
    for letter, mask in {"m": "[MASK]", "l": "[sMASK]", "g": "[gMASK]"}.items():
        expect(page.locator(f"#glm-insert-{mask[1:-1]} kbd")).to_have_text(f"Alt+{letter.upper()}")
        page.keyboard.press(f"Alt+{letter}")
        page.keyboard.type(" ")
        assert page.input_value(INPUT).endswith(f"{mask} ")
    assert page.input_value(INPUT) == "[MASK] [sMASK] [gMASK] "


def test_selected_words_become_a_blank_with_the_keyboard_and_are_kept(page: Page) -> None:
    page.click("#glm-tab-blanks-button")
    bar = page.locator("#glm-blanks-selected")
    page.focus(INPUT)
    page.keyboard.type("Rome is big, Rome")
    expect(bar).to_be_hidden()
    page.keyboard.press("Home")
    page.keyboard.press("Control+Shift+ArrowRight")  # "Rome" or "Rome ", as the system has it
    expect(bar).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.locator("#glm-blanks-turn")).to_be_focused()
    page.keyboard.press("Enter")
    assert page.input_value(INPUT) == "[MASK] is big, Rome"
    assert remembered(page, "blanks")["words"] == ["Rome"]
    expect(page.locator(INPUT)).to_be_focused()
    expect(bar).to_be_hidden()
    # The browser's own undo brings the words back, its redo the blank with them; other edits leave them alone.
    page.keyboard.press("Control+z")
    assert page.input_value(INPUT) == "Rome is big, Rome" and remembered(page, "blanks")["words"] == []
    page.keyboard.press("Control+Shift+z")
    assert page.input_value(INPUT) == "[MASK] is big, Rome" and remembered(page, "blanks")["words"] == ["Rome"]
    page.keyboard.press("End")
    page.keyboard.press("Control+Shift+ArrowLeft")
    page.keyboard.press("Alt+l")
    page.keyboard.press("Home")
    page.keyboard.type("So: ")
    assert page.input_value(INPUT) == "So: [MASK] is big, [sMASK]"
    assert remembered(page, "blanks")["words"] == ["Rome", "Rome"]
    page.reload()
    expect(page.locator(INPUT)).to_have_value("So: [MASK] is big, [sMASK]")
    page.locator(INPUT).press("End")
    page.keyboard.type("!")
    assert remembered(page, "blanks")["words"] == ["Rome", "Rome"]
    # Where a blank is selected, or a part of one, there are no words to turn.
    page.keyboard.press("Control+a")
    expect(bar).to_be_hidden()


def test_words_follow_their_blanks(page: Page) -> None:
    script = """async ([before, words, after]) => {
        const { carried } = await import(new URL('static/fills.js', document.baseURI));
        return carried(before, words, after);
    }"""
    cases: list[tuple[str, list[str], str, list[str | None]]] = [
        ("a Tokyo b", [], "a [MASK] b", ["Tokyo"]),
        ("a [MASK] b", ["Tokyo"], "a Tokyo b", []),
        ("[MASK] x [MASK]", ["one", "two"], "[MASK] xy [MASK]", ["one", "two"]),
        ("[MASK] x [MASK]", ["one", "two"], " x [MASK]", ["two"]),
        ("[MASK] x", ["one"], "[MASK] [sMASK]", ["one", "x"]),
        ("x", [], "[MASK] y [MASK]", [None, None]),
        ("a [MASK", [], "a [MASK]", [None]),
        ("[MASK]M]", [], "[MASK][MASK]", [None, "M]"]),
        ("东京是首都", [], "[MASK]是首都", ["东京"]),
    ]
    for before, words, after, kept in cases:
        assert page.evaluate(script, [before, words, after]) == kept, (before, after)


def test_a_reload_while_blanks_are_filled_comes_back_to_them(page: Page) -> None:
    page.click("#glm-tab-blanks-button")
    set_number(page, "max_new_tokens", 500)
    page.fill(INPUT, "Once [MASK] upon [MASK] a time")
    page.click("#glm-blanks-fill")
    page.wait_for_selector("#glm-fill-0")
    page.reload()
    # The tab comes back too.
    expect(page.locator(INPUT)).to_be_visible()
    page.wait_for_selector(DONE, timeout=60_000)
    record = stored_run(page, remembered(page, "blanks")["filled"]["run"])
    assert as_stored(filled_text(page)) == record["output"]
    assert len(stored_conversations(page)) == 1


def test_a_request_that_was_sent_twice_runs_once(open_page: OpenPage) -> None:
    sent: list[dict[str, Any]] = []

    def through(route: WebSocketRoute) -> None:
        upstream = route.connect_to_server()

        def pass_on(message: str | bytes) -> None:
            sent.append(json.loads(message))
            upstream.send(message)

        def pass_back(message: str | bytes) -> None:
            # The server has accepted it, but the page doesn't hear of it: the connection is lost just then.
            if len(sent) == 1:
                route.close()
            else:
                route.send(message)

        route.on_message(pass_on)
        upstream.on_message(pass_back)

    page = open_page(prepare=lambda page: page.route_web_socket(re.compile(r"/ws$"), through))
    page.click("#glm-tab-blanks-button")
    set_number(page, "max_new_tokens", 5)
    page.fill(INPUT, "A [MASK] B")
    page.click("#glm-blanks-fill")
    page.wait_for_selector(DONE)
    assert [one["type"] for one in sent] == ["fill", "fill"] and sent[0] == sent[1]
    conversation = page.request.get(f"{page.url}api/conversations/{stored_conversations(page)[0]['id']}").json()
    assert len(stored_conversations(page)) == len(conversation["runs"]) == 1
    assert as_stored(filled_text(page)) == conversation["runs"][0]["output"]


def test_an_error_is_tried_again_with_the_text_as_it_is_then(page: Page) -> None:
    page.click("#glm-tab-blanks-button")
    set_number(page, "max_new_tokens", 5)
    page.fill(INPUT, "An [XMASK] here")
    page.click("#glm-blanks-fill")
    expect(page.locator("#glm-blanks-result .glm-error")).to_be_visible()
    page.fill(INPUT, "A [MASK] here")
    page.click("#glm-blanks-result .glm-retry")
    page.wait_for_selector(DONE)
    assert page.input_value(INPUT) == "A [MASK] here"
    assert filled_text(page).startswith("A ") and filled_text(page).endswith(" here")
    assert len(stored_conversations(page)) == 1


@pytest.mark.parametrize("order", ["left", "confident"])
def test_blanks_are_filled_in_the_chosen_order(page: Page, order: str) -> None:
    page.click("#glm-tab-blanks-button")
    set_number(page, "max_new_tokens", 6)
    set_seed(page, "3")
    page.fill(INPUT, "One [MASK] two [MASK] three [MASK] four")
    page.focus("#glm-blanks-order")
    if order == "confident":
        page.keyboard.press("ArrowDown")
    page.click("#glm-blanks-fill")
    page.wait_for_selector(DONE)
    filled = remembered(page, "blanks")["filled"]
    record = stored_run(page, filled["run"])
    # The server's default is not sent.
    assert record["parameters"].get("order") == (None if order == "left" else "confident")
    assert as_stored(filled_text(page)) == record["output"]
    assert [as_stored(blank["text"]) for blank in filled["blanks"]] == [blank["text"] for blank in record["blanks"]]
    page.reload()
    expect(page.locator("#glm-blanks-order")).to_have_value(order)


def test_a_text_from_elsewhere_can_be_put_into_the_editor(page: Page) -> None:
    page.click("#glm-tab-blanks-button")
    shown = page.evaluate(
        """async () => {
            const { Canvas } = await import(new URL('static/canvas.js', document.baseURI));
            const { Connection } = await import(new URL('static/socket.js', document.baseURI));
            const address = new URL('ws', document.baseURI.replace('http', 'ws'));
            const pane = new Canvas(new Connection(address.href), () => ({}));
            pane.load({text: 'Old [MASK]'});
            pane.load({text: 'New [MASK] and [sMASK]'});
            return [pane.section.querySelector('textarea').value, pane.section.querySelectorAll('mark').length];
        }"""
    )
    assert shown == ["New [MASK] and [sMASK]", 2]


def test_the_cost_is_shown_before_the_blanks_are_filled(page: Page) -> None:
    page.click("#glm-tab-blanks-button")
    page.fill("#glm-blanks-input", "One [MASK] two [MASK] three")
    words = page.locator("#glm-blanks-meter .glm-meter-words")
    expect(words).to_contain_text("of 4096 tokens")
    page.fill("#glm-blanks-input", "")
    expect(page.locator("#glm-blanks-meter")).to_be_hidden()


def test_a_filled_text_is_shared_as_the_visitor_has_it(page: Page) -> None:
    page.click("#glm-tab-blanks-button")
    set_number(page, "max_new_tokens", 4)
    page.fill(INPUT, "A [MASK] B")
    page.click("#glm-blanks-fill")
    page.wait_for_selector(DONE)
    page.press("#glm-fill-0", "Enter")
    page.fill("#glm-own", "word of mine")
    page.keyboard.press("Enter")
    page.click("#glm-blanks-share")
    expect(page.locator("#glm-share-name")).to_have_value("A [MASK] B")
    expect(page.locator("#glm-share-preview")).to_contain_text("A word of mine B")
    page.keyboard.press("Escape")
    expect(page.locator("#glm-blanks-share")).to_be_focused()
