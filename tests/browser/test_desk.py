"""The review desk in a browser: by keyboard, by re-masking, two reviewers at once, on a phone, without barriers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from app.admin.page import TABS
from app.admin.texts import merged
from storage import Record
from tests.browser.conftest import Watch
from tests.browser.desk import Desk, OpenDesk
from tests.browser.test_accessibility import DESKTOP, PHONE, barriers
from tests.reviewed import ask, finish

pytest_plugins = ("tests.browser.desk",)

EN, ZH = merged()["en"], merged()["zh"]
LYON = "The capital of France is Lyon, a big city."


def write(desk: Desk, **outputs: str) -> None:
    """Finished chats: id -> output."""

    async def work(record: Record) -> None:
        for id, output in outputs.items():
            await finish(record, id, ask("What is the capital of France?"), output)

    desk.record(work)


def stored(page: Page, run: str) -> dict[str, Any]:
    found = page.request.get(f"{page.url.partition('admin')[0]}api/admin/runs/{run}")
    assert found.ok
    return found.json()


def saved(page: Page) -> None:
    expect(page.locator("#glm-saved")).to_have_attribute("data-state", "saved")


def shows(page: Page, run: str) -> None:
    expect(page.locator(".glm-run")).to_have_attribute("data-run", run)


def test_a_review_by_keyboard_alone(desk: Desk, open_desk: OpenDesk) -> None:
    write(desk, key1="First answer.", key2="Second answer.", key3="Third answer.")
    page = open_desk("#review?ids=key1,key2,key3&order=oldest")
    shows(page, "key1")
    page.keyboard.press("4")
    page.keyboard.press("f")
    page.keyboard.press("t")
    page.keyboard.type("wrong fact")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    page.keyboard.press("n")
    page.keyboard.type("See the atlas.")
    page.keyboard.press("Escape")
    saved(page)
    page.keyboard.press(" ")
    shows(page, "key2")
    page.keyboard.press("j")
    shows(page, "key3")
    page.keyboard.press("j")
    expect(page.locator("#glm-notice")).to_have_text(EN["review.end"])
    page.keyboard.press("k")
    page.keyboard.press("1")
    page.keyboard.press("0")
    page.keyboard.press("k")
    shows(page, "key1")
    review = stored(page, "key1")["review"]
    assert (review["rating"], review["flagged"], review["status"]) == (4, True, "done")
    assert (review["tags"], review["note"]) == (["wrong fact"], "See the atlas.")
    assert review["reviewer"]["name"] == "admin"
    assert stored(page, "key2")["review"]["rating"] is None
    row = page.locator('[data-run="key1"].glm-row')
    expect(row).to_contain_text("★★★★")
    expect(row).to_contain_text(EN["review.flagged"])
    page.keyboard.press("?")
    expect(page.locator("#glm-keys-dialog dt")).to_have_count(17)
    page.keyboard.press("j")
    shows(page, "key1")
    page.keyboard.press("Escape")
    expect(page.locator("#glm-keys-dialog")).to_have_count(0)
    page.keyboard.press("/")
    page.keyboard.type("Third")
    page.keyboard.press("Enter")
    expect(page.locator(".glm-row")).to_have_count(1)
    expect(page.locator("[data-filter=words]")).to_be_visible()


def test_keys_can_be_switched_off(desk: Desk, open_desk: OpenDesk) -> None:
    write(desk, off1="One.", off2="Two.")
    page = open_desk("#review?ids=off1,off2&order=oldest")
    shows(page, "off1")
    page.click("#glm-keys-help")
    page.uncheck("#glm-keys-dialog input")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.click("#glm-next")
    shows(page, "off2")


def test_remasking_by_keyboard_from_selection_to_diff(desk: Desk, open_desk: OpenDesk) -> None:
    write(desk, mask1=LYON)
    page = open_desk("#review?ids=mask1")
    page.keyboard.press("e")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert page.evaluate("getSelection().toString()") == "Lyon"
    page.keyboard.press("Enter")
    fills = page.locator(".glm-mask-fill")
    expect(fills.first).to_be_focused()
    expect(page.locator("#glm-mask del")).to_have_text("Lyon")
    words = fills.first.locator(".glm-mask-words").text_content()
    page.keyboard.press("1")
    expect(page.locator("#glm-mask")).to_have_count(0)
    saved(page)
    found = stored(page, "mask1")
    (span,) = found["spans"]
    assert (span["rejected"], span["source"], span["start"], span["end"]) == ("Lyon", "model", 25, 29)
    assert span["chosen"].strip() == ("" if words == EN["review.nothing"] else words)
    assert "[MASK]" in span["text"] and len(span["alternatives"]) >= 1 and span["logprob"] is not None
    assert found["review"]["corrected"] == LYON.replace("Lyon", span["chosen"])
    expect(page.locator("#glm-diff del")).to_contain_text("Lyon")
    page.reload()
    expect(page.locator("#glm-diff del")).to_contain_text("Lyon")
    page.click("#glm-corrected-undo")
    expect(page.locator("#glm-diff")).to_have_count(0)
    saved(page)
    assert stored(page, "mask1")["spans"] == []


def test_several_spans_typed_with_the_mouse_taken_back_and_rewritten(
    desk: Desk, open_desk: OpenDesk, watch: Watch
) -> None:
    watch.expected += ["status 422", "Failed to load resource"]
    write(desk, mask2=f"我说：{LYON} 😀")
    page = open_desk("#review?ids=mask2")

    def correct(word: str, chosen: str) -> None:
        box = page.evaluate(
            """(word) => { const range = document.createRange();
                for (const piece of document.querySelectorAll('#glm-output [data-at]')) {
                    const at = piece.textContent.indexOf(word);
                    if (at < 0) continue;
                    range.setStart(piece.firstChild, at);
                    range.setEnd(piece.firstChild, at + word.length);
                    const {left, right, top, bottom} = range.getBoundingClientRect();
                    return [left, right, (top + bottom) / 2];
                } }""",
            word,
        )
        page.mouse.move(box[0] + 0.5, box[2])
        page.mouse.down()
        page.mouse.move(box[1] - 0.5, box[2], steps=4)
        page.mouse.up()
        page.click("#glm-correct")
        page.fill("#glm-mask-own", chosen)
        page.press("#glm-mask-own", "Enter")
        expect(page.locator("#glm-mask")).to_have_count(0)

    correct("Lyon", "Paris")
    correct("big", "very large")
    saved(page)
    found = stored(page, "mask2")
    assert found["review"]["corrected"] == f"我说：{LYON} 😀".replace("Lyon", "Paris").replace("big", "very large")
    assert [(span["rejected"], span["chosen"], span["source"]) for span in found["spans"]] == [
        ("Lyon", "Paris", "typed"),
        ("big", "very large", "typed"),
    ]
    expect(page.locator("#glm-diff ins")).to_have_text(["Paris", "very large"])
    # One span is changed, the other taken back.
    page.click(".glm-chosen >> nth=0")
    expect(page.locator("#glm-mask-own")).to_have_value("Paris")
    page.fill("#glm-mask-own", "Paris itself")
    page.click("#glm-mask-use")
    page.click("[data-span-row] >> nth=1 >> button")
    expect(page.locator("#glm-diff ins")).to_have_text(["Paris itself"])
    assert len(stored(page, "mask2")["spans"]) == 1
    # What is typed as a whole answer survives a reload and takes the place of the spans.
    page.click("#glm-rewrite")
    page.fill("#glm-rewrite-text", "我说：It is Paris.")
    page.reload()
    page.click("#glm-rewrite")
    expect(page.locator("#glm-rewrite-text")).to_have_value("我说：It is Paris.")
    page.press("#glm-rewrite-text", "Control+Enter")
    expect(page.locator("[aria-label='Changes'] .glm-detail")).to_have_text(EN["review.rewritten"])
    saved(page)
    found = stored(page, "mask2")
    assert found["spans"] == [] and found["review"]["corrected"] == "我说：It is Paris."
    # A span after that replaces it only when the reviewer says so.
    page.evaluate("document.querySelector('#glm-edit').click()")
    page.keyboard.press("Enter")
    page.fill("#glm-mask-own", "他说")
    page.click("#glm-mask-use")
    page.click("#glm-mask-replace")
    expect(page.locator("#glm-mask")).to_have_count(0)
    assert [span["chosen"] for span in stored(page, "mask2")["spans"]] == ["他说"]


def test_two_reviewers_lose_nothing(desk: Desk, open_desk: OpenDesk, watch: Watch) -> None:
    watch.expected += ["status 409", "Failed to load resource"]
    write(desk, both=LYON)
    rita = open_desk("#review?ids=both", member="rita")
    ben = open_desk("#review?ids=both", member="ben")
    for page in (rita, ben):
        shows(page, "both")
    rita.keyboard.press("5")
    rita.keyboard.press("n")
    rita.keyboard.type("Fine.")
    rita.keyboard.press("Escape")
    saved(rita)
    ben.keyboard.press("2")
    conflict = ben.locator("#glm-conflict")
    expect(conflict.locator("h2")).to_have_text(EN["review.conflict"].format(name="rita"))
    expect(conflict.locator("tbody td")).to_have_text([EN["review.field.rating"], "5 of 5 stars", "2 of 5 stars"])
    expect(ben.locator("#glm-saved")).to_have_attribute("data-state", "conflict")
    assert stored(ben, "both")["review"]["rating"] == 5, "nothing is overwritten before somebody chooses"
    ben.click("#glm-keep-mine")
    expect(conflict).to_have_count(0)
    saved(ben)
    found = stored(ben, "both")["review"]
    assert (found["rating"], found["note"], found["reviewer"]["name"]) == (2, "Fine.", "ben")
    # Rita changes something else, from what she saw before: both are kept.
    rita.keyboard.press("f")
    expect(rita.locator(".glm-run-said")).to_contain_text(EN["review.merged"].format(name="ben"))
    saved(rita)
    found = stored(rita, "both")["review"]
    assert (found["rating"], found["flagged"]) == (2, True)
    # Ben corrects a span while Rita rewrites: she sees his and takes it.
    ben.keyboard.press("e")
    ben.keyboard.press("Enter")
    ben.fill("#glm-mask-own", "One")
    ben.click("#glm-mask-use")
    expect(ben.locator("#glm-mask")).to_have_count(0)
    saved(ben)
    rita.keyboard.press("r")
    rita.fill("#glm-rewrite-text", "Paris.")
    rita.click("#glm-rewrite-save")
    expect(rita.locator("#glm-conflict")).to_contain_text("One")
    rita.click("#glm-keep-theirs")
    expect(rita.locator("#glm-diff ins")).to_have_text("One")
    saved(rita)
    assert [span["chosen"] for span in stored(rita, "both")["spans"]] == ["One"]


def test_a_session_that_ends_loses_nothing(desk: Desk, open_desk: OpenDesk, watch: Watch) -> None:
    watch.expected += ["status 401", "Failed to load resource"]
    write(desk, ended="Some answer.")
    page = open_desk("#review?ids=ended")
    shows(page, "ended")

    async def end(record: Record) -> None:
        row = await record.find_staff("admin")
        await record.end_sessions(row.id)

    desk.record(end)
    page.keyboard.press("3")
    expect(page.locator("#glm-dialog")).to_contain_text(EN["shell.login.again"])
    page.fill("#glm-login-password", desk.password)
    page.press("#glm-login-password", "Enter")
    expect(page.locator("#glm-dialog")).to_have_count(0)
    saved(page)
    assert stored(page, "ended")["review"]["rating"] == 3


def test_filters_are_chips_and_stay_in_the_address(desk: Desk, open_desk: OpenDesk) -> None:
    write(desk, chip1="Zebras are striped.", chip2="Zebras are not horses.")
    page = open_desk("#review?ids=chip1,chip2&order=oldest")
    shows(page, "chip1")
    page.keyboard.press("5")
    saved(page)
    page.click("#glm-open-filters")
    page.select_option("#glm-filter-rating_from", "4")
    page.check("#glm-filters [name=modes][value=chat]")
    page.click("#glm-filters [type=submit]")
    expect(page.locator(".glm-row")).to_have_count(1)
    expect(page.locator("#glm-count")).to_have_text("1 runs")
    assert {"rating_from=4", "modes=chat", "order=oldest"} <= set(page.url.partition("?")[2].split("&"))
    page.reload()
    expect(page.locator(".glm-chip[data-filter=rating_from] > span")).to_have_text("Stars from: 4")
    expect(page.locator(".glm-row")).to_have_count(1)
    page.click("[data-filter=rating_from] button")
    expect(page.locator(".glm-row")).to_have_count(2)
    assert "rating_from" not in page.url
    page.click("#glm-use-selection")
    page.wait_for_selector("#glm-tab-data[data-shown]")
    assert "modes=chat" in page.url and "ids=chip1" in page.url
    page.go_back()
    expect(page.locator(".glm-row")).to_have_count(2)


def test_pages_follow_the_keyboard(desk: Desk, open_desk: OpenDesk) -> None:
    async def work(record: Record) -> None:
        for number in range(52):
            await finish(record, f"page{number:02}", "A long list of runs", f"Answer {number}.", visitor="pager")

    desk.record(work)
    page = open_desk("#review?visitor=pager&order=oldest")
    expect(page.locator("#glm-count")).to_have_text("52 runs")
    page.click('.glm-row[data-run="page49"]')
    shows(page, "page49")
    page.keyboard.press("j")
    shows(page, "page50")
    expect(page.locator(".glm-row")).to_have_count(2)
    page.keyboard.press("k")
    shows(page, "page49")
    expect(page.locator(".glm-row")).to_have_count(50)
    page.keyboard.press("j")
    shows(page, "page50")
    page.reload()
    expect(page.locator(".glm-row")).to_have_count(2)
    shows(page, "page50")


def test_a_run_shows_all_that_is_known_of_it(desk: Desk, open_desk: OpenDesk) -> None:
    """A run of the model itself: its tokens are coloured, and together they are the answer."""
    page = open_desk("#review?order=newest")
    run = page.evaluate(
        """() => new Promise((resolve) => {
            const socket = new WebSocket(new URL('ws', document.baseURI).href.replace(/^http/, 'ws'));
            socket.onopen = () => socket.send(JSON.stringify({type: 'fill', text: 'One [MASK] and two [MASK].',
                parameters: {alternatives: 3, max_new_tokens: 6, temperature: 1}}));
            socket.onmessage = ({data}) => { const event = JSON.parse(data);
                if (event.type === 'done') { socket.close(); resolve(event); } };
        })"""
    )
    page.goto(f"{page.url.partition('#')[0]}#review?run={run['run']}")
    shows(page, run["run"])
    found = stored(page, run["run"])
    assert page.evaluate("document.querySelector('#glm-output').textContent") == found["run"]["output"]
    expect(page.locator(".glm-prompt .glm-blank")).to_have_text(["[MASK]", "[MASK]"])
    assert page.locator("#glm-output [title]").count() > 1, "tokens say how sure the model was"
    page.keyboard.press("c")
    expect(page.locator("#glm-output [title]")).to_have_count(0)
    page.keyboard.press("c")
    page.click(f"summary:has-text('{EN['review.facts']}')")
    expect(page.locator(".glm-facts")).to_contain_text(run["run"])
    expect(page.locator(".glm-facts")).to_contain_text(str(run["seed"]))
    page.click(f"summary:has-text('{EN['review.conversation']}')")
    expect(page.locator(".glm-run [aria-current] .glm-row-prompt")).to_have_text("One [MASK] and two [MASK].")


def test_the_desk_on_a_phone(desk: Desk, open_desk: OpenDesk) -> None:
    write(desk, phone=f"{LYON} {'x' * 300}")
    page = open_desk("#review?ids=phone", viewport=PHONE, is_mobile=True, has_touch=True)
    assert page.locator(".glm-run").count() == 0, "the list comes first"
    page.tap(".glm-row")
    shows(page, "phone")
    expect(page.locator("#glm-queue")).to_be_hidden()
    page.evaluate("document.querySelector('#glm-edit').click()")
    page.keyboard.press("ArrowRight")
    button = page.locator("#glm-correct")
    box = button.bounding_box()
    assert box["y"] > PHONE["height"] * 0.8 and box["height"] >= 44 and box["width"] > 300, "a bar below, for thumbs"
    page.tap("#glm-correct")
    page.tap(".glm-mask-fill >> nth=0")
    saved(page)
    assert [span["rejected"] for span in stored(page, "phone")["spans"]] == ["capital"]
    page.tap("[data-star='5']")
    saved(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.tap("#glm-back")
    expect(page.locator("#glm-queue")).to_be_visible()
    expect(page.locator(".glm-row")).to_contain_text("★★★★★")


@pytest.mark.parametrize("locale, scheme", [pytest.param("en-US", "light", marks=pytest.mark.heavy), ("zh-CN", "dark")])
def test_no_tab_has_a_barrier(desk: Desk, open_desk: OpenDesk, locale: str, scheme: str) -> None:
    write(desk, **{f"axe_{scheme}": LYON})
    page = open_desk(f"#review?ids=axe_{scheme}", locale=locale, color_scheme=scheme)
    found: dict[str, list[str]] = {}

    def look(state: str) -> None:
        for size in (DESKTOP, PHONE):
            page.set_viewport_size(size)
            if told := barriers(page):
                found[f"{state}, {size['width']} px"] = told
        page.set_viewport_size(DESKTOP)

    shows(page, f"axe_{scheme}")
    page.keyboard.press("3")
    page.keyboard.press("e")
    page.keyboard.press("Enter")
    page.fill("#glm-mask-own", "A")
    page.wait_for_selector(".glm-mask-fill")
    look("review, with a blank")
    page.click("#glm-mask-use")
    expect(page.locator("#glm-diff")).to_be_visible()
    saved(page)
    look("review, corrected")
    page.click("#glm-open-filters")
    page.wait_for_selector("#glm-filters [type=submit]")
    look("filters")
    page.keyboard.press("Escape")
    for name in TABS:
        if page.locator(f"#glm-open-{name}").count() and name != "review":
            page.click(f"#glm-open-{name}")
            page.wait_for_selector(f"#glm-tab-{name}[data-shown]")
            look(name)
    assert found == {}, json.dumps(found, indent=1, ensure_ascii=False)
