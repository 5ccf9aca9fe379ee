"""Share links over HTTP on a real server: preview, publish, read, revoke, report; the page and its strict headers."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.errors import TABLE
from app.ui import shared_page
from app.ui.texts import TEXTS
from tests.server import PATIENCE, Client, Thread, rows
from tests.test_ui import STATIC

pytest_plugins = ("tests.server",)

SECRET = "My name is Anna Smith, anna@example.org, 13800138000."
CHAT = {
    "type": "chat",
    "messages": [{"role": "user", "content": SECRET}],
    "parameters": {"max_new_tokens": 3, "seed": 7},
}
HIDDEN = ["Anna Smith", "anna@example.org", "13800138000"]
STRANGER = {"Cookie": "glm_visitor=" + "A" * 32}


class Visitor:
    """One visitor's requests to the share routes."""

    def __init__(self, server: Thread, headers: dict[str, str]) -> None:
        self.server, self.headers = server, headers

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        address = f"{self.server.http}/{path}"
        return httpx.request(method, address, json=body, headers=self.headers | headers, timeout=PATIENCE)

    def publish(self, runs: list[str], **changes: Any) -> dict[str, Any]:
        answer = self.send("POST", "api/shares", {"runs": runs, "title": "A page", "hidden": []} | changes)
        assert answer.status_code == 201, answer.text
        return answer.json()


@pytest.fixture
async def ann(server: Thread) -> tuple[Visitor, list[dict[str, Any]]]:
    """A visitor and the `done` events of their chat of two rounds; the second has the first in its prompt."""
    async with Client(server) as client:
        first = await client.run(CHAT)
        talk = [
            *CHAT["messages"],
            {"role": "assistant", "content": first[-1]["text"] or "-"},
            {"role": "user", "content": "And?"},
        ]
        second = await client.run(CHAT | {"messages": talk, "conversation": first[0]["conversation"]})
    return Visitor(server, {"Cookie": client.cookie or ""}), [
        first[-1] | {"conversation": first[0]["conversation"]},
        second[-1],
    ]


async def test_what_is_published_is_what_the_preview_showed(server: Thread, ann: tuple[Visitor, list[dict]]) -> None:
    visitor, done = ann
    runs = [event["run"] for event in done]
    preview = visitor.send("POST", "api/shares/preview", {"runs": runs}).json()
    assert preview["title"] == SECRET[:80]
    assert [(one["kind"], one["text"]) for one in preview["findings"]] == [
        ("email", "anna@example.org"),
        ("phone", "13800138000"),
        ("name", "Anna Smith"),
    ]
    first = preview["content"]["items"][0]
    assert (first["mode"], first["prompt"], first["output"]) == (
        "chat",
        CHAT["messages"],
        done[0]["text"].replace("\0", "\u2400"),
    )
    assert (first["seed"], first["parameters"], first["fingerprint"]) == (
        7,
        {"max_new_tokens": 3},
        done[0]["fingerprint"],
    )
    assert len(first["blanks"][0]["ids"]) == done[0]["usage"]["new_tokens"] and not first["redacted"]

    choice = {"runs": runs, "title": "About Anna Smith", "hidden": HIDDEN}
    shown = visitor.send("POST", "api/shares/preview", choice).json()
    made = visitor.publish(**choice)
    read = server.get("/api/shares/" + made["token"]).json()
    assert read["content"] == shown["content"] and read["title"] == shown["title"] == made["title"] == "About [hidden]"
    # The second round quotes the first one: nothing of it may be left anywhere, in whatever form it travels.
    page = server.get("/" + made["path"]).text
    stored = json.dumps(rows_of(server, made["token"]), ensure_ascii=False)
    for words in ("Anna", "Smith", "example.org", "13800138000"):
        assert words not in json.dumps(read, ensure_ascii=False) and words not in page and words not in stored
    items = read["content"]["items"]
    assert items[1]["prompt"][0]["content"] == "My name is [hidden], [hidden], [hidden]."
    assert all(item["redacted"] and item["blanks"][0]["ids"] is None for item in items)
    assert read["content"]["kind"] == "chat" and read["content"]["version"] == 1 and read["content"]["model"] == "tiny"


def rows_of(server: Thread, token: str) -> list[tuple]:
    return rows(Path(server.service.settings.database), "SELECT title, content FROM share WHERE token = ?", token)


async def test_a_filled_text_is_hidden_across_the_borders_of_its_blanks(server: Thread) -> None:
    fill = {
        "type": "fill",
        "text": "ab[MASK]cd [sMASK] e",
        "parameters": {"max_new_tokens": 3, "seed": 2, "alternatives": 2},
    }
    async with Client(server) as client:
        events = await client.run(fill)
    visitor, run = Visitor(server, {"Cookie": client.cookie or ""}), events[-1]["run"]
    stored = server.get("/api/runs/" + run, headers=visitor.headers).json()
    assert stored["output"].startswith("ab")
    item = server.get("/api/shares/" + visitor.publish([run])["token"]).json()["content"]["items"][0]
    assert [blank["text"] for blank in item["blanks"]] == [blank["text"] for blank in stored["blanks"]]
    assert [len(blank["alternatives"]) for blank in item["blanks"]] == [2, 2]
    words = "b" + stored["output"][2:].partition("cd")[0]  # the prompt's letter and the fill
    hidden = [words + "c"]
    item = server.get("/api/shares/" + visitor.publish([run], hidden=hidden)["token"]).json()["content"]["items"][0]
    assert (
        item["redacted"]
        and item["output"].startswith("a[")
        and item["output"].count("hidden") + item["output"].count("隐藏") == 1
    )
    assert item["prompt"].startswith("a[") and "[MASK]d [sMASK] e" in item["prompt"] and item["blanks"][0]["text"] == ""


async def test_the_visitors_own_text_is_told_from_the_models(server: Thread) -> None:
    async with Client(server) as client:
        filled = (await client.run({"type": "fill", "text": "a [MASK] b", "parameters": {"max_new_tokens": 2}}))[-1]
        more = (await client.run({"type": "generate", "text": "Once upon", "parameters": {"max_new_tokens": 2}}))[-1]
    visitor = Visitor(server, {"Cookie": client.cookie or ""})

    def content(run: str, text: str | None, **changes: Any) -> dict[str, Any]:
        return visitor.send("POST", "api/shares/preview", {"runs": [run], "text": text} | changes).json()["content"]

    assert content(filled["run"], filled["text"])["edited"] is False
    changed = content(filled["run"], "a completely other b", hidden=["completely"])
    assert (changed["edited"], changed["text"], changed["kind"]) == (True, "a [hidden] other b", "blanks")
    assert content(filled["run"], None)["text"] is None
    assert content(more["run"], "Once upon" + more["text"])["edited"] is False
    assert content(more["run"], "Once upon")["kind"] == "complete"
    # Outputs come from the record alone: there is no field for them.
    refused = visitor.send("POST", "api/shares", {"runs": [more["run"]], "title": "x", "output": "forged"})
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "output")


async def test_pages_are_listed_and_taken_back_by_their_owner_alone(
    server: Thread, ann: tuple[Visitor, list[dict]]
) -> None:
    visitor, done = ann
    first = visitor.publish([done[0]["run"]], title="first")
    second = visitor.publish([done[0]["run"]], title="第二", expires_seconds=3600)
    assert len({first["token"], second["token"]}) == 2 and re.fullmatch(r"[\w-]{22,}", first["token"])
    assert first["path"] == "s/" + first["token"] and first["expires"] is None
    moments = [datetime.fromisoformat(second[name]) for name in ("created", "expires")]
    assert timedelta(minutes=59) < moments[1] - moments[0] <= timedelta(hours=1)
    listed = visitor.send("GET", "api/shares").json()["shares"]
    assert [(one["title"], one["kind"], one["revoked"]) for one in listed] == [
        ("第二", "chat", None),
        ("first", "chat", None),
    ]
    assert "visitor" not in json.dumps(server.get("/api/shares/" + first["token"]).json())
    stranger = Visitor(server, STRANGER)
    assert stranger.send("GET", "api/shares").json() == {"shares": []}
    assert stranger.send("DELETE", "api/shares/" + first["token"]).status_code == 404
    evil = visitor.send("DELETE", "api/shares/" + first["token"], Origin="http://evil.example")
    assert evil.status_code == 403 and server.get("/" + first["path"]).status_code == 200
    assert visitor.send("DELETE", "api/shares/" + first["token"]).status_code == 204
    assert visitor.send("DELETE", "api/shares/" + first["token"]).status_code == 404
    assert server.get("/api/shares/" + first["token"]).json()["error"]["kind"] == "not_found"
    assert server.get("/" + first["path"]).status_code == 410
    assert server.get("/" + second["path"]).status_code == 200, "the others stay"
    assert [one["revoked"] is None for one in visitor.send("GET", "api/shares").json()["shares"]] == [True, False]
    assert visitor.send("DELETE", "api/conversations/" + done[0]["conversation"]).status_code == 204
    assert server.get("/" + second["path"]).status_code == 410


async def test_an_expired_page_is_gone(server: Thread, ann: tuple[Visitor, list[dict]]) -> None:
    visitor, done = ann
    made = visitor.publish([done[0]["run"]], expires_seconds=60)
    clock = server.service.record.clock
    server.service.record.clock = lambda: clock() + timedelta(seconds=61)
    try:
        assert server.get("/api/shares/" + made["token"]).status_code == 404
        assert server.get("/" + made["path"]).status_code == 410
    finally:
        server.service.record.clock = clock
    assert rows_of(server, made["token"])[0][1] is None


async def test_only_ones_own_finished_runs_of_one_conversation(server: Thread, ann: tuple[Visitor, list[dict]]) -> None:
    visitor, done = ann
    runs = [event["run"] for event in done]
    async with Client(server, visitor.headers["Cookie"]) as client:
        other = (await client.run(CHAT))[-1]["run"]
        started = await client.ask(CHAT | {"parameters": {"max_new_tokens": 4000, "temperature": 2.0}})
        body = {"runs": [started["run"]], "title": "x"}
        early = visitor.send("POST", "api/shares", body)
        await client.send({"type": "cancel", "run": started["run"]})
        await client.until("cancelled")
    assert (early.status_code, early.json()["error"]["field"]) == (422, "runs")
    for path in ("api/shares", "api/shares/preview"):
        assert Visitor(server, STRANGER).send("POST", path, {"runs": runs, "title": "x"}).status_code == 404
        assert visitor.send("POST", path, {"runs": [*runs, "none"], "title": "x"}).status_code == 404
    mixed = visitor.send("POST", "api/shares", {"runs": [runs[0], other], "title": "x"})
    assert (mixed.status_code, mixed.json()["error"]["field"]) == (422, "runs")
    assert len(visitor.send("POST", "api/shares/preview", {"runs": [runs[0], *runs]}).json()["content"]["items"]) == 2
    stopped = visitor.send("POST", "api/shares/preview", body).json()["content"]["items"][0]
    assert stopped["fingerprint"] is None, "it can be read, and not run again"


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"runs": []}, "runs"),
        ({"runs": ["x"] * 201}, "runs"),
        ({"title": " "}, "title"),
        ({"title": "x" * 201}, "title"),
        ({"text": "x" * 200_001}, "text"),
        ({"text": "a chat has none"}, "text"),
        ({"expires_seconds": 1}, "expires_seconds"),
        ({"expires_seconds": 10**9}, "expires_seconds"),
        ({"expires_seconds": "60"}, "expires_seconds"),
        ({"hidden": [""]}, "hidden.0"),
        ({"hidden": ["x" * 1001]}, "hidden.0"),
        ({"hidden": ["x"] * 301}, "hidden"),
        ({"public": True}, "public"),
    ],
)
async def test_a_bad_request_names_its_field(
    server: Thread, ann: tuple[Visitor, list[dict]], changes: dict[str, Any], field: str
) -> None:
    visitor, done = ann
    refused = visitor.send("POST", "api/shares", {"runs": [done[0]["run"]], "title": "x"} | changes)
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, field)


async def test_what_changes_something_needs_this_site_and_json(server: Thread, ann: tuple[Visitor, list[dict]]) -> None:
    visitor, done = ann
    made = visitor.publish([done[0]["run"]])
    before = visitor.send("GET", "api/shares").json()
    bodies = {
        "api/shares": {"runs": [done[0]["run"]], "title": "x"},
        "api/shares/preview": {"runs": [done[0]["run"]]},
        f"api/shares/{made['token']}/report": {"reason": "x"},
    }
    for path, body in bodies.items():
        assert visitor.send("POST", path, body, Origin="http://evil.example").status_code == 403
        form = {**visitor.headers, "Content-Type": "text/plain"}
        sent = httpx.post(f"{server.http}/{path}", content=json.dumps(body), headers=form, timeout=PATIENCE)
        assert (sent.status_code, sent.json()["error"]["field"]) == (422, "Content-Type")
    assert visitor.send("GET", "api/shares").json() == before
    assert (
        rows(Path(server.service.settings.database), "SELECT * FROM share_report WHERE token = ?", made["token"]) == []
    )
    assert visitor.send("PUT", "api/shares/" + made["token"]).status_code == 405


async def test_anybody_who_sees_a_page_can_report_it(
    server: Thread, ann: tuple[Visitor, list[dict]], caplog: pytest.LogCaptureFixture
) -> None:
    visitor, done = ann
    made = visitor.publish([done[0]["run"]])
    path = f"api/shares/{made['token']}/report"
    stranger = Visitor(server, STRANGER)
    assert stranger.send("POST", path, {"reason": " my address "}).status_code == 204
    assert stranger.send("POST", path, {"reason": "my phone number"}).status_code == 204
    assert visitor.send("POST", path, {"reason": "改主意了"}).status_code == 204
    database = Path(server.service.settings.database)
    told = rows(database, "SELECT reason FROM share_report WHERE token = ? ORDER BY created", made["token"])
    assert told == [("my phone number",), ("改主意了",)]
    assert "2 reports" in caplog.text and made["token"] not in caplog.text and "phone" not in caplog.text
    assert "report" not in json.dumps(visitor.send("GET", "api/shares").json())
    for body, field in (({"reason": " "}, "reason"), ({"reason": "x" * 2001}, "reason"), ({}, "reason")):
        assert stranger.send("POST", path, body).json()["error"]["field"] == field
    assert stranger.send("POST", "api/shares/none/report", {"reason": "x"}).status_code == 404


async def test_the_page_is_light_strict_and_not_indexed(server: Thread, ann: tuple[Visitor, list[dict]]) -> None:
    visitor, done = ann
    made = visitor.publish([done[0]["run"]], title="</script><img src=x onerror=alert(1)>")
    for path, status in ((made["path"], 200), ("s/nothing", 404), ("s/", 404), ("s/a/b", 404)):
        page = server.get("/" + path, headers={"Accept": "text/html"})
        assert page.status_code == status
        policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
        host = f"127.0.0.1:{server.port}"
        assert policy == {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "img-src": "'self'",
            "connect-src": f"'self' ws://{host} wss://{host}",
            "frame-ancestors": "'none'",
            "base-uri": "'none'",
            "form-action": "'none'",
        }
        assert page.headers["x-robots-tag"] == "noindex, nofollow"
        assert page.headers["cache-control"] == "no-store"
        assert "set-cookie" not in page.headers, "who only reads needs none"
        assert '<meta name="robots" content="noindex, nofollow">' in page.text
        assert "gradio" not in page.text.lower() and "http://" not in page.text and "https://" not in page.text
        # What a browser would run: files of this site only; data blocks are none.
        scripts = re.findall(r"<script([^>]*)>", page.text)
        assert [one for one in scripts if "application/json" not in one] == [
            f' type="module" src="{"../" * path.count("/")}static/share.js"'
        ]
        assert "<img" not in page.text and " style=" not in page.text and "<style" not in page.text
    page = server.get("/" + made["path"]).text
    assert "&lt;/script&gt;&lt;img" in page and len(page) < 60_000
    assert server.get("/s/nothing", headers={"Accept-Language": "zh-CN"}).text.count(TEXTS["zh"]["shared.missing"]) >= 2
    assert "Disallow: /s/" in server.get("/robots.txt").text
    assert httpx.head(f"{server.http}/{made['path']}", timeout=PATIENCE).status_code == 200
    strange = server.get("/" + made["path"], headers={"Host": "a;b 'unsafe-inline'"})
    assert "unsafe" not in strange.headers.get("content-security-policy", "")


def test_the_page_brings_every_text_and_script_that_it_needs() -> None:
    needed, waiting = set(), {"share.js"}
    while waiting:
        name = waiting.pop()
        needed.add(name)
        source = (STATIC / name).read_text(encoding="utf-8")
        waiting |= set(re.findall(r"from \"\./([\w.]+)\"", source)) - needed
    assert needed == set(shared_page.SCRIPTS) and shared_page.SCRIPTS[0] == "share.js"
    known = {key for key in TEXTS["en"] if key in shared_page.KEYS or key.startswith(shared_page.FAMILIES)}
    own = "".join(
        (STATIC / name).read_text(encoding="utf-8")
        for name in ("share.js", "shared_view.js", "rerun.js", "markdown.js")
    )
    named = {key for key in re.findall(r"\"([a-z_]+(?:\.[a-z_.]+)?)\"", own) if key in TEXTS["en"]} - {
        "comment"
    }  # an icon
    assert named <= known
    assert set(shared_page.KEYS) <= set(TEXTS["en"]) and set(shared_page.ERRORS) <= set(TABLE)
    assert {
        f"fingerprint.{name}" for name in re.findall(r"\"(\w+)\"", re.search(r"FIELDS = new Set\(\[(.*?)\]", own)[1])
    } <= known
