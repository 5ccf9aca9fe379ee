"""The evaluation tab in a browser: a small evaluation from the start to the results and the report, by an administrator; what a
reviewer sees; no barriers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from app.admin.texts import merged
from tests.browser.conftest import start_server
from tests.browser.desk import Desk, OpenDesk
from tests.browser.test_accessibility import DESKTOP, PHONE, barriers
from tests.test_evaluations import COLA, write_rows

pytest_plugins = ("tests.browser.desk",)

EN, ZH = merged()["en"], merged()["zh"]


@pytest.fixture(scope="module")
def desk(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A server of this file's own, that has rows."""
    folder = tmp_path_factory.mktemp("evaluating")
    write_rows(folder / "data", many=3000)
    flags = ("--evaluation-data", str(folder / "data"), "--training-folder", str(folder / "training"))
    for server in start_server(tiny_model_folder, folder, 0, *flags):
        yield Desk(server, folder)


def test_from_the_start_to_the_report(desk: Desk, open_desk: OpenDesk) -> None:
    page = open_desk("#evaluation")
    expect(page.locator("#glm-evaluation-results")).to_contain_text(EN["evaluation.results.none"])
    page.click("#glm-evaluation-start")
    expect(page.locator("#glm-evaluation-new .glm-wrong")).to_have_text(EN["evaluation.choose"])
    page.check(f"[data-task='{COLA}']")
    page.check("[data-task='lambada/lambada.yaml']")
    page.fill("#glm-evaluation-limit", "2500")
    page.click("#glm-evaluation-start")
    page.wait_for_selector("[data-evaluation] progress")
    expect(page.locator("[data-evaluation]")).to_contain_text("of 2,500 rows")
    assert page.is_checked(f"[data-task='{COLA}']")  # what was chosen isn't drawn anew
    page.reload()  # it goes on
    page.click("[data-evaluation] button")
    row = page.locator("#glm-evaluation-history tbody tr")
    expect(row).to_contain_text(EN["evaluation.state.stopped"])
    results = page.locator("#glm-evaluation-results-table")
    expect(results).to_contain_text("glue_cola")
    expect(results).to_contain_text("57.6")
    expect(results).to_contain_text("published, not measured")

    page.check(f"[data-task='{COLA}']")
    page.click("#glm-evaluation-start")
    expect(row.first).to_contain_text(EN["evaluation.state.done"])
    report = page.locator("#glm-evaluation-report")
    expect(report).to_have_attribute("target", "_blank")
    page.goto(desk.address + report.get_attribute("href"))
    expect(page.locator("h1")).to_contain_text("tiny")
    assert page.evaluate("getComputedStyle(document.querySelector('table')).borderCollapse") == "collapse"
    page.click("#language")
    assert page.get_attribute("html", "data-language") == "zh"


@pytest.mark.parametrize("member, locale, scheme", [("admin", "en-US", "light"), ("rita", "zh-CN", "dark")])
def test_reviewers_only_read_and_there_is_no_barrier(
    desk: Desk, open_desk: OpenDesk, member: str, locale: str, scheme: str
) -> None:
    page = open_desk("#evaluation", member=member, role="reviewer", locale=locale, color_scheme=scheme)
    expect(page.locator("#glm-evaluation-start")).to_have_count(1 if member == "admin" else 0)
    expect(page.locator("#glm-tab-evaluation h1")).to_have_text((ZH if locale == "zh-CN" else EN)["evaluation.title"])
    expect(page.locator("#glm-evaluation-results-table")).to_contain_text("glue_cola")
    found = {}
    for size in (DESKTOP, PHONE):
        page.set_viewport_size(size)
        if told := barriers(page):
            found[size["width"]] = told
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, size
    assert found == {}, json.dumps(found, indent=1, ensure_ascii=False)
