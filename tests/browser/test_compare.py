"""The pane Compare in a real browser: two settings side by side, blind, with a vote that the record keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from app.ui.playground import PRESET_FIELDS, PRESETS
from app.ui.texts import TEXTS
from tests.browser.actions import as_stored, open_tab, remembered, set_number, stored_conversations, stored_run
from tests.browser.conftest import OpenPage, Server
from tests.server import rows

EN = TEXTS["en"]
SIDES = ("left", "right")


def begin(page: Page, tokens: int, mode: str = "chat", text: str = "Tell me a story.") -> None:
    open_tab(page, "compare")
    set_number(page, "max_new_tokens", tokens)
    page.check(f"#glm-compare-mode-{mode}")
    page.fill("#glm-compare-input", text)
    page.press("#glm-compare-input", "Control+Enter")


def ended(page: Page, status: str = "done") -> dict[str, Any]:
    """The round, once both answers have this status."""
    for side in SIDES:
        expect(page.locator(f"#glm-compare-{side}")).to_have_attribute("data-status", status, timeout=60_000)
    return remembered(page, "compare")["round"]


def votes(server: Server, run: str) -> list[tuple[Any, ...]]:
    """What the server's database has of a pair with this run: (first, second, choice, blind)."""
    arguments = [str(one) for one in server.process.args]  # type: ignore[union-attr]
    database = Path(arguments[arguments.index("--database") + 1])
    query = "SELECT first_run_id, second_run_id, choice, blind FROM vote WHERE first_run_id = ? OR second_run_id = ?"
    return rows(database, query, run, run)


def vote(page: Page, which: str) -> dict[str, Any]:
    """Presses a button of the vote; what was sent for it."""
    with page.expect_response(lambda response: response.url.endswith("/api/votes")) as got:
        page.click(f"#glm-compare-vote-{which}")
    assert got.value.ok
    expect(page.locator(f"#glm-compare-vote-{which}")).to_have_attribute("aria-pressed", "true")
    return got.value.request.post_data_json


def test_two_settings_answer_one_question_and_a_vote_is_stored(page: Page, server: Server) -> None:
    open_tab(page, "compare")
    page.select_option("#glm-compare-first-preset", "precise")
    page.select_option("#glm-compare-second-preset", "own")
    for name, value in (("temperature", "0.9"), ("top_k", "12"), ("top_p", "0.8"), ("repetition_penalty", "1.3")):
        page.fill(f"#glm-compare-second-{name}", value)
    page.fill("#glm-compare-seed", "42")
    begin(page, 200)
    page.wait_for_function(
        "[...document.querySelectorAll('.glm-compared')].every((one) => one.textContent.length > 20)"
    )
    assert {page.get_attribute(f"#glm-compare-{side}", "data-status") for side in SIDES} == {"running"}
    expect(page.locator("#glm-compare-votes")).to_be_hidden()
    answers = ended(page)["answers"]
    first, second = (stored_run(page, answers[name]["run"]) for name in ("first", "second"))
    assert first["parameters"] == {**dict(zip(PRESET_FIELDS, PRESETS["precise"], strict=True)), "max_new_tokens": 200}
    own = {"temperature": 0.9, "top_k": 12, "top_p": 0.8, "repetition_penalty": 1.3, "max_new_tokens": 200}
    assert second["parameters"] == own
    assert (first["mode"], first["seed"], second["seed"]) == ("chat", 42, 42)
    assert first["prompt"] == second["prompt"] == [{"role": "user", "content": "Tell me a story."}]
    assert as_stored(answers["second"]["text"]) == second["output"]
    assert [one["id"] for one in stored_conversations(page)] == [first["conversation"]] == [second["conversation"]]
    expect(page.locator("#glm-compare-left h3")).to_contain_text(f"{EN['compare.left']}")
    expect(page.locator("#glm-compare-left h3")).to_contain_text(f"{EN['compare.first']}")
    expect(page.locator("#glm-compare-right .glm-said")).to_contain_text("temperature 0.9 · top_k 12")
    assert votes(server, first["id"]) == []
    vote(page, "right")
    assert votes(server, first["id"]) == [(first["id"], second["id"], "second", 0)]
    expect(page.locator("#glm-compare-voted")).to_have_text(EN["compare.voted"])
    vote(page, "neither")
    assert votes(server, first["id"]) == [(first["id"], second["id"], "neither", 0)]
    expect(page.locator(".glm-vote[aria-pressed=true]")).to_have_count(1)


@pytest.mark.parametrize("swapped", [pytest.param(False, marks=pytest.mark.heavy), True])
def test_a_blind_comparison_hides_the_settings_until_the_vote(
    open_page: OpenPage, server: Server, swapped: bool
) -> None:
    # The browser's chance, for the one byte that decides the sides.
    chance = f"""const draw = crypto.getRandomValues.bind(crypto);
        crypto.getRandomValues = (array) =>
            array instanceof Uint8Array && array.length === 1 ? array.fill({int(swapped)}) : draw(array);"""
    page = open_page(prepare=lambda page: page.add_init_script(chance))
    open_tab(page, "compare")
    page.check("#glm-compare-blind")
    page.select_option("#glm-compare-second-preset", "precise")
    begin(page, 300)
    page.wait_for_function(
        "[...document.querySelectorAll('.glm-compared')].every((one) => one.textContent.length > 20)"
    )
    page.reload()
    for moment in ("running", "ended"):
        round = remembered(page, "compare")["round"] if moment == "running" else ended(page)
        assert round["order"] == (["second", "first"] if swapped else ["first", "second"])
        # Nothing on either side tells which it is.
        shown = "".join(page.inner_text(f"#glm-compare-{side}") for side in SIDES)
        for word in ("Settings", "temperature", "seed", "tokens/s", EN["preset.precise"], EN["compare.page"]):
            assert word not in shown, moment
        expect(page.locator("#glm-compare-blind")).to_be_checked()
    for answer in round["answers"].values():
        assert as_stored(answer["text"]) == stored_run(page, answer["run"])["output"]
    first, second = round["answers"]["first"]["run"], round["answers"]["second"]["run"]
    assert stored_run(page, second)["parameters"]["temperature"] == 0
    # Reloaded when it is over, it is still blind.
    page.reload()
    expect(page.locator("#glm-compare-votes")).to_be_visible()
    assert "Settings" not in page.inner_text("#glm-compare-left")
    sent = vote(page, "left")
    assert sent == {"first": first, "second": second, "choice": round["order"][0], "blind": True}
    assert votes(server, first) == [(first, second, round["order"][0], 1)]
    precise = "left" if swapped else "right"
    expect(page.locator(f"#glm-compare-{precise} h3")).to_contain_text(EN["compare.second"])
    expect(page.locator(f"#glm-compare-{precise} .glm-said")).to_contain_text(f"{EN['preset.precise']}: temperature 0")
    expect(page.locator(f"#glm-compare-{precise} .glm-facts")).to_contain_text("tokens/s")
    expect(page.locator("#glm-compare-voted")).to_have_text(EN["compare.voted.blind"])
    # Changed with the settings in sight, it is no blind vote any more; and it survives a reload.
    vote(page, "tie")
    assert votes(server, first) == [(first, second, "tie", 0)]
    page.reload()
    expect(page.locator("#glm-compare-vote-tie")).to_have_attribute("aria-pressed", "true")


@pytest.mark.parametrize("mode", ["generate", "fill"])
def test_texts_can_be_compared_too(page: Page, mode: str) -> None:
    text = {"generate": "Once upon a time", "fill": "A [MASK] is no [MASK] at all."}[mode]
    open_tab(page, "compare")
    page.select_option("#glm-compare-second-preset", "precise")
    page.uncheck("#glm-compare-same")
    expect(page.locator("#glm-compare-seed")).to_be_disabled()
    begin(page, 30, mode, text)
    round = ended(page)
    runs = [stored_run(page, round["answers"][name]["run"]) for name in ("first", "second")]
    assert [run["mode"] for run in runs] == [mode, mode] and runs[0]["seed"] != runs[1]["seed"]
    for side, run in zip(SIDES, runs, strict=True):
        shown = page.evaluate(f"document.querySelector('#glm-compare-{side} .glm-compared').textContent")
        assert as_stored(shown) == (text + run["output"] if mode == "generate" else run["output"])
        marks = page.locator(f"#glm-compare-{side} .glm-added")
        expect(marks).to_have_count({"generate": 1, "fill": 2}[mode])


def test_masks_are_put_in_at_the_cursor(page: Page) -> None:
    open_tab(page, "compare")
    expect(page.locator("#glm-compare-masks")).to_be_hidden()
    page.check("#glm-compare-mode-fill")
    page.fill("#glm-compare-input", "ab")
    page.press("#glm-compare-input", "ArrowLeft")
    page.click("#glm-compare-masks button >> nth=1")
    assert page.input_value("#glm-compare-input") == "a[sMASK]b"
    assert remembered(page, "compare")["text"] == "a[sMASK]b"


def test_a_value_that_cant_be_used_is_named_and_can_be_mended(page: Page) -> None:
    open_tab(page, "compare")
    page.select_option("#glm-compare-second-preset", "own")
    page.fill("#glm-compare-second-temperature", "hot")
    begin(page, 4)
    box = page.locator("#glm-compare-right .glm-error")
    expect(box).to_contain_text("The server can't use this input.")
    expect(box).to_contain_text("parameters.temperature")
    expect(page.locator("#glm-compare-left")).to_have_attribute("data-status", "done")
    expect(page.locator("#glm-compare-votes")).to_be_hidden()
    page.fill("#glm-compare-second-temperature", "2.5")
    page.click("#glm-compare-start")
    expect(box).to_contain_text("less than or equal to 2")
    page.fill("#glm-compare-second-temperature", "1.5")
    page.click("#glm-compare-start")
    ended(page)
    expect(page.locator("#glm-compare-votes")).to_be_visible()


def test_everything_can_be_done_with_keys(page: Page, server: Server) -> None:
    set_number(page, "max_new_tokens", 2000)
    open_tab(page, "compare")
    page.focus("#glm-compare-mode-chat")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#glm-compare-mode-generate")).to_be_checked()
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
        if reached[-1] == "glm-compare-input":
            page.keyboard.type("Once")
        if reached[-1] == "glm-compare-first-preset":
            page.keyboard.press("ArrowDown")
        if reached[-1] == "glm-compare-blind":
            page.keyboard.press("Space")
        if reached[-1] == "glm-compare-start":
            page.keyboard.press("Enter")
            break
    names = ("input", "first-preset", "second-preset", "same", "seed", "blind", "start")
    assert reached == [f"glm-compare-{name}" for name in names]
    expect(page.locator("#glm-compare-stop")).to_be_focused()
    page.wait_for_function(
        "[...document.querySelectorAll('.glm-compared')].every((one) => one.textContent.length > 20)"
    )
    page.keyboard.press("Enter")
    round = ended(page, "cancelled")
    assert round["blind"] and stored_run(page, round["answers"]["first"]["run"])["parameters"]["temperature"] == 0
    expect(page.locator("#glm-compare-start")).to_be_focused()
    for _ in range(8):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "glm-compare-vote-tie":
            break
    page.keyboard.press("Enter")
    expect(page.locator("#glm-compare-vote-tie")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#glm-compare-vote-tie")).to_be_focused()
    first, second = round["answers"]["first"]["run"], round["answers"]["second"]["run"]
    assert votes(server, first) == [(first, second, "tie", 1)]


@pytest.mark.parametrize("locale, language", [("en-US", "en"), ("zh-CN", "zh")])
def test_a_phone_has_the_answers_one_below_the_other(open_page: OpenPage, locale: str, language: str) -> None:
    page = open_page(locale=locale, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    page.tap("#glm-tab-compare-button")
    set_number(page, "max_new_tokens", 60)
    page.select_option("#glm-compare-second-preset", "own")
    page.fill("#glm-compare-input", "x" * 200)
    page.tap("#glm-compare-start")
    ended(page)
    upper, lower = (page.locator(f"#glm-compare-{side}").bounding_box() for side in SIDES)
    assert upper and lower and upper["y"] + upper["height"] <= lower["y"] and upper["x"] == lower["x"]
    assert lower["x"] + lower["width"] <= 390
    expect(page.get_by_role("button", name=TEXTS[language]["compare.vote.left.narrow"], exact=True)).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_another_language_goes_on_where_it_was(page: Page) -> None:
    begin(page, 4)
    ended(page)
    page.click("#glm-language-zh")
    expect(page.locator("#glm-compare-vote-left")).to_contain_text(TEXTS["zh"]["compare.vote.left"])
    expect(page.locator("#glm-compare-left h3")).to_contain_text(TEXTS["zh"]["compare.first"])
    expect(page.locator("#glm-compare-first-preset option:checked")).to_have_text(TEXTS["zh"]["compare.page"])
