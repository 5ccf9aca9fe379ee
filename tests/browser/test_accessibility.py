"""No barrier that axe-core calls serious or critical: on every tab, empty and with answers, light and dark, English and Chinese,
on a desktop and on a phone. axe-core comes with the package axe-playwright-python, so nothing is fetched.
"""

from __future__ import annotations

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from app.ui.playground import PANES
from tests.browser.actions import ask, set_number, wait_for_status
from tests.browser.conftest import OpenPage

DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


def barriers(page: Page) -> list[str]:
    """What axe finds on the page as it is, a line for each element."""
    # A colour on its way to another one has no contrast of its own; what breathes for ever never arrives.
    page.evaluate(
        """() => Promise.allSettled(document.getAnimations()
            .filter((animation) => animation.effect.getComputedTiming().endTime < Infinity)
            .map((animation) => animation.finished))"""
    )
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response
    assert len(found["passes"]) > 20, "axe looked at the page"
    return [
        line
        for finding in found["violations"]
        if finding["impact"] in ("serious", "critical")
        for line in lines(finding)
    ]


def lines(finding: dict[str, Any]) -> list[str]:
    return [
        f"{finding['impact']} {finding['id']} at {' '.join(map(str, node['target']))}: {node['failureSummary']}"
        for node in finding["nodes"]
    ]


def test_axe_finds_what_is_wrong(page: Page) -> None:
    """Else the tests below would pass on any page."""
    assert barriers(page) == []
    page.evaluate(
        """() => {
            const bad = document.createElement('div');
            const pale = Object.assign(document.createElement('p'), {textContent: 'pale'});
            pale.style = 'color: #bbb; background: #fff';
            bad.append(document.createElement('button'), pale);
            document.querySelector('#glm-chat').append(bad);
        }"""
    )
    found = barriers(page)
    assert len(found) == 2 and "button-name" in " ".join(found) and "color-contrast" in " ".join(found)


@pytest.mark.parametrize(
    ("scheme", "locale"),
    [
        ("light", "en-US"),
        ("dark", "zh-CN"),
        pytest.param("light", "zh-CN", marks=pytest.mark.heavy),
        pytest.param("dark", "en-US", marks=pytest.mark.heavy),
    ],
)
def test_no_tab_has_a_barrier(open_page: OpenPage, scheme: str, locale: str) -> None:
    page = open_page(color_scheme=scheme, locale=locale, viewport=DESKTOP)
    found: dict[str, list[str]] = {}

    def look(state: str) -> None:
        for size in (DESKTOP, PHONE):
            page.set_viewport_size(size)
            if told := barriers(page):
                found[f"{state}, {size['width']} px"] = told
        page.set_viewport_size(DESKTOP)

    set_number(page, "max_new_tokens", 5)
    for name in PANES:
        page.click(f"#glm-tab-{name}-button")
        page.wait_for_selector(f"#glm-pane-{name} section")
        look(f"{name}, empty")
    page.click("#glm-tab-chat-button")
    ask(page, "One")
    wait_for_status(page, "done")
    look("chat, answered")
    page.click("#glm-tab-blanks-button")
    page.click("#glm-blanks-example-0")
    page.wait_for_selector("#glm-blanks-result[data-status=done]")
    page.click("#glm-fill-0")
    look("blanks, with the alternatives of one")
    page.keyboard.press("Escape")
    page.click("#glm-history-open")
    page.wait_for_selector("#glm-history-rows li")
    look("history")
    assert found == {}
