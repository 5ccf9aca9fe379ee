"""The chat in depth: branches, comments, the meter, the prompt format, the seed; all in a real browser."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page, expect

from app.errors import TABLE
from app.ui.texts import TEXTS
from tests.browser.actions import (
    LONG,
    as_stored,
    ask,
    remembered,
    set_number,
    stored_run,
    wait_for_status,
)
from tests.browser.conftest import OpenPage, Watch

TEXT = TEXTS["en"]


def answers(page: Page) -> list[str]:
    return page.locator(".glm-assistant .glm-body").all_inner_texts()


def questions(page: Page) -> list[str]:
    return page.locator(".glm-user .glm-body").all_inner_texts()


def runs(page: Page) -> list[dict[str, Any]]:
    """The answers that the page has, on all branches, in order of time."""
    return [message for message in remembered(page, "chat")["messages"] if message["role"] == "assistant"]


def done(page: Page, count: int) -> None:
    page.wait_for_function(
        f"JSON.parse(sessionStorage['glm.chat']).messages.filter((one) => one.status === 'done').length === {count}"
    )


def test_a_new_answer_stands_beside_the_old_one(page: Page) -> None:
    set_number(page, "max_new_tokens", 6)
    ask(page, "One")
    done(page, 1)
    first = answers(page)
    page.click("#glm-chat-again")
    done(page, 2)
    expect(page.locator(".glm-assistant")).to_have_count(1)
    expect(page.locator(".glm-turn-count")).to_have_text("2 / 2")
    second = answers(page)
    page.locator(".glm-turn").first.press("Enter")
    expect(page.locator(".glm-turn-count")).to_have_text("1 / 2")
    assert answers(page) == first
    # The keyboard stays where it was: one key turns back again.
    expect(page.locator(".glm-turn").last).to_be_focused()
    page.keyboard.press("Enter")
    assert answers(page) == second
    # What is asked now goes to the branch that is shown.
    page.locator(".glm-turn").first.click()
    ask(page, "Two")
    done(page, 3)
    prompt = stored_run(page, runs(page)[-1]["run"])["prompt"]
    assert [as_stored(part["content"]) for part in prompt] == ["One", as_stored(runs(page)[0]["content"]), "Two"]
    page.reload()
    expect(page.locator(".glm-user .glm-body")).to_have_text(["One", "Two"])
    expect(page.locator(".glm-turn-count")).to_have_text("1 / 2")


def test_an_edited_question_is_a_branch_of_its_own(page: Page) -> None:
    set_number(page, "max_new_tokens", 5)
    for number, question in enumerate(("One", "Two"), 1):
        ask(page, question)
        done(page, number)
    before = answers(page)
    page.locator(".glm-edit").first.click()
    field = page.locator("#glm-chat-edit")
    expect(field).to_be_focused()
    expect(field).to_have_value("One")
    field.press("Escape")
    expect(page.locator(".glm-edit").first).to_be_focused()
    assert questions(page) == ["One", "Two"]
    page.locator(".glm-edit").first.click()
    field.fill("Eins")
    field.press("Enter")
    done(page, 3)
    assert questions(page) == ["Eins"]
    assert stored_run(page, runs(page)[-1]["run"])["prompt"] == [{"role": "user", "content": "Eins"}]
    # Nothing is overwritten: the other branch is whole, its later messages too.
    page.locator(".glm-turn").first.click()
    assert questions(page) == ["One", "Two"] and answers(page) == before


def test_branches_wait_while_an_answer_is_made(page: Page) -> None:
    set_number(page, "max_new_tokens", 5)
    ask(page, "One")
    done(page, 1)
    set_number(page, "max_new_tokens", LONG)
    page.click("#glm-chat-again")
    page.wait_for_function("(document.querySelector('.glm-assistant .glm-body')?.textContent.length ?? 0) > 50")
    expect(page.locator(".glm-edit")).to_be_disabled()
    # A reload in the middle takes up the same answer, on its branch.
    page.reload()
    page.wait_for_function("(document.querySelector('.glm-assistant .glm-body')?.textContent.length ?? 0) > 50")
    assert len(runs(page)) == 2
    page.click("#glm-chat-stop")
    wait_for_status(page, "cancelled")
    expect(page.locator(".glm-edit")).to_be_enabled()
    expect(page.locator(".glm-turn-count")).to_have_text("2 / 2")


def test_a_written_comment_is_stored_and_comes_back(page: Page) -> None:
    set_number(page, "max_new_tokens", 5)
    ask(page, "One")
    run = wait_for_status(page, "done")["run"]
    page.click(".glm-comment")
    field = page.locator(".glm-comment-text")
    expect(field).to_be_focused()
    page.keyboard.type("Too short, 太短了")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#glm-notice")).to_have_text(TEXT["comment.thanks"])
    assert stored_run(page, run)["comment"] == "Too short, 太短了"
    expect(field).to_have_count(0)
    expect(page.locator(".glm-comment")).to_have_attribute("aria-pressed", "true")
    page.reload()
    page.click(".glm-comment")
    expect(field).to_have_value("Too short, 太短了")
    field.fill("")
    page.click(".glm-comment-send")
    expect(page.locator(".glm-comment")).to_have_attribute("aria-pressed", "false")
    assert stored_run(page, run)["comment"] == ""


def test_the_meter_counts_before_sending_and_tells_the_rule(page: Page, watch: Watch) -> None:
    expect(page.locator("#glm-chat-meter")).to_be_hidden()
    set_number(page, "max_new_tokens", 20)
    ask(page, "One")
    wait_for_status(page, "done")
    page.fill("#glm-chat-input", "A question of some words")
    words = page.locator(".glm-meter-words")
    expect(words).to_contain_text("of 4096 tokens")
    # The model was measured by the first answer, so its time is known.
    expect(words).to_contain_text("about")
    shown = int(words.inner_text().split()[0])
    expect(page.locator(".glm-meter-bar")).to_have_attribute("aria-valuenow", str(shown))
    # What would be left out is said before it is sent, with the rule.
    set_number(page, "max_new_tokens", 5)
    ask(page, "word " * 700)
    page.wait_for_selector(".glm-assistant[data-status=done] >> nth=1", timeout=60_000)
    page.fill("#glm-chat-input", "word " * 700)
    rule = page.locator(".glm-meter-rule")
    expect(rule).to_contain_text(TEXT["meter.dropped"].replace("{count}", "4"))
    expect(rule).to_contain_text(TEXT["chat.rule"].replace("{positions}", "4096"))
    # More than the model can take at all.
    watch.expected += ["422"]
    page.fill("#glm-chat-input", "word " * 9000)
    expect(words).to_have_text(TABLE["prompt_too_long"].en)


def test_the_prompt_format_is_the_models_own(page: Page) -> None:
    format_ = page.request.get(f"{page.url}api/info").json()["chat_format"]
    page.click("#glm-chat-format summary")
    shown = page.inner_text(".glm-format-text")
    assert shown.endswith(format_["answer"] + "[gMASK]")
    assert format_["user"].replace("{content}", TEXT["chat.format.question"]).strip() in shown
    expect(page.locator("#glm-chat-format .glm-detail")).to_contain_text(format_["name"])


def test_a_seed_can_be_used_again_and_gives_the_same_answer(page: Page) -> None:
    set_number(page, "max_new_tokens", 12)
    ask(page, "One")
    first = wait_for_status(page, "done")
    page.click(".glm-seed")
    seed = page.locator("#glm-seed textarea, #glm-seed input")
    expect(seed).to_have_value(str(first["meta"]["seed"]))
    page.wait_for_function("JSON.parse(localStorage['glm.settings']).seed !== ''")
    page.click("#glm-chat-again")
    done(page, 2)
    again = runs(page)[-1]
    assert again["content"] == first["content"] and again["meta"]["seed"] == first["meta"]["seed"]


def test_what_has_no_effect_is_switched_off_with_a_reason(page: Page) -> None:
    top_k = page.locator("#glm-top_k input[type=number]")
    expect(top_k).to_be_enabled()
    set_number(page, "temperature", 0)
    expect(top_k).to_be_disabled()
    expect(page.locator("#glm-top_k")).to_contain_text(TEXT["off.greedy"])
    set_number(page, "temperature", 0.7)
    expect(top_k).to_be_enabled()
    expect(page.locator("#glm-top_k")).to_contain_text(TEXT["top_k.help"])
    page.click("#glm-settings-more button")
    expect(page.locator("#glm-length_penalty input[type=number]")).to_be_disabled()
    set_number(page, "num_beams", 3)
    for name in ("temperature", "top_k", "top_p", "repetition_penalty", "alternatives"):
        expect(page.locator(f"#glm-{name} input[type=number]")).to_be_disabled()
        expect(page.locator(f"#glm-{name}")).to_contain_text(TEXT["off.beams"])
    expect(page.locator("#glm-length_penalty input[type=number]")).to_be_enabled()
    set_number(page, "length_penalty", 0.5)
    set_number(page, "max_new_tokens", 6)
    ask(page, "One")
    used = stored_run(page, wait_for_status(page, "done")["run"])["parameters"]
    assert used == {"max_new_tokens": 6, "num_beams": 3, "length_penalty": 0.5}
    # The reasons follow the language, and survive a reload.
    page.click("#glm-language-zh")
    expect(page.locator("#glm-top_k")).to_contain_text(TEXTS["zh"]["off.beams"])
    page.reload()
    expect(page.locator("#glm-top_k input[type=number]")).to_be_disabled()


def test_an_error_says_what_to_do_and_trying_again_makes_one_run(page: Page) -> None:
    page.fill("#glm-seed textarea, #glm-seed input", "no number")
    page.keyboard.press("Tab")
    page.wait_for_function("JSON.parse(localStorage['glm.settings']).seed === 'no number'")
    ask(page, "One")
    box = page.locator(".glm-error")
    expect(box).to_contain_text("seed")
    expect(box.locator(".glm-step")).to_have_text("Change what the message below names, then send it again.")
    page.fill("#glm-seed textarea, #glm-seed input", "")
    page.keyboard.press("Tab")
    page.wait_for_function("JSON.parse(localStorage['glm.settings']).seed === ''")
    set_number(page, "max_new_tokens", 5)
    page.click(".glm-retry")
    wait_for_status(page, "done")
    conversations = page.request.get(f"{page.url}api/conversations").json()["conversations"]
    assert len(conversations) == 1
    stored = page.request.get(f"{page.url}api/conversations/{conversations[0]['id']}").json()
    assert len(stored["runs"]) == 1


def test_the_page_loads_nothing_but_its_own(open_page: OpenPage) -> None:
    page = open_page()
    policy = page.request.get(page.url).headers["content-security-policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["img-src"] == rules["connect-src"] == "'self'"
    assert rules["object-src"] == "'none'"
    assert "http" not in policy and "*" not in policy
    # What Gradio writes for link previews names other hosts; the document has our own from its first byte.
    document = page.request.get(page.url, headers={"Accept": "text/html"}).text()
    head = document[: document.index("</head>")]
    assert "og:image" not in head and 'content="GLM Playground"' in head
    assert 'id="glm-texts"' in head and "static/style.css" in head
