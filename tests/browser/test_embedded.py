"""The page with the model that ships with the project: the suggested examples give what they promise."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from app.ui.texts import TEXTS
from tests.browser.actions import filled_text, open_tab, remembered, stored_run
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


@pytest.fixture
def precise(embedded_server: Server, open_page: OpenPage) -> Page:
    """The blanks, filled with the likeliest words."""
    page = open_page(address=embedded_server.address)
    page.click("#glm-preset label:has-text('Precise')")
    page.wait_for_function("JSON.parse(localStorage['glm.settings']).temperature === 0")
    open_tab(page, "blanks")
    return page


def scored(page: Page) -> list[dict[str, object]]:
    """The scoring runs of the text that is shown, as the server recorded them: the text and the words that were scored."""
    conversation = remembered(page, "blanks")["filled"]["conversation"]
    runs = page.request.get(f"{page.url}api/conversations/{conversation}").json()["runs"]
    found = [run for run in runs if run["mode"] == "score"]
    return [{"prompt": run["prompt"], "answers": run["parameters"]["answers"], "run": run["id"]} for run in found]


def test_own_words_are_scored_beside_the_models(precise: Page) -> None:
    page = precise
    page.fill("#glm-blanks-input", "The capital of Japan is Kyoto.")
    page.focus("#glm-blanks-input")
    page.evaluate("document.activeElement.setSelectionRange(24, 29)")
    page.keyboard.press("Alt+m")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#glm-blanks-result[data-status=done]")
    expect(page.locator("#glm-fill-0")).to_have_text("Tokyo")
    page.press("#glm-fill-0", "Enter")
    # The words that the blank took the place of stand there, and can be scored without being typed again.
    mine = page.locator(".glm-choice:has(.glm-mine)")
    expect(mine.locator(".glm-choice-text")).to_have_text("Kyoto")
    expect(mine).to_contain_text(TEXTS["en"]["blanks.unscored"])
    expect(page.locator("#glm-own")).to_have_value("Kyoto")
    page.press("#glm-own-score", "Enter")
    verdict = page.locator(".glm-verdict")
    expect(verdict).to_have_text(re.compile("The model finds “Tokyo” .+ times likelier than your “Kyoto”."))
    expect(page.locator("#glm-card")).to_contain_text(TEXTS["en"]["blanks.context.now"])
    expect(page.locator(".glm-choice-text")).to_have_text(["Tokyo", "Kyoto"])  # the likeliest first
    expect(page.locator(".glm-choice-chance")).to_have_count(2)
    shares = page.evaluate(
        "[...document.querySelectorAll('.glm-bar')].map((bar) => Number(bar.style.getPropertyValue('--share')))"
    )
    # What the page says is what the server measured, in the same text for both.
    runs = scored(page)
    assert {run["prompt"] for run in runs} == {"The capital of Japan is [MASK]."}
    logprobs = {}
    for run in runs:
        (blank,) = stored_run(page, str(run["run"]))["blanks"]
        logprobs[run["answers"][0]] = blank["alternatives"][0]["logprob"]  # type: ignore[index]
    assert set(logprobs) == {"Tokyo", "Kyoto"}
    assert shares == pytest.approx([math.exp(logprobs["Tokyo"]), math.exp(logprobs["Kyoto"])])
    assert 1 > shares[0] > 0.5 > shares[1] > 0
    # Token by token, the end with them: together they are the whole.
    tokens = page.locator(".glm-token")
    expect(tokens.last).to_contain_text(TEXTS["en"]["blanks.heat.end"])
    values = remembered(page, "blanks")["filled"]["blanks"][0]["scored"]["values"]
    assert sum(token["logprob"] for token in values["Tokyo"]["tokens"]) == pytest.approx(logprobs["Tokyo"])
    expect(tokens).to_have_count(len(values["Tokyo"]["tokens"]))
    # The model's own words: only they are asked for, the others are known.
    page.fill("#glm-own", "Tokyo")
    page.click("#glm-own-score")
    expect(verdict).to_have_text("Your “Tokyo” is the model's own first choice.")
    assert len(scored(page)) == 2


def test_words_are_scored_with_the_other_blanks_as_they_are(precise: Page) -> None:
    page = precise
    page.fill("#glm-blanks-input", "The capital of [MASK] is [MASK].")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#glm-blanks-result[data-status=done]")
    fills = [blank["text"].strip() for blank in remembered(page, "blanks")["filled"]["blanks"]]
    page.press("#glm-fill-0", "Enter")
    page.fill("#glm-own", "Japan")
    page.keyboard.press("Enter")
    page.press("#glm-fill-1", "Enter")
    page.fill("#glm-own", "Tokyo")
    page.click("#glm-own-score")
    expect(page.locator(".glm-verdict")).to_contain_text("Tokyo")
    assert {run["prompt"] for run in scored(page)} == {"The capital of Japan is [MASK]."}
    values = remembered(page, "blanks")["filled"]["blanks"][1]["scored"]["values"]
    assert values["Tokyo"]["logprob"] > math.log(0.5)
    page.keyboard.press("Escape")  # the card has kept the focus
    expect(page.locator("#glm-card")).to_have_count(0)
    # With other words in the first blank the old numbers don't hold.
    page.click("#glm-blanks-undo")
    assert filled_text(page) == f"The capital of {fills[0]} is {fills[1]}."
    page.press("#glm-fill-1", "Enter")
    expect(page.locator("#glm-card")).to_contain_text(TEXTS["en"]["blanks.context.fill"])
    if fills[1] != "Tokyo":
        expect(page.locator(".glm-choice:has(.glm-mine)")).to_contain_text(TEXTS["en"]["blanks.unscored"])


def test_a_blank_before_a_locked_one_is_filled_to_suit_it(precise: Page) -> None:
    page = precise
    page.fill("#glm-blanks-input", "[MASK] is the capital of [MASK].")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#glm-blanks-result[data-status=done]")
    page.press("#glm-fill-1", "Enter")
    page.fill("#glm-own", "Japan")
    page.keyboard.press("Enter")
    page.press("#glm-fill-1", "l")
    page.click("#glm-blanks-again")
    expect(page.locator("#glm-blanks-filled")).to_have_text("Tokyo is the capital of Japan.")
    page.wait_for_selector("#glm-blanks-result[data-status=done]")
    assert stored_run(page, remembered(page, "blanks")["filled"]["run"])["prompt"] == "[MASK] is the capital of Japan."
