"""/api/admin/export, datasets, lineage on a real server: who may, what is refused, the download and its manifest, the audit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from storage.export import FORMATS
from tests.reviewed import fill_record
from tests.server import Thread
from tests.test_reviewing import Ask, member

pytest_plugins = ("tests.server",)

REVIEWERS_TOO = ("/datasets", "/lineage/run/capital")
ADMINS_ONLY = ("/formats", "/export?format=csv", "/export/preview?format=csv", "/exports", "/exports/1/manifest")


@pytest.fixture(scope="module")
def admin(server: Thread) -> Iterator[Ask]:
    server.call(fill_record(server.service.record))
    yield member(server, "admin")[0]


@pytest.fixture(scope="module")
def reviewer(server: Thread, admin: Ask) -> Iterator[Ask]:
    yield member(server, "reviewer")[0]


def audit(server: Thread, subject: str) -> list[tuple[str, Any]]:
    page = server.call(server.service.record.list_audit(subject=subject))
    return [(row.action, row.details) for row in page.rows]


def test_who_may(server: Thread, admin: Ask, reviewer: Ask) -> None:
    for path in (*REVIEWERS_TOO, *ADMINS_ONLY):
        assert httpx.get(f"{server.http}/api/admin{path}").json()["error"]["kind"] == "login_needed"
    for path in REVIEWERS_TOO:
        assert reviewer("GET", path).status_code == 200, path
    for path in ADMINS_ONLY:
        assert reviewer("GET", path).json()["error"]["kind"] == "role_needed", path
    for path in ("/datasets", "/datasets/preview"):
        assert reviewer("POST", path, name="x").json()["error"]["kind"] == "role_needed"


@pytest.mark.parametrize("format", FORMATS)
def test_a_download_with_its_manifest(server: Thread, admin: Ask, format: str) -> None:
    answer = admin("GET", f"/export?format={format}&tags=fact")
    assert answer.status_code == 200 and answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == FORMATS[format].media_type
    name = answer.headers["content-disposition"].split('"')[1]
    assert name.endswith(FORMATS[format].extension)
    newest = admin("GET", "/exports").json()["exports"][0]
    manifest = newest["manifest"]
    assert (manifest["file"], manifest["bytes"], manifest["runs"]) == (name, len(answer.content), 1)
    assert manifest["sha256"] == hashlib.sha256(answer.content).hexdigest()
    assert (manifest["filters"], manifest["redaction"]) == ({"tags": ["fact"]}, True)
    assert admin("GET", f"/exports/{newest['id']}/manifest").json() == manifest
    assert audit(server, "runs")[0] == (
        "begin export",
        {"format": format, "filters": {"tags": ["fact"]}, "redaction": True},
    )


def test_a_preview_is_the_beginning_of_the_download(admin: Ask) -> None:
    for format in ("openai", "preferences", "glm", "sharegpt", "alpaca"):
        query = f"format={format}&ids=capital,second,story,filled"
        found = admin("GET", f"/export/preview?{query}").json()
        assert found["runs"] == 4
        lines = admin("GET", f"/export?{query}").text.splitlines()
        assert found["rows"] == [json.loads(line) for line in lines[:5]] and lines
    table = admin("GET", "/export/preview?format=parquet&ids=second").json()["rows"]
    assert "zeb@" not in json.dumps(table) and table[0]["created"].endswith("+00:00")
    open_ = admin("GET", "/export/preview?format=parquet&ids=second&redact=false").json()["rows"]
    assert "zeb@" in json.dumps(open_)


@pytest.mark.parametrize(
    "query, field",
    [
        ("format=doc", "format"),
        ("", "format"),
        ("format=csv&redact=perhaps", "redact"),
        ("format=csv&stars=5", "stars"),
    ],
)
def test_what_cant_be_exported_is_refused_by_name(admin: Ask, query: str, field: str) -> None:
    for path in ("/export", "/export/preview"):
        answer = admin("GET", f"{path}?{query}")
        assert answer.status_code == 422
        error = answer.json()["error"]
        assert error["kind"] == "bad_request" and field in (error.get("field") or error["message"])
    assert admin("GET", "/exports/999999/manifest").status_code == 404


def test_a_dataset_over_http(server: Thread, admin: Ask, reviewer: Ask) -> None:
    selection = {
        "filters": {"corrected": True, "ids": ["capital", "story"]},
        "held_out_share": 0.5,
        "sources": ["answer"],
    }
    preview = admin("POST", "/datasets/preview", **selection).json()
    assert (preview["rows"], preview["train"], preview["held_out"]) == (2, 1, 1)
    assert preview["first"][0]["content"]["messages"][-1]["content"] == "The capital is Paris, of course."
    made = admin("POST", "/datasets", name=" two ", **selection).json()
    assert (made["name"], made["version"], made["hash"], made["rows"]) == ("two", 1, preview["hash"], 2)
    assert audit(server, "dataset")[0][0] == "freeze"
    assert reviewer("GET", "/datasets").json()["datasets"][0]["id"] == made["id"]
    page = reviewer("GET", f"/datasets/{made['id']}/rows?limit=1").json()
    rest = reviewer("GET", f"/datasets/{made['id']}/rows?after={page['next']}").json()
    assert [row["run"] for row in page["rows"] + rest["rows"]] == ["capital", "story"] and rest["next"] is None
    found = reviewer("GET", "/lineage/run/capital").json()
    assert [one["name"] for one in found["datasets"]] == ["two"]
    assert found["written_by"][0]["weights_hash"] == "a" * 64
    version = reviewer("GET", f"/lineage/version/{found['written_by'][0]['id']}").json()
    assert version["runs"] == 7
    dataset = reviewer("GET", f"/lineage/dataset/{made['id']}").json()
    assert dataset["reviewers"] == [{"name": "rita", "rows": 2}]
    sources = reviewer("GET", f"/lineage/dataset/{made['id']}/sources?limit=1").json()
    assert (sources["sources"][0]["run"], sources["next"]) == ("capital", "0")


@pytest.mark.parametrize(
    "change, status, field",
    [
        ({"name": " "}, 422, "name"),
        ({"name": "x" * 81}, 422, "name"),
        ({"held_out_share": 0.6}, 422, "held_out_share"),
        ({"held_out_share": "half"}, 422, "held_out_share"),
        ({"sources": []}, 422, "sources"),
        ({"sources": ["walk"]}, 422, "sources"),
        ({"filters": {"stars": 5}}, 422, "stars"),
        ({"filters": {"ids": "none"}}, 422, "selection"),
        ({"extra": 1}, 422, "extra"),
    ],
)
def test_what_cant_be_frozen_is_refused_by_name(admin: Ask, change: dict[str, Any], status: int, field: str) -> None:
    answer = admin("POST", "/datasets", **{"name": "x", **change})
    error = answer.json()["error"]
    assert answer.status_code == status and (field in (error.get("field") or "") or field in error["message"]), error
    for path in (
        "/datasets/none",
        "/datasets/none/rows",
        "/lineage/dataset/none",
        "/lineage/version/99999",
        "/lineage/run/none",
    ):
        assert admin("GET", path).status_code == 404, path
