"""The pane Complete in a real browser: sampling and beam search side by side, taken further, stopped, reloaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from app.ui.texts import TEXTS
from tests.browser.actions import (
    as_stored,
    open_tab,
    remembered,
    set_number,
    set_seed,
    stored_conversations,
    stored_run,
)
from tests.browser.conftest import OpenPage, Server, Watch, start_server

TEXT = "Once upon a time"


def begin(page: Page, tokens: int, text: str = TEXT) -> None:
    open_tab(page, "complete")
    set_number(page, "max_new_tokens", tokens)
    page.fill("#glm-complete-input", text)
    page.press("#glm-complete-input", "Control+Enter")


def ended(page: Page, status: str = "done", timeout: float = 60_000) -> dict[str, Any]:
    """Both answers, once they have this status."""
    for kind in ("sample", "beam"):
        expect(page.locator(f"#glm-complete-{kind}")).to_have_attribute("data-status", status, timeout=timeout)
    return remembered(page, "complete")["answers"]


def test_both_sides_stream_at_the_same_time_and_are_kept(page: Page) -> None:
    sent: list[dict[str, Any]] = []
    page.on("websocket", lambda socket: socket.on("framesent", lambda frame: sent.append(json.loads(frame))))
    page.reload()
    page.wait_for_selector("#glm-status[data-state=ready]")
    open_tab(page, "complete")
    page.evaluate(
        """() => {
            window.seen = [];
            const status = (kind) => document.querySelector(`#glm-complete-${kind}`).dataset.status;
            const note = () => window.seen.push([
                document.querySelector('#glm-complete-text .glm-added').textContent.length, status('sample'),
                [...document.querySelectorAll('.glm-beam-text')].map((beam) => beam.textContent).join('|'), status('beam')]);
            new MutationObserver(note).observe(document.querySelector('#glm-complete'), {childList: true, subtree: true});
        }"""
    )
    begin(page, 300)
    answers = ended(page)
    seen = page.evaluate("window.seen")
    assert len({length for length, *_ in seen}) > 5
    assert len({beams for _, _, beams, _ in seen}) > 5
    # Both had words while both were under way.
    assert any(length and beams and (a, b) == ("running", "running") for length, a, beams, b in seen)
    sample, beam = (stored_run(page, answers[kind]["run"]) for kind in ("sample", "beam"))
    assert sample["mode"] == beam["mode"] == "generate" and sample["prompt"] == beam["prompt"] == TEXT
    assert sample["parameters"]["temperature"] == 0.6 and "num_beams" not in sample["parameters"]
    assert beam["parameters"] == {"max_new_tokens": 300, "num_beams": 4}
    assert as_stored(answers["sample"]["text"]) == sample["output"]
    assert (
        as_stored(page.evaluate("document.querySelector('#glm-complete-text').textContent")) == TEXT + sample["output"]
    )
    assert as_stored(answers["beam"]["beams"][0]["text"]) == beam["output"]
    # Every beam of the record is shown, best first, with what it is worth.
    kept = [one["text"] for one in beam["blanks"][0]["alternatives"]]
    assert [as_stored(one["text"]) for one in answers["beam"]["beams"]] == kept and len(kept) == 4
    scores = [one["score"] for one in answers["beam"]["beams"]]
    assert scores == sorted(scores, reverse=True)
    shown = page.locator(".glm-beam .glm-measures").all_inner_texts()
    assert len(shown) == 4
    for line in shown:
        assert "probability" in line and "score" in line and "not ended" in line
    assert f"seed {sample['seed']}" in page.inner_text("#glm-complete-sample .glm-facts")
    # One socket, two runs, one conversation in the record.
    assert [message["type"] for message in sent] == ["generate", "generate"]
    assert sample["conversation"] == beam["conversation"]
    [conversation] = stored_conversations(page)
    assert (conversation["kind"], conversation["title"]) == ("complete", TEXT)


def test_a_continuation_is_taken_with_keys_and_goes_on(page: Page) -> None:
    set_seed(page, "7")
    begin(page, 6)
    first = ended(page)
    page.press("#glm-complete-use-beam-1", "Enter")
    expect(page.locator("#glm-complete-input")).to_be_focused()
    text = page.input_value("#glm-complete-input")
    assert text == TEXT + first["beam"]["beams"][1]["text"]
    assert page.evaluate("document.activeElement.selectionStart") == len(text)
    page.keyboard.press("Control+Enter")
    page.wait_for_function(
        "([a, b]) => { const s = JSON.parse(sessionStorage['glm.complete']).answers;"
        " return s.sample.run && s.beam.run && s.sample.run !== a && s.beam.run !== b; }",
        arg=[first["sample"]["run"], first["beam"]["run"]],
    )
    second = ended(page)
    record = stored_run(page, second["sample"]["run"])
    assert as_stored(record["prompt"]) == as_stored(text)
    assert record["conversation"] == stored_run(page, first["sample"]["run"])["conversation"]
    # Another text is another conversation.
    begin(page, 3, "Something else")
    expect(page.locator("#glm-complete-text .glm-given")).to_have_text("Something else")
    ended(page)
    assert len(stored_conversations(page)) == 2


def test_one_side_is_made_anew_by_itself(page: Page) -> None:
    begin(page, 5)
    first = ended(page)
    page.press("#glm-complete-again-sample", "Enter")
    page.wait_for_function(
        f"JSON.parse(sessionStorage['glm.complete']).answers.sample.run !== '{first['sample']['run']}'"
    )
    second = ended(page)
    assert second["beam"]["run"] == first["beam"]["run"]
    expect(page.locator("#glm-complete-start")).to_be_focused()
    with page.expect_response(lambda response: response.url.endswith("/api/feedback")) as got:
        page.click("#glm-complete-beam .glm-good")
    assert got.value.request.post_data_json == {"run": first["beam"]["run"], "rating": 1}
    page.click("#glm-complete-clear")
    expect(page.locator(".glm-columns:visible")).to_have_count(0)
    assert remembered(page, "complete")["text"] == ""


def test_stop_ends_both_and_what_there_is_can_be_taken(page: Page) -> None:
    begin(page, 900)
    page.wait_for_function(
        """() => document.querySelector('#glm-complete-text .glm-added').textContent.length > 50
            && document.querySelector('.glm-beam-text')?.textContent.length > 20"""
    )
    page.click("#glm-complete-stop")
    answers = ended(page, "cancelled")
    expect(page.locator("#glm-complete-start")).to_be_visible()
    assert [stored_run(page, answers[kind]["run"])["status"] for kind in ("sample", "beam")] == ["cancelled"] * 2
    expect(page.locator("#glm-complete-sample .glm-facts")).to_contain_text(TEXTS["en"]["stopped"])
    page.click("#glm-complete-use-sample")
    assert page.input_value("#glm-complete-input") == TEXT + answers["sample"]["text"]


def test_a_reload_in_the_middle_comes_back_to_both(page: Page) -> None:
    begin(page, 500)
    page.wait_for_function(
        """() => document.querySelector('#glm-complete-text .glm-added').textContent.length > 50
            && document.querySelectorAll('.glm-beam-text').length === 4"""
    )
    before = {kind: answer["run"] for kind, answer in remembered(page, "complete")["answers"].items()}
    page.reload()
    expect(page.locator("#glm-complete-input")).to_have_value(TEXT)
    answers = ended(page)
    assert {kind: answer["run"] for kind, answer in answers.items()} == before
    sample, beam = (stored_run(page, answers[kind]["run"]) for kind in ("sample", "beam"))
    shown = page.evaluate("document.querySelector('#glm-complete-text').textContent")
    assert as_stored(shown) == TEXT + sample["output"] and sample["status"] == "done"
    kept = [one["text"] for one in beam["blanks"][0]["alternatives"]]
    assert [as_stored(one["text"]) for one in answers["beam"]["beams"]] == kept
    assert len(stored_conversations(page)) == 1
    # And once more when it is over: the page remembers it.
    page.reload()
    expect(page.locator(".glm-beam")).to_have_count(4)
    assert (
        as_stored(page.evaluate("document.querySelector('#glm-complete-text').textContent")) == TEXT + sample["output"]
    )


def test_a_conversation_of_the_history_is_opened_and_a_deleted_one_is_left(page: Page) -> None:
    begin(page, 5)
    first = ended(page)
    page.click("#glm-complete-clear")
    page.click("#glm-history-open")
    page.click(".glm-history-open")
    expect(page.locator("#glm-complete-input")).to_have_value(TEXT)
    expect(page.locator(".glm-beam")).to_have_count(4)
    opened = ended(page)
    for kind in ("sample", "beam"):
        assert opened[kind]["run"] == first[kind]["run"]
    shown = page.evaluate("document.querySelector('#glm-complete-text').textContent")
    assert as_stored(shown) == as_stored(TEXT + first["sample"]["text"])
    texts = [one["text"] for one in remembered(page, "complete")["answers"]["beam"]["beams"]]
    assert texts == [as_stored(one["text"]) for one in first["beam"]["beams"]]
    # Deleted elsewhere, it takes no more: that is said, and the next try opens another.
    [conversation] = stored_conversations(page)
    assert page.request.delete(f"{page.url.rstrip('/')}/api/conversations/{conversation['id']}").ok
    page.click("#glm-complete-again-sample")
    expect(page.locator("#glm-complete-sample .glm-error")).to_be_visible()
    page.click("#glm-complete-sample .glm-retry")
    expect(page.locator("#glm-complete-sample")).to_have_attribute("data-status", "done")
    [another] = stored_conversations(page)
    assert another["id"] != conversation["id"]
    page.click("#glm-complete-share-sample")
    expect(page.locator("#glm-share")).to_be_visible()


def test_an_error_stands_on_its_side_with_a_way_on(page: Page, watch: Watch) -> None:
    watch.expected += ["status 422", "status of 422"]  # the estimate of what can't be run
    # The beams are not drawn, so they need no seed.
    set_seed(page, "twelve")
    begin(page, 3)
    box = page.locator("#glm-complete-sample .glm-error")
    expect(box).to_contain_text("The server can't use this input.")
    expect(box).to_contain_text("seed")
    expect(page.locator("#glm-complete-beam")).to_have_attribute("data-status", "done")
    expect(page.locator("#glm-complete-beam .glm-error")).to_have_count(0)
    set_seed(page, "12")
    page.click("#glm-complete-sample .glm-retry")
    answers = ended(page)
    assert stored_run(page, answers["sample"]["run"])["seed"] == 12
    begin(page, 3, "An [XMASK] here")
    for kind in ("sample", "beam"):
        expect(page.locator(f"#glm-complete-{kind} .glm-error")).to_contain_text("Use [MASK], [sMASK] or [gMASK].")


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_a_phone_has_the_sides_one_below_the_other(open_page: OpenPage, locale: str) -> None:
    page = open_page(locale=locale, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    page.tap("#glm-tab-complete-button")
    set_number(page, "max_new_tokens", 60)
    page.fill("#glm-complete-input", "x" * 200)
    page.tap("#glm-complete-start")
    ended(page)
    sample = page.locator("#glm-complete-sample").bounding_box()
    beam = page.locator("#glm-complete-beam").bounding_box()
    assert sample and beam and sample["y"] + sample["height"] <= beam["y"] and sample["x"] == beam["x"]
    assert beam["x"] + beam["width"] <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.fixture(scope="module")
def embedded_server(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from start_server("embedded", tmp_path_factory.mktemp("embedded"))


def test_the_embedded_model_knows_the_poem(embedded_server: Server, open_page: OpenPage) -> None:
    page = open_page(address=embedded_server.address, locale="zh-CN")
    page.click("#glm-preset label:has-text('精确')")
    page.wait_for_function("JSON.parse(localStorage['glm.settings']).temperature === 0")
    open_tab(page, "complete")
    page.fill("#glm-complete-input", "白日依山尽，")
    page.click("#glm-complete-start")
    ended(page)
    expect(page.locator("#glm-complete-text")).to_contain_text("白日依山尽，黄河入海流。")
    expect(page.locator(".glm-beam-text").first).to_have_text("黄河入海流。")
    expect(page.locator(".glm-beam .glm-measures").first).to_contain_text(TEXTS["zh"]["complete.ended"])
