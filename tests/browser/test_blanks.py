"""The blanks pane in a real browser: blanks fill in place, choices can be taken, a reload comes back."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.browser.actions import (
    as_stored,
    filled_text,
    remembered,
    set_number,
    set_seed,
    stored_conversations,
    stored_run,
)


def test_two_blanks_are_filled_in_place(page: Page) -> None:
    text = "[MASK] is the capital of France and Rome is the capital of [sMASK]."
    page.click("#glm-tab-blanks-button")
    set_number(page, "max_new_tokens", 40)
    page.fill("#glm-blanks-input", text)
    expect(page.locator(".glm-mirror mark")).to_have_text(["[MASK]", "[sMASK]"])
    page.evaluate(
        """() => {
            window.seen = [];
            const note = () => window.seen.push(document.querySelector('#glm-blanks-filled')?.textContent);
            new MutationObserver(note).observe(document.querySelector('#glm-blanks-result'), {childList: true, subtree: true});
        }"""
    )
    page.click("#glm-blanks-fill")
    page.wait_for_selector("#glm-blanks-result[data-status=done]")
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


def test_a_choice_can_be_taken_with_the_keyboard(page: Page) -> None:
    page.click("#glm-tab-blanks-button")
    set_number(page, "max_new_tokens", 3)
    set_seed(page, "5")
    page.fill("#glm-blanks-input", "A [MASK] B")
    page.press("#glm-blanks-input", "Control+Enter")
    page.wait_for_selector("#glm-blanks-result[data-status=done]")
    page.press("#glm-fill-0", "Enter")
    card = page.locator("#glm-card")
    expect(card).to_be_visible()
    expect(card.locator(".glm-choice")).to_have_count(3)
    expect(card.locator(".glm-choice-chance").first).to_contain_text("probability")
    expect(card.locator(".glm-choice[aria-pressed=true]")).to_be_focused()
    page.keyboard.press("Escape")
    expect(card).to_have_count(0)
    expect(page.locator("#glm-fill-0")).to_be_focused()
    page.keyboard.press("Enter")
    other = card.locator(".glm-choice[aria-pressed=false]").first
    words = other.locator(".glm-choice-text").inner_text()
    other.press("Enter")
    expect(card).to_have_count(0)
    assert page.inner_text("#glm-fill-0").strip() == words
    assert filled_text(page).startswith("A ")


def test_masks_are_inserted_at_the_cursor_and_can_be_undone(page: Page) -> None:
    page.click("#glm-tab-blanks-button")
    page.fill("#glm-blanks-input", "ab")
    page.press("#glm-blanks-input", "ArrowLeft")
    page.click("#glm-insert-sMASK")
    assert page.input_value("#glm-blanks-input") == "a[sMASK]b"
    page.keyboard.press("Control+z")
    assert page.input_value("#glm-blanks-input") == "ab"
    page.click("#glm-blanks-clear")
    assert page.input_value("#glm-blanks-input") == ""
    expect(page.locator("#glm-blanks-fill")).to_be_disabled()


def test_a_reload_while_blanks_are_filled_comes_back_to_them(page: Page) -> None:
    page.click("#glm-tab-blanks-button")
    set_number(page, "max_new_tokens", 500)
    page.fill("#glm-blanks-input", "Once [MASK] upon [MASK] a time")
    page.click("#glm-blanks-fill")
    page.wait_for_selector("#glm-fill-0")
    page.reload()
    # The tab comes back too.
    expect(page.locator("#glm-blanks-input")).to_be_visible()
    page.wait_for_selector("#glm-blanks-result[data-status=done]", timeout=60_000)
    record = stored_run(page, remembered(page, "blanks")["filled"]["run"])
    assert as_stored(filled_text(page)) == record["output"]
    assert len(stored_conversations(page)) == 1
