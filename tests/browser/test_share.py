"""Sharing in a real browser: the dialog with its preview, the page behind the link, run again, report, taking it back."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from app.ui.texts import TEXTS
from tests.browser.actions import as_stored, ask, set_number, set_seed, wait_for_status
from tests.browser.conftest import OpenPage, Server, Watch, _watch

EN, ZH = TEXTS["en"], TEXTS["zh"]
PERSONAL = "My name is Anna Smith, anna@example.org. <b>Who</b> are you?"
OPEN = """(subject) => {
    const loaded = import(new URL('static/share_dialog.js', document.baseURI));
    window.shared = loaded.then((dialog) => dialog.openShare(subject)).then(() => 'closed');
}"""


@pytest.fixture
def read_page(server: Server, browser: Browser, watch: Watch) -> Iterator[Any]:
    """read_page(address, **context options) -> a watched page of a new visitor that shows a shared page."""
    contexts = []

    def read(address: str, **options: Any) -> Page:
        context = browser.new_context(**({"locale": "en-US", "viewport": {"width": 1280, "height": 800}} | options))
        contexts.append(context)
        context.set_default_timeout(20_000)
        page = context.new_page()
        _watch(page, watch, server.address.split("/")[2])
        page.goto(address)
        page.wait_for_selector("#glm-shared-main")
        return page

    yield read
    for context in contexts:
        context.close()
    assert not watch.unexpected()


def shared(page: Page, runs: list[str], **changes: Any) -> str:
    """Publish runs of the page's visitor; the address of the new page."""
    body = {"runs": runs, "title": "A page", "hidden": []} | changes
    root = page.url.split("?")[0].rstrip("/")
    answer = page.request.post(f"{root}/api/shares", data=body)
    assert answer.ok, answer.text()
    return f"{root}/{answer.json()['path']}"


def talked(page: Page, question: str = "Hello <i>there</i>", tokens: int = 12) -> str:
    """One round of chat; the id of its run."""
    set_number(page, "max_new_tokens", tokens)
    set_seed(page, "11")
    ask(page, question)
    return wait_for_status(page, "done")["run"]


def run_fill(page: Page, text: str) -> dict[str, Any]:
    """The `done` event of a fill by the page's visitor."""
    return page.evaluate(
        """(text) => new Promise((resolve) => {
            const socket = new WebSocket(new URL('ws', location.href.replace('http', 'ws')));
            const parameters = {max_new_tokens: 4, alternatives: 3, seed: 5};
            socket.onopen = () => socket.send(JSON.stringify({type: 'fill', text, order: 'confident', parameters}));
            socket.onmessage = (message) => {
                const event = JSON.parse(message.data);
                if (['done', 'error'].includes(event.type)) { socket.close(); resolve(event); }
            };
        })""",
        text,
    )


def test_the_dialog_shows_what_will_be_public_and_hides_what_is_ticked(page: Page, read_page: Any) -> None:
    run = talked(page, PERSONAL)
    page.evaluate(OPEN, {"kind": "chat", "runs": [run], "text": None, "title": "Anna Smith asks"})
    dialog, preview = page.locator("#glm-share"), page.locator("#glm-share-preview")
    expect(dialog.locator(".glm-share-found")).to_have_text(["anna@example.org", "Anna Smith"])
    expect(page.locator("#glm-share-name")).to_be_focused()
    expect(preview.locator("h4")).to_have_text("[hidden] asks")
    question = preview.locator(".glm-shared-user .glm-shared-body")
    expect(question).to_have_text("My name is [hidden], [hidden]. <b>Who</b> are you?")
    dialog.get_by_label("Anna Smith").uncheck()
    expect(question).to_have_text("My name is Anna Smith, [hidden]. <b>Who</b> are you?")
    page.fill("#glm-share-words", "smith\n\nyou")
    expect(question).to_have_text("My name is Anna [hidden], [hidden]. <b>Who</b> are [hidden]?")
    page.fill("#glm-share-name", "What Anna asked")
    page.select_option("#glm-share-expiry", "week")
    page.click("#glm-share-publish")
    expect(page.locator("#glm-share-copy")).to_be_focused()
    link = page.input_value("#glm-share-link")
    page.keyboard.press("Escape")
    assert page.evaluate("window.shared") == "closed"
    expect(dialog).to_have_count(0)

    reader = read_page(link)
    expect(reader.locator("h1")).to_have_text("What Anna asked")
    expect(reader.locator("#glm-shared-meta")).to_contain_text("available until")
    expect(reader.locator(".glm-shared-user .glm-shared-body")).to_have_text(
        "My name is Anna [hidden], [hidden]. <b>Who</b> are [hidden]?"
    )
    expect(reader.locator(".glm-shared-user b")).to_have_count(0)
    expect(reader.locator(".glm-shared-remark")).to_have_text(EN["shared.hidden"])
    expect(reader.locator(".glm-rerun")).to_have_text(EN["shared.redacted"])
    assert reader.title() == "What Anna asked"
    assert reader.context.cookies() == [], "who only reads gets no cookie"
    for words in ("Smith", "example.org"):
        assert words not in reader.content()


def test_run_again_gives_the_same_tokens_beside_the_old_ones(page: Page, read_page: Any) -> None:
    run = talked(page)
    reader = read_page(shared(page, [run]))
    sockets = []
    reader.on("websocket", lambda socket: sockets.append(socket.url))
    said = reader.inner_text(".glm-shared-assistant > .glm-shared-body")
    expect(reader.locator("#glm-shared-continue")).to_have_attribute("href", f"/?from={reader.url.rpartition('/')[2]}")
    reader.click(".glm-rerun-start")
    expect(reader.locator(".glm-rerun-verdict")).to_have_text(EN["shared.same"])
    old, new = reader.locator(".glm-rerun-sides .glm-shared-body").all()
    assert old.inner_text() == new.inner_text() == said != ""
    assert len(sockets) == 1
    expect(reader.locator(".glm-rerun-start")).to_be_focused()
    # The same in the other language, and a second try replaces the first.
    reader.click("#glm-language-zh")
    expect(reader.locator(".glm-rerun-verdict")).to_have_text(ZH["shared.same"])
    expect(reader.locator("html")).to_have_attribute("lang", "zh-CN")
    assert reader.title() == "A page"
    reader.click(".glm-rerun-start")
    expect(reader.locator(".glm-rerun-panel")).to_have_count(1)
    expect(reader.locator(".glm-rerun-verdict")).to_have_text(ZH["shared.same"])


def test_a_reader_goes_on_in_a_conversation_of_their_own(page: Page, open_page: OpenPage) -> None:
    run = talked(page, "Hello there")
    answer = page.inner_text(".glm-assistant .glm-body")
    token = shared(page, [run]).rpartition("/")[2]
    reader = open_page(address=f"{page.url}?from={token}")
    expect(reader.locator(".glm-user .glm-body")).to_have_text("Hello there")
    expect(reader.locator(".glm-assistant .glm-body")).to_have_text(answer)
    # A reload goes on from what is there, not from the shared text once more.
    assert "from=" not in reader.url
    set_number(reader, "max_new_tokens", 4)
    ask(reader, "And more?")
    reader.wait_for_selector(".glm-assistant >> nth=1")
    own = wait_for_status(reader, "done")["run"]
    root = page.url.rstrip("/")
    prompt = reader.request.get(f"{root}/api/runs/{own}").json()["prompt"]
    assert [part["role"] for part in prompt] == ["user", "assistant", "user"]
    assert prompt[0]["content"] == "Hello there"
    assert page.request.get(f"{root}/api/runs/{own}").status == 404
    reader.reload()
    expect(reader.locator(".glm-user .glm-body")).to_have_text(["Hello there", "And more?"])


def test_links_are_listed_in_the_history_and_taken_back_one_by_one(page: Page, watch: Watch) -> None:
    run = talked(page)
    first, second = shared(page, [run], title="First"), shared(page, [run], title="Second")
    page.click("#glm-history-open")
    links = page.locator("#glm-history-links li")
    expect(links.locator(".glm-history-name")).to_have_text(["Second", "First"])
    links.first.locator(".glm-revoke").press("Enter")
    expect(links.locator(".glm-history-name")).to_have_text(["First"])
    watch.expected += ["410"]
    assert page.request.get(second).status == 410
    assert page.request.get(first).status == 200


def test_run_again_fills_the_same_blanks_in_the_same_order(page: Page, read_page: Any) -> None:
    done = run_fill(page, "Once [MASK] upon [sMASK] a time")
    reader = read_page(shared(page, [done["run"]], text=done["text"]))
    expect(reader.locator(".glm-shared-fill")).to_have_count(2)
    whole = reader.locator(".glm-shared-card > .glm-shared-body")
    assert whole.evaluate("(node) => node.textContent") == as_stored(done["text"])
    requests: list[dict[str, Any]] = []
    reader.on("websocket", lambda socket: socket.on("framesent", lambda frame: requests.append(json.loads(frame))))
    reader.click(".glm-rerun-start")
    expect(reader.locator(".glm-rerun-verdict")).to_have_text(EN["shared.same"])
    (sent,) = [message for message in requests if message["type"] == "fill"]
    assert sent["text"] == "Once [MASK] upon [sMASK] a time" and sent["order"] == "confident"
    assert sent["parameters"] == {"max_new_tokens": 4, "alternatives": 3, "seed": 5}


def stored_content(server_folder: Path, address: str, change: Any) -> None:
    """Change what the database has of a page, as another server or an older version had written it."""
    token = address.rpartition("/")[2]
    with closing(sqlite3.connect(server_folder / "glm.db")) as connection, connection:
        (content,) = connection.execute("SELECT content FROM share WHERE token = ?", (token,)).fetchone()
        known = json.loads(content)
        change(known["items"][0])
        connection.execute("UPDATE share SET content = ? WHERE token = ?", (json.dumps(known), token))


@pytest.fixture
def server_folder(server: Server) -> Path:
    """Where the server's database lies, as its command line says."""
    arguments = server.process.args
    assert isinstance(arguments, list)
    return Path(str(arguments[arguments.index("--database") + 1])).parent


def test_what_differs_is_told_field_by_field(page: Page, read_page: Any, server_folder: Path) -> None:
    address = shared(page, [talked(page)])

    def elsewhere(item: dict[str, Any]) -> None:
        item["fingerprint"] |= {"weights_hash": "f" * 64, "device": "cuda NVIDIA H100", "unheard": "of"}
        item["output"] += " and more"

    stored_content(server_folder, address, elsewhere)
    reader = read_page(address)
    reader.click(".glm-rerun-start")
    expect(reader.locator(".glm-rerun-verdict")).to_contain_text(EN["shared.differs"])
    expect(reader.locator(".glm-rerun-verdict")).to_contain_text(EN["shared.differs.other"])
    rows = reader.locator(".glm-rerun-fields tbody tr")
    expect(rows).to_have_count(3)
    device = reader.locator("[data-field=device]")
    expect(device.locator("th, td")).to_have_text([EN["fingerprint.device"], "cuda NVIDIA H100", "cpu"])
    expect(reader.locator("[data-field=weights_hash] td").first).to_have_text("f" * 16 + "…")
    expect(reader.locator("[data-field=unheard] td")).to_have_text(["of", EN["shared.absent"]])


def test_the_same_fingerprint_with_another_text_is_not_called_the_same(
    page: Page, read_page: Any, server_folder: Path
) -> None:
    address = shared(page, [talked(page)])
    stored_content(server_folder, address, lambda item: item.update(output=item["output"] + "!"))
    reader = read_page(address)
    reader.click(".glm-rerun-start")
    expect(reader.locator(".glm-rerun-verdict")).to_have_text(EN["shared.other"])
    expect(reader.locator(".glm-rerun-fields")).to_have_count(0)


def test_a_rerun_can_be_stopped(page: Page, read_page: Any) -> None:
    set_number(page, "max_new_tokens", 3000)
    ask(page, "Tell me everything")
    page.wait_for_selector(".glm-assistant[data-status=running] .glm-body p")
    page.click("#glm-chat-stop")
    stopped = wait_for_status(page, "cancelled")["run"]
    reader = read_page(shared(page, [stopped]))
    expect(reader.locator(".glm-rerun")).to_have_text(EN["shared.stopped"])
    reader = read_page(shared(page, [talked(page, "Hello", 600)]))
    reader.click(".glm-rerun-start")
    stop = reader.locator(".glm-rerun-stop")
    expect(stop).to_be_focused()
    expect(reader.locator(".glm-rerun-sides section:last-child .glm-shared-body p").first).to_be_visible()
    stop.click()
    expect(reader.locator(".glm-rerun-verdict")).to_have_text(EN["shared.cancelled"])


def test_a_page_is_reported_with_the_keyboard(page: Page, read_page: Any, server_folder: Path) -> None:
    address = shared(page, [talked(page)])
    reader = read_page(address, locale="zh-CN")
    reader.focus("#glm-report")
    reader.keyboard.press("Enter")
    expect(reader.locator("#glm-report-reason")).to_be_focused()
    reader.keyboard.press("Escape")
    expect(reader.locator("#glm-report")).to_be_focused()
    reader.keyboard.press("Enter")
    reader.keyboard.type("里面有我的住址")
    reader.keyboard.press("Tab")
    reader.keyboard.press("Enter")
    expect(reader.locator("#glm-report-status")).to_have_text(ZH["shared.report.thanks"])
    with closing(sqlite3.connect(server_folder / "glm.db")) as connection:
        token = address.rpartition("/")[2]
        told = connection.execute("SELECT reason FROM share_report WHERE token = ?", (token,)).fetchall()
    assert told == [("里面有我的住址",)]


def test_a_page_that_was_taken_back_says_so_kindly(page: Page, read_page: Any, watch: Watch) -> None:
    watch.expected += ["status 410", "status 404", "Failed to load resource"]
    address = shared(page, [talked(page)])
    token = address.rpartition("/")[2]
    reader = read_page(address)
    assert page.request.delete(f"{page.url.rstrip('/')}/api/shares/{token}").status == 204
    reader.reload()
    expect(reader.locator("h1")).to_have_text(EN["shared.over"])
    expect(reader.locator("main a")).to_have_attribute("href", "/")
    reader = read_page(f"{page.url.rstrip('/')}/s/nothing/at/all", locale="zh-CN")
    expect(reader.locator("h1")).to_have_text(ZH["shared.missing"])
    expect(reader.locator("main a")).to_have_attribute("href", "/")


def test_a_phone_shows_the_page_without_sideways_scrolling(page: Page, read_page: Any) -> None:
    run = talked(page, "x" * 300 + " and\n```\n" + "long " * 60 + "\n```", 40)
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
    reader = read_page(shared(page, [run]), **phone)
    reader.tap(".glm-rerun-start")
    expect(reader.locator(".glm-rerun-verdict")).to_have_text(EN["shared.same"])
    assert reader.evaluate("document.documentElement.scrollWidth") <= 390
    small = reader.evaluate(
        "[...document.querySelectorAll('button, a')].filter((one) => one.offsetHeight && one.offsetHeight < 32).length"
    )
    assert small == 0


def test_the_page_is_readable_without_scripts_and_paints_early(page: Page, read_page: Any, browser: Browser) -> None:
    address = shared(page, [talked(page, "Hello <i>there</i>")], title="Plain & simple")
    context = browser.new_context(java_script_enabled=False)
    try:
        plain = context.new_page()
        plain.goto(address)
        expect(plain.locator("h1")).to_have_text("Plain & simple")
        expect(plain.locator(".glm-shared-user")).to_have_text("Hello <i>there</i>")
    finally:
        context.close()
    reader = read_page(address)
    reader.reload()  # the first one pays for the browser's start
    painted = reader.wait_for_function(
        "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    ).json_value()
    assert 0 < painted < 1000


def test_the_dialog_is_usable_on_a_phone_in_chinese(open_page: OpenPage) -> None:
    page = open_page(locale="zh-CN", viewport={"width": 390, "height": 844})
    root = page.url
    done = run_fill(page, "我叫王小明，住在[MASK]。")
    subject = {"kind": "blanks", "runs": [done["run"]], "text": done["text"] + "完", "title": ""}
    page.evaluate(OPEN, subject)
    expect(page.locator("#glm-share .glm-share-found")).to_have_text(["王小明"])
    preview = page.locator("#glm-share-preview")
    expect(preview.locator(".glm-shared-card").first).to_contain_text("我叫[已隐藏]，住在")
    expect(preview.locator(".glm-shared-remark")).to_have_text([ZH["shared.hidden"], ZH["shared.edited"]])
    assert page.evaluate(
        "document.querySelector('#glm-share').scrollWidth <= document.querySelector('#glm-share').clientWidth"
    )
    page.fill("#glm-share-name", "")
    page.click("#glm-share-publish")
    expect(page.locator("#glm-share-name")).to_be_focused()
    expect(page.locator("#glm-share-link")).to_have_count(0)
    page.fill("#glm-share-name", "填空")
    page.click("#glm-share-publish")
    link = page.locator("#glm-share-link")
    expect(link).to_have_value(re.compile(re.escape(root) + r"s/[\w-]{22,}$"))
