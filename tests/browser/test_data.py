"""The data tab in a browser: export with filters and a live preview, freezing a dataset, its rows and tombstones, lineage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from app.admin.texts import merged
from storage import Record
from tests.browser.conftest import Server, Watch, _watch, start_server
from tests.browser.desk import with_record
from tests.browser.test_accessibility import DESKTOP, PHONE, barriers
from tests.reviewed import fill_record

EN = merged()["en"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def filled(tiny_model_folder: Path, folder: Path) -> Iterator[Server]:
    for server in start_server(tiny_model_folder, folder):
        with_record(folder, fill_record)
        yield server


@pytest.fixture
def open_data(filled: Server, folder: Path, browser: Browser, watch: Watch) -> Iterator[Callable[..., Page]]:
    contexts = []

    def open_one(argument: str, **options: Any) -> Page:
        settings: dict[str, Any] = {"locale": "en-US", "viewport": DESKTOP} | options
        context = browser.new_context(**settings)
        contexts.append(context)
        context.set_default_timeout(20_000)
        page = context.new_page()
        _watch(page, watch, filled.address.split("/")[2])
        page.goto(f"{filled.address}admin#data?{argument}")
        (line,) = [one for one in folder.iterdir() if "admin-password" in one.name]
        page.fill("#glm-login-name", "admin")
        page.fill("#glm-login-password", line.read_text().strip())
        page.press("#glm-login-password", "Enter")
        page.wait_for_selector("#glm-tab-data[data-shown]")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not watch.unexpected()


def test_an_export_from_filters_to_the_file(open_data: Callable[..., Page]) -> None:
    page = open_data("view=export")
    expect(page.locator("#glm-data-count")).to_have_text("8 runs are selected.")
    expect(page.locator("#glm-data-preview")).to_contain_text('"kind": "run"')
    expect(page.locator("#glm-data-preview")).not_to_contain_text("Zebulon")
    expect(page.locator("#glm-data-former")).to_contain_text(EN["data.former.none"])
    page.click("#glm-data-filters")
    page.select_option("#glm-filter-corrected", "true")
    page.click("#glm-filters [type=submit]")
    expect(page.locator("#glm-data-count")).to_have_text("3 runs are selected.")
    page.check("input[value=glm]")
    expect(page.locator("#glm-data-preview")).to_contain_text('"answers"')
    expect(page.locator("#glm-data-preview")).to_contain_text("[MASK], of course.")
    with page.expect_download() as started:
        page.click("#glm-data-download")
    assert started.value.suggested_filename.startswith("glm-glm-") and started.value.suggested_filename.endswith(
        ".jsonl"
    )
    data = Path(started.value.path()).read_bytes()
    assert [json.loads(line)["answers"] for line in data.decode().splitlines()][0] == ["Paris"]
    page.click("#glm-data-reload")
    row = page.locator("#glm-data-former tbody tr").first
    expect(row).to_contain_text(hashlib.sha256(data).hexdigest()[:12])
    with page.expect_download() as started:
        row.locator("a").click()
    manifest = json.loads(Path(started.value.path()).read_text())
    assert (manifest["filters"], manifest["redaction"], manifest["runs"]) == ({"corrected": True}, True, 3)
    # Without redaction it says what that means; nothing but the filter's chip brings the other runs back.
    page.check("input[value=csv]")
    page.uncheck("#glm-data-redact")
    expect(page.locator("#glm-data-redact-help")).to_have_text(EN["data.redact.off"])
    page.click("#glm-data-selection .glm-chip button")
    expect(page.locator("#glm-data-count")).to_have_text("8 runs are selected.")
    expect(page.locator("#glm-data-preview")).to_contain_text("Zebulon")
    with page.expect_download() as started:
        page.click("#glm-data-download")
    text = Path(started.value.path()).read_text(encoding="utf-8-sig")
    assert "Zebulon" in text and started.value.suggested_filename.endswith(".csv")
    page.click("#glm-data-reload")
    expect(page.locator("#glm-data-former")).to_contain_text(EN["data.unredacted"])


def test_a_dataset_from_freezing_to_tombstones_and_its_lineage(open_data: Callable[..., Page], folder: Path) -> None:
    page = open_data("view=datasets")
    expect(page.locator("#glm-data-set-count")).to_contain_text("5 rows from 8 selected runs")
    expect(page.locator("#glm-data-left-out")).to_contain_text("5 runs that nobody corrected")
    page.check("input[value=good]")
    expect(page.locator("#glm-data-set-count")).to_contain_text("6 rows from 8 selected runs")
    page.click("#glm-data-set-preview summary")
    expect(page.locator("#glm-data-set-preview")).to_contain_text('"answers": [\n    "Paris"\n  ]')
    page.fill("#glm-data-name", "corrections")
    page.click("#glm-data-freeze")
    expect(page.locator("#glm-data-sets")).to_contain_text("corrections 1")

    async def forget(record: Record) -> str:
        (conversation,) = (await record.list_conversations("ann")).rows
        await record.delete_conversation(conversation.id, "ann")
        return (await record.list_datasets()).rows[0].dataset.hash

    hash = with_record(folder, forget)
    page.click("[data-rows='corrections 1']")
    rows = page.locator("#glm-data-rows")
    expect(rows).to_contain_text(hash)
    expect(rows.locator("[data-row='0']")).to_contain_text(EN["data.tombstone"])
    expect(rows.locator("[data-row='2']")).to_contain_text("there was a good story")
    rows.locator("[data-row='2'] a").click()
    lineage = page.locator("#glm-lineage")
    expect(lineage).to_contain_text("embedded")
    expect(lineage).to_contain_text("a" * 12)
    expect(lineage).to_contain_text("corrections 1")
    lineage.get_by_role("link", name="corrections 1").click()
    expect(page.locator("#glm-lineage-sources")).to_contain_text("rita")
    expect(page.locator("#glm-lineage-sources")).to_contain_text(EN["data.deleted"])
    page.locator("#glm-lineage-sources a").first.click()
    expect(lineage).to_contain_text(EN["data.deleted"])
    expect(lineage).to_contain_text(EN["data.learnt.none"])


@pytest.mark.parametrize(
    "options",
    [{}, {"locale": "zh-CN", "viewport": PHONE, "color_scheme": "dark"}],
    ids=["desktop", "phone in Chinese and dark"],
)
def test_no_barriers_and_nothing_too_wide(open_data: Callable[..., Page], options: dict[str, Any]) -> None:
    page = open_data("view=export", **options)
    for view, there in (
        ("export", "#glm-data-preview pre"),
        ("datasets", "#glm-data-set-count"),
        ("lineage", "#glm-lineage-id"),
    ):
        page.click(f"#glm-data-{view}")
        page.wait_for_selector(there)
        assert barriers(page) == [], view
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
