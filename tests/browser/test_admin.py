"""The staff's page in a browser: login, links, roles, keys, password, audit, both languages."""

from __future__ import annotations

import re

from playwright.sync_api import Browser, Page, expect

from app.admin.texts import merged
from storage import Record
from tests.browser.conftest import Watch
from tests.browser.desk import Desk, OpenDesk
from tests.browser.test_accessibility import PHONE, barriers

pytest_plugins = ("tests.browser.desk",)

EN, ZH = merged()["en"], merged()["zh"]
PASSWORD = "correct horse battery"


def login(page: Page, name: str, password: str) -> None:
    page.fill("#glm-login-name", name)
    page.fill("#glm-login-password", password)
    page.press("#glm-login-password", "Enter")


def welcomed(page: Page, link: str, name: str | None, password: str = PASSWORD) -> None:
    """Follow a link and choose what it asks for."""
    page.goto(link)
    page.wait_for_selector("#glm-welcome")
    if name:
        page.fill("#glm-welcome-name", name)
    page.fill("#glm-welcome-password", password)
    page.fill("#glm-welcome-again", password)
    page.click("#glm-welcome [type=submit]")
    page.wait_for_selector("[data-shown]")


def link_of(page: Page) -> str:
    link = page.input_value("#glm-link")
    page.keyboard.press("Escape")
    return link


def test_login_and_logout(desk: Desk, open_desk: OpenDesk, watch: Watch) -> None:
    watch.expected += ["status 401", "Failed to load resource"]
    page = open_desk("#audit", member=None)
    assert page.locator("nav").count() == 0
    expect(page.locator("#glm-login-name")).to_be_focused()
    login(page, "admin", "wrong wrong wrong")
    expect(page.locator(".glm-wrong")).to_have_text(EN["shell.login.wrong"])
    login(page, "admin", desk.password)
    page.wait_for_selector("#glm-tab-audit[data-shown]")
    expect(page.locator("#glm-audit tbody tr").first).to_contain_text("login")
    page.click("#glm-account")
    page.click("#glm-logout")
    page.wait_for_selector("#glm-login")
    page.reload()
    page.wait_for_selector("#glm-login")


def test_too_many_tries_are_told_how_long_to_wait(desk: Desk, open_desk: OpenDesk, watch: Watch) -> None:
    watch.expected += ["status 401", "status 429", "Failed to load resource"]
    page = open_desk(member=None)
    for number in range(30):  # a slow machine gives some tries back meanwhile
        with page.expect_response("**/api/admin/login") as answer:
            login(page, "nobody in particular", f"guess {number}")
        if answer.value.status == 429:
            break
    words = EN["shell.login.slow"].partition("{")[0]
    expect(page.locator(".glm-wrong")).to_contain_text(words)


def test_an_invitation_from_the_link_to_the_disabled_account(desk: Desk, open_desk: OpenDesk, watch: Watch) -> None:
    watch.expected += ["status 401", "status 404", "status 409", "Failed to load resource"]
    admin = open_desk("#people")
    admin.click("#glm-invite")
    admin.click("#glm-dialog [type=submit]")
    link = link_of(admin)
    assert link.startswith(f"{desk.address}admin#welcome?token=")
    expect(admin.locator("#glm-invitations")).to_contain_text(EN["shell.role.reviewer"])
    guest = open_desk(link.partition("admin")[2], member=None)
    expect(guest.locator(".glm-front p").first).to_contain_text(EN["shell.role.reviewer"])
    guest.fill("#glm-welcome-name", "admin")
    guest.fill("#glm-welcome-password", PASSWORD)
    guest.fill("#glm-welcome-again", f"{PASSWORD}!")
    guest.click("#glm-welcome [type=submit]")
    expect(guest.locator(".glm-wrong")).to_have_text(EN["shell.password.differ"])
    guest.fill("#glm-welcome-again", PASSWORD)
    guest.click("#glm-welcome [type=submit]")
    expect(guest.locator(".glm-wrong")).to_have_text(EN["shell.welcome.taken"])
    guest.fill("#glm-welcome-name", "Grace")
    guest.click("#glm-welcome [type=submit]")
    guest.wait_for_selector("#glm-tab-review[data-shown]")
    names = guest.locator(".glm-tabs a").evaluate_all("links => links.map((link) => link.dataset.tab)")
    assert "review" in names and not {"people", "audit", "training"} & set(names)
    assert "token" not in guest.url
    other = open_desk(link.partition("admin")[2], member=None)
    expect(other.locator(".glm-front")).to_contain_text(EN["shell.welcome.over"])
    # The administrator makes her one, takes that back, and disables her.
    admin.reload()
    role = admin.get_by_label(EN["people.role.of"].format(name="grace"))
    role.select_option("admin")
    expect(admin.locator("#glm-notice")).to_have_text(EN["people.role.changed"].format(name="grace"))
    guest.reload()
    guest.wait_for_selector("#glm-open-people")
    admin.get_by_label(EN["people.disable.of"].format(name="grace")).click()
    admin.click("#glm-confirm")
    expect(admin.locator("#glm-people tr", has_text="grace")).to_contain_text(EN["people.disabled"])
    # By its address: a request of the page that was under way may have brought the login up already, above the links.
    guest.evaluate("location.hash = 'people'")
    expect(guest.locator("#glm-dialog")).to_contain_text(EN["shell.login.again"])


def test_a_lost_password_comes_back_by_a_link(desk: Desk, open_desk: OpenDesk) -> None:
    desk.session("frank")
    admin = open_desk("#people", viewport=PHONE)
    admin.get_by_label(EN["people.reset.of"].format(name="frank")).click()
    guest = open_desk(member=None)
    welcomed(guest, link_of(admin), None)
    expect(guest.locator("#glm-account")).to_contain_text("frank")
    guest.click("#glm-account")
    guest.click("#glm-account-dialog summary")
    guest.fill("#glm-password-old", PASSWORD)
    guest.fill("#glm-password-new", "short")
    guest.fill("#glm-password-again", "short")
    guest.press("#glm-password-again", "Enter")
    expect(guest.locator(".glm-wrong")).to_have_text(EN["shell.password.short"].format(least=10))
    for name in ("new", "again"):
        guest.fill(f"#glm-password-{name}", "another good one")
    guest.press("#glm-password-again", "Enter")
    expect(guest.locator("#glm-notice")).to_have_text(EN["shell.password.changed"])
    guest.click("#glm-account")
    guest.click("#glm-logout-all")
    guest.wait_for_selector("#glm-login")
    login(guest, "Frank", "another good one")
    guest.wait_for_selector("#glm-tab-review[data-shown]")
    assert admin.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_a_tab_that_loads_late_does_not_hold_back_the_next_one(desk: Desk, open_desk: OpenDesk) -> None:
    page = open_desk("#people")
    # The review tab writes its place into the address while it loads; here in the very moment in which another is asked for.
    page.evaluate("() => { location.hash = '#review'; }")
    page.wait_for_selector("#glm-tab-review #glm-rows")
    page.evaluate(
        "() => { location.hash = '#audit'; document.querySelector('#glm-order').dispatchEvent(new Event('change')); }"
    )
    page.wait_for_selector("#glm-tab-audit[data-shown]")
    assert page.url.endswith("#audit")


def test_a_program_gets_a_key_that_is_shown_once(desk: Desk, open_desk: OpenDesk, browser: Browser) -> None:
    page = open_desk("#people")
    page.click("#glm-add-program")
    page.fill("#glm-program-name", "robot")
    page.click("#glm-dialog [type=submit]")
    page.fill("#glm-key-label", "nightly")
    page.click("#glm-keys [type=submit]")
    expect(page.locator("#glm-keys tbody")).to_contain_text("nightly")
    key = page.input_value("#glm-key")
    assert barriers(page) == []
    api = browser.new_context()  # without the member's cookie
    try:
        headers = {"Authorization": f"Bearer {key}"}
        assert api.request.get(f"{desk.address}api/admin/me", headers=headers).json()["name"] == "robot"
        page.get_by_label(EN["people.keys.take.of"].format(label="nightly")).click()
        expect(page.locator("#glm-keys")).to_contain_text(EN["people.keys.none"])
        assert api.request.get(f"{desk.address}api/admin/me", headers=headers).status == 401
    finally:
        api.close()
    assert key not in page.content()


def test_the_audit_is_filtered_and_read_page_by_page(desk: Desk, open_desk: OpenDesk) -> None:
    async def work(record: Record) -> None:
        for number in range(103):
            await record.audit("auditor", "export", "run", f"r{number}", {"rows": number})

    desk.record(work)
    page = open_desk("#audit?actor=auditor")
    rows = page.locator("#glm-audit tbody tr")
    expect(rows).to_have_count(100)
    expect(rows.first).to_contain_text("rows: 102")
    page.click(".glm-more")
    expect(rows).to_have_count(103)
    page.fill("#glm-audit-subject_id", "r7")
    page.press("#glm-audit-subject_id", "Enter")
    expect(rows).to_have_count(1)
    assert page.url.endswith("#audit?actor=auditor&subject_id=r7")
    expect(rows.locator("a")).to_have_attribute("href", "#review?run=r7")


def test_the_language_is_switched_in_place(desk: Desk, open_desk: OpenDesk) -> None:
    page = open_desk("#audit?actor=nobody")
    expect(page.locator("h1")).to_have_text(EN["audit.title"])
    page.click("#glm-language-zh")
    expect(page.locator("h1")).to_have_text(ZH["audit.title"])
    expect(page.locator("#glm-audit-actor")).to_have_value("nobody")
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    page.reload()
    expect(page.locator("#glm-open-people")).to_have_text(ZH["shell.tab.people"])
    assert not re.search(r"\bshell\.|\baudit\.", page.inner_text("body"))


def test_the_login_has_no_barrier(open_desk: OpenDesk) -> None:
    for scheme, locale in (("light", "en-US"), ("dark", "zh-CN")):
        page = open_desk(member=None, color_scheme=scheme, locale=locale, viewport=PHONE)
        assert barriers(page) == []
