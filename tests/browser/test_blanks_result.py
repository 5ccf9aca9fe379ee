"""What can be done with a filled text: other choices, own words, locks, filling again, undo; keys, phone, contrast, the record."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from app.ui.texts import TEXTS
from tests.browser.actions import (
    LONG,
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
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
FINGER = 40  # px


def fill(page: Page, text: str, tokens: int = 4) -> None:
    page.click("#glm-tab-blanks-button")
    set_number(page, "max_new_tokens", tokens)
    page.fill(INPUT, text)
    page.press(INPUT, "Control+Enter")
    page.wait_for_selector(DONE)


def filled(page: Page) -> dict[str, Any]:
    return remembered(page, "blanks")["filled"]


def words(page: Page) -> list[str]:
    return [blank["text"] for blank in filled(page)["blanks"]]


def wait_for_another_run(page: Page, run: str) -> None:
    page.wait_for_function(
        """(run) => {
            const { filled } = JSON.parse(sessionStorage['glm.blanks']);
            return filled.status === 'done' && filled.run !== run;
        }""",
        arg=run,
        timeout=60_000,
    )
    # What is remembered is drawn at the next frame.
    page.evaluate("() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")


def test_a_choice_can_be_taken_with_the_keyboard(page: Page) -> None:
    page.click("#glm-tab-blanks-button")
    set_seed(page, "5")
    fill(page, "A [MASK] B", tokens=3)
    page.press("#glm-fill-0", "Enter")
    card = page.locator("#glm-card")
    expect(card).to_be_visible()
    expect(card.locator(".glm-choice")).to_have_count(3)
    expect(card.locator(".glm-choice-chance").first).to_contain_text("probability")
    expect(card).to_contain_text(TEXTS["en"]["blanks.context.fill"])
    expect(card.locator(".glm-choice[aria-pressed=true]")).to_be_focused()
    # The shown fill is the model's first; its tokens have their own probabilities. (It was cut, so it has no end.)
    tokens = filled(page)["blanks"][0]["alternatives"][0]["tokens"]
    expect(card.locator(".glm-token")).to_have_count(len(tokens))
    assert [token["logprob"] for token in tokens] == stored_run(page, filled(page)["run"])["blanks"][0]["logprobs"]
    page.keyboard.press("Escape")
    expect(card).to_have_count(0)
    expect(page.locator("#glm-fill-0")).to_be_focused()
    page.keyboard.press("Enter")
    other = card.locator(".glm-choice[aria-pressed=false]").first
    taken = other.locator(".glm-choice-text").inner_text()
    other.press("Enter")
    expect(card).to_have_count(0)
    assert page.inner_text("#glm-fill-0").strip() == taken
    assert filled_text(page).startswith("A ")
    # Of another choice only the whole probability is known.
    page.keyboard.press("Enter")
    expect(card.locator(".glm-token")).to_have_count(0)
    expect(card).to_contain_text(TEXTS["en"]["blanks.heat.unknown"])


def test_locked_blanks_keep_their_words_while_the_others_are_filled_again(page: Page) -> None:
    fill(page, "One [MASK] two [MASK] three [sMASK] four")
    before, first = words(page), filled(page)
    expect(page.locator("#glm-blanks-again")).to_have_text(TEXTS["en"]["blanks.refill"])
    # By the keyboard alone: to the second fill, lock, on to the button.
    page.focus("#glm-fill-1")
    page.keyboard.press("l")
    expect(page.locator("#glm-fill-1")).to_be_focused()
    expect(page.locator("#glm-fill-1.glm-locked svg")).to_be_visible()
    assert page.get_attribute("#glm-fill-1", "aria-label") == f"Blank 2, locked: {before[1].strip()}"
    expect(page.locator("#glm-blanks-live")).to_have_text("Blank 2 is locked.")
    expect(page.locator("#glm-blanks-again")).to_have_text(TEXTS["en"]["blanks.refill.others"])
    page.keyboard.press("r")  # a locked blank isn't filled again
    assert filled(page)["run"] == first["run"] and filled(page)["status"] == "done"
    page.focus("#glm-blanks-again")
    page.keyboard.press("Enter")
    wait_for_another_run(page, first["run"])
    after, second = words(page), filled(page)
    assert after[1] == before[1] and after[0] != before[0] and after[2] != before[2]
    record = stored_run(page, second["run"])
    assert record["prompt"] == as_stored(f"One [MASK] two {before[1]} three [sMASK] four")
    assert as_stored(filled_text(page)) == record["output"]
    assert [blank["text"] for blank in record["blanks"]] == [as_stored(after[0]), as_stored(after[2])]
    # One text is one conversation.
    assert record["conversation"] == first["conversation"]
    assert len(stored_conversations(page)) == 1 and second["runs"] == [first["run"], second["run"]]
    # The card says it, too, and unlocks; with all locked there is nothing to fill.
    page.press("#glm-fill-1", "Enter")
    expect(page.locator("#glm-card-lock")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#glm-card-refill")).to_be_disabled()
    page.press("#glm-card-lock", "Enter")
    expect(page.locator("#glm-card-lock")).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#glm-card-lock")).to_be_focused()
    page.keyboard.press("Escape")
    for index in range(3):
        page.press(f"#glm-fill-{index}", "l")
    expect(page.locator("#glm-blanks-again")).to_be_disabled()


def test_one_blank_is_filled_again_and_all_of_it_can_be_undone(page: Page) -> None:
    fill(page, "One [MASK] two [MASK] four")
    states = [filled_text(page)]
    run = filled(page)["run"]
    page.press("#glm-fill-0", "r")
    wait_for_another_run(page, run)
    states.append(filled_text(page))
    assert states[0] != states[1] and states[1].endswith(states[0].split(" two ", 1)[1])
    expect(page.locator("#glm-fill-0")).to_be_focused()  # as before
    page.keyboard.press("Enter")
    page.fill("#glm-own", "my own words")
    page.keyboard.press("Enter")
    expect(page.locator("#glm-card")).to_have_count(0)
    states.append(filled_text(page))
    assert states[2].startswith("One my own words two ")
    page.press("#glm-fill-0", "l")
    # Back step by step, while the focus stays in the result, and forward again.
    expect(page.locator("#glm-fill-0.glm-locked")).to_be_visible()
    page.keyboard.press("Control+z")
    expect(page.locator("#glm-fill-0.glm-locked")).to_have_count(0)
    for state in (states[1], states[0]):
        page.keyboard.press("Control+z")
        assert filled_text(page) == state
    assert filled(page)["run"] == run
    expect(page.locator("#glm-blanks-undo")).to_be_disabled()
    page.keyboard.press("Control+Shift+z")
    assert filled_text(page) == states[1]
    # It is all there after a reload.
    page.reload()
    expect(page.locator("#glm-blanks-filled")).to_have_text(states[1])
    page.click("#glm-blanks-redo")
    assert filled_text(page) == states[2]
    page.keyboard.press("Enter")
    expect(page.locator("#glm-blanks-redo")).to_be_disabled()
    expect(page.locator("#glm-fill-0.glm-locked")).to_be_visible()
    page.click("#glm-blanks-undo")
    page.click("#glm-blanks-undo")
    assert filled_text(page) == states[1]
    # The text in the editor has the browser's own undo.
    page.focus(INPUT)
    page.keyboard.type("x")
    page.keyboard.press("Control+z")
    assert filled_text(page) == states[1] and page.input_value(INPUT) == "One [MASK] two [MASK] four"
    # A new change forgets what was undone.
    page.press("#glm-fill-1", "l")
    expect(page.locator("#glm-blanks-redo")).to_be_disabled()


def test_the_memory_of_undo_has_bounds(page: Page) -> None:
    kept = page.evaluate(
        """async () => {
            const { History } = await import(new URL('static/canvas_history.js', document.baseURI));
            const history = new History();
            for (let step = 0; step < 100; step += 1) history.note({status: 'done', step});
            const many = history.past.length, newest = JSON.parse(history.past.at(-1)).step;
            history.note({status: 'done', text: 'x'.repeat(350000)});
            history.note({status: 'done', text: 'y'.repeat(200000)});
            const large = history.past.length;
            history.reset();
            return [many, newest, large, history.canUndo];
        }"""
    )
    assert kept == [40, 99, 1, False]


def test_a_reload_in_the_middle_of_a_refill_keeps_the_locked_words(page: Page) -> None:
    fill(page, "Once [MASK] upon [MASK] a time")
    before, run = words(page), filled(page)["run"]
    page.press("#glm-fill-1", "l")
    set_number(page, "max_new_tokens", 800)
    page.click("#glm-blanks-again")
    page.wait_for_function("(document.querySelector('#glm-fill-0')?.textContent.length ?? 0) > 50")
    page.reload()
    expect(page.locator("#glm-blanks-result")).to_have_attribute("data-status", re.compile("running|done"))
    wait_for_another_run(page, run)
    record = stored_run(page, filled(page)["run"])
    assert record["status"] == "done" and as_stored(filled_text(page)) == record["output"]
    assert words(page)[1] == before[1] and len(words(page)[0]) > 50
    assert len(stored_conversations(page)) == 1
    page.click("#glm-blanks-undo")
    assert words(page) == before


def test_a_refill_that_is_stopped_leaves_what_it_did_not_reach(page: Page) -> None:
    fill(page, "Once [MASK] upon [MASK] a time")
    before = words(page)
    set_number(page, "max_new_tokens", LONG)
    page.click("#glm-blanks-again")
    page.wait_for_function("(document.querySelector('#glm-fill-0')?.textContent.length ?? 0) > 50")
    page.click("#glm-blanks-stop")
    page.wait_for_selector("#glm-blanks-result[data-status=cancelled]")
    assert words(page)[1] == before[1] and len(words(page)[0]) > 50
    page.click("#glm-blanks-undo")
    assert words(page) == before


def test_own_words_are_taken_unless_they_are_a_blank(page: Page) -> None:
    fill(page, "A [MASK] B")
    page.press("#glm-fill-0", "Enter")
    expect(page.locator("#glm-own-use")).to_be_disabled()
    page.fill("#glm-own", "a [MASK]")
    page.press("#glm-own", "Enter")
    expect(page.locator("#glm-card")).to_contain_text(TEXTS["en"]["blanks.own.mask"])
    page.fill("#glm-own", "<b>mine</b>")
    page.click("#glm-own-use")
    assert filled_text(page) == "A <b>mine</b> B"
    page.press("#glm-fill-0", "Enter")
    mine = page.locator(".glm-choice:has(.glm-mine)")
    expect(mine.locator(".glm-choice-text")).to_have_text("<b>mine</b>")
    expect(mine).to_contain_text(TEXTS["en"]["blanks.unscored"])
    page.keyboard.press("Escape")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#glm-blanks-copy")
    expect(page.locator("#glm-notice")).to_have_text(TEXTS["en"]["copied"])
    assert page.evaluate("navigator.clipboard.readText()") == "A <b>mine</b> B"


def test_a_stored_text_is_opened_with_its_choices_and_its_past(page: Page) -> None:
    fill(page, "One [MASK] two [MASK] four")
    page.press("#glm-fill-1", "l")
    first = filled_text(page)
    run = filled(page)["run"]
    page.click("#glm-blanks-again")
    wait_for_another_run(page, run)
    second, state = filled_text(page), filled(page)
    page.click("#glm-blanks-clear")
    expect(page.locator("#glm-blanks-result")).to_be_hidden()
    page.click("#glm-history-open")
    page.click(".glm-history-row .glm-history-open")
    expect(page.locator("#glm-blanks-filled")).to_have_text(second)
    assert page.input_value(INPUT) == "One [MASK] two [MASK] four"
    assert [blank["locked"] for blank in filled(page)["blanks"]] == [False, True]
    assert filled(page)["runs"] == state["runs"] and filled(page)["conversation"] == state["conversation"]
    page.press("#glm-fill-0", "Enter")
    expect(page.locator(".glm-choice")).to_have_count(len({one["text"] for one in state["blanks"][0]["alternatives"]}))
    expect(page.locator(".glm-choice-chance").first).to_contain_text("probability")
    page.keyboard.press("Escape")
    page.click("#glm-blanks-undo")
    assert filled_text(page) == first
    # It goes on as the same conversation.
    page.press("#glm-fill-0", "r")
    wait_for_another_run(page, run)
    assert stored_run(page, filled(page)["run"])["conversation"] == state["conversation"]


def test_a_text_with_some_blanks_left_open(page: Page) -> None:
    script = """async ([source, words, open]) => {
        const { aligned, emptyBlanks, refilling } = await import(new URL('static/fills.js', document.baseURI));
        const blanks = emptyBlanks(source);
        blanks.forEach((blank, at) => Object.assign(blank, {text: words[at], begun: true}));
        const { text, map } = refilling({source, blanks}, open);
        return [text, map, aligned(source, text)];
    }"""
    # source, fills, indexes left open; what is sent, whose its blanks are, what the record is read back as
    cases: list[tuple[str, list[str], list[int], str, list[int | None], list[str | None]]] = [
        ("a [MASK] b [MASK].", [" x", " y"], [1], "a x b [MASK].", [1], ["x", None]),
        ("of[MASK], [sMASK]", [" x", " y"], [1], "of x, [sMASK]", [1], [" x", None]),
        ("[MASK][sMASK]", [" x", " y"], [0], "[MASK] y", [0], [None, " y"]),
        ("[MASK] is", [" x"], [], "x is", [], ["x"]),
        ("no blank", [" more"], [0], "no blank[gMASK]", [0], [None]),
        ("a [MASK] b [MASK]", ["[MASK]", "y"], [1], "a [MASK] b [MASK]", [None, 1], [None, None]),
        ("东京是[MASK]的[MASK]。", ["日本", "首都"], [0], "东京是[MASK]的首都。", [0], [None, "首都"]),
    ]
    for source, fills, left_open, sent, index, read in cases:
        assert page.evaluate(script, [source, fills, left_open]) == [sent, index, read], source
    # A text that isn't this one filled.
    other = "async () => (await import(new URL('static/fills.js', document.baseURI))).aligned('a [MASK] b', 'z x b')"
    assert page.evaluate(other) is None


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_on_a_phone_the_card_is_a_sheet_and_everything_fits_a_finger(open_page: OpenPage, locale: str) -> None:
    page = open_page(locale=locale, **PHONE)
    set_number(page, "max_new_tokens", 3)
    page.tap("#glm-tab-blanks-button")
    page.fill(INPUT, "One [MASK] two three")
    page.evaluate("document.querySelector('#glm-blanks-input').setSelectionRange(15, 18)")
    page.tap("#glm-blanks-turn")
    assert page.input_value(INPUT) == "One [MASK] two [MASK]ee"
    page.tap("#glm-blanks-fill")
    page.wait_for_selector(DONE)
    page.tap("#glm-fill-1")
    card = page.locator("#glm-card").bounding_box()
    assert card and card["x"] == 0 and card["width"] == 390 and round(card["y"] + card["height"]) == 844
    assert card["y"] > 844 * 0.2
    small = page.evaluate(
        """(least) => [...document.querySelectorAll('#glm-blanks button, #glm-blanks select, #glm-blanks [role=button], #glm-own')]
            .filter((node) => node.checkVisibility())
            .map((node) => [node.id || node.className, ...[...node.getClientRects()].map((box) => Math.round(box.height))])
            .filter(([, ...heights]) => Math.min(...heights) < least)""",
        FINGER,
    )
    assert small == []
    assert page.evaluate("document.querySelector('#glm-blanks').scrollWidth") <= 390
    page.tap("#glm-card-lock")
    page.tap("#glm-card-close")
    expect(page.locator("#glm-card")).to_have_count(0)
    expect(page.locator("#glm-fill-1.glm-locked")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fills_and_heat_can_be_read_on_every_colour(open_page: OpenPage, scheme: str) -> None:
    page = open_page(color_scheme=scheme)
    fill(page, "[MASK] 1 [MASK] 2 [MASK] 3 [MASK] 4 [MASK] 5 [MASK]", tokens=2)
    page.press("#glm-fill-0", "Enter")
    contrasts = page.evaluate(
        """() => {
            const light = (colour) => {
                const [red, green, blue] = colour.match(/[\\d.]+/g).map(Number).map((value) => value / 255)
                    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
                return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
            };
            const contrast = (node) => {
                const { color, backgroundColor } = getComputedStyle(node);
                const [dark, bright] = [light(color), light(backgroundColor)].sort((one, other) => one - other);
                return [node.className, backgroundColor, (bright + 0.05) / (dark + 0.05)];
            };
            const heat = document.querySelector('.glm-token');
            const warm = [0, 1, 2, 3, 4].map((step) => {
                heat.className = `glm-token glm-heat-${step}`;
                return contrast(heat);
            });
            return [...document.querySelectorAll('.glm-fill')].map(contrast).concat(warm);
        }"""
    )
    assert len(contrasts) == 11 and len({background for _, background, _ in contrasts[:6]}) == 6
    assert len({background for _, background, _ in contrasts[6:]}) == 5
    assert all(contrast >= 4.5 for *_, contrast in contrasts), contrasts
