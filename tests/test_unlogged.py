"""Runs that nobody keeps, deletion of one's own data with a receipt, and what visitors are told of both: on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.admin.access import key_hash, new_key
from app.privacy import notice
from app.settings import Settings, WrongSetting
from storage.visitors import visitor_id
from tests.server import LIVELY, PATIENCE, Client, Thread, eventually, rows, serving

pytest_plugins = ("tests.server",)

SECRET = "zebrafinch"
LONG = {**LIVELY, "min_new_tokens": 3000, "max_new_tokens": 3000}


@pytest.fixture(scope="module")
def private_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("private") / "glm.db"


@pytest.fixture(scope="module")
def private(long_model: Path, private_database: Path) -> Iterator[Thread]:
    """A server whose host lets visitors choose that nothing is kept."""
    settings = Settings.create(
        model=str(long_model), database=str(private_database), allow_unlogged=True, retention="90d"
    )
    with serving(settings) as running:
        yield running


def stands_in(database: Path, word: str) -> list[str]:
    """The files of a SQLite database that hold the word anywhere."""
    files = [path for path in database.parent.rglob("*") if path.is_file()]
    return [path.name for path in files if word.encode() in path.read_bytes().lower()]


def chat(words: str, tokens: int = 8, **more: Any) -> dict[str, Any]:
    parameters = {**LIVELY, "min_new_tokens": tokens, "max_new_tokens": tokens, "stop": [f"stop {words}"]}
    return {
        "type": "chat",
        "id": "a",
        "messages": [{"role": "user", "content": words}],
        "parameters": parameters,
        **more,
    }


async def test_an_unlogged_run_leaves_counts_and_no_text(private: Thread, private_database: Path) -> None:
    async with Client(private) as client:
        events = await client.run(chat(f"Tell me of the {SECRET}", log=False))
        accepted, done = events[0], events[-1]
        assert (accepted["log"], accepted["conversation"]) == (False, None) and done["type"] == "done" and done["text"]
        run, headers = accepted["run"], {"Cookie": client.cookie}
        # In memory it can be resumed as any other.
        await client.send({"type": "resume", "run": run, "after": 0})
        assert (await client.until("done"))[-1] == done
        blanks = await client.run({"type": "fill", "text": f"A {SECRET} is a [MASK].", "log": False})
        cancelled = chat(f"Never end, {SECRET}", 3000, log=False)
        await client.send(cancelled)
        begun = (await client.until("started"))[0]["run"]
        await client.send({"type": "cancel", "run": begun})
        await client.until("cancelled")
        logged = await client.run(chat("Tell me of the heron"))
    for one in (run, blanks[0]["run"], begun):
        assert private.get(f"/api/runs/{one}", headers=headers).status_code == 404
        body = {"run": one, "rating": 1}
        assert httpx.post(f"{private.http}/api/feedback", json=body, headers=headers).status_code == 404
        share = {"runs": [one]}
        assert httpx.post(f"{private.http}/api/shares/preview", json=share, headers=headers).status_code == 404
    eventually(lambda: not private.service.hub.counts()["unwritten"], "everything is written")
    query = (
        "SELECT status, prompt, output, new_tokens > 0, total_milliseconds > 0, parameters, deleted = created FROM run"
    )
    (row,) = rows(private_database, f"{query} WHERE id = ?", run)
    assert row[:5] == ("done", None, None, 1, 1) and "stop" not in row[5] and row[6] == 1
    assert rows(private_database, f"{query} WHERE id = ?", begun)[0][:4] == ("cancelled", None, None, 1)
    runs = {id for (id,) in rows(private_database, "SELECT run_id FROM blank")}
    assert runs == {logged[0]["run"]} and logged[0]["log"] is True
    assert rows(private_database, "SELECT count(*) FROM conversation") == [(1,)]
    assert stands_in(private_database, SECRET) == [] and stands_in(private_database, "heron")


async def test_a_host_that_keeps_all_refuses_by_name(server: Thread) -> None:
    async with Client(server) as client:
        answer = await client.ask(chat("hello", log=False))
        assert (answer["type"], answer["kind"], answer["field"]) == ("error", "unsupported", "log")
        answer = await client.ask(chat("hello", log="no"))
        assert (answer["kind"], answer["field"]) == ("bad_request", "log")
    told = server.get("/api/info").json()["privacy"]
    assert told == {"log_optional": False, "kept_seconds": None, "failed_seconds": None, "reviewed_seconds": None}


async def test_a_visitor_deletes_everything_while_a_run_goes_on(private: Thread, private_database: Path) -> None:
    word = "oystercatcher"
    async with Client(private) as client, Client(private) as other:
        headers = {"Cookie": client.cookie}
        first = await client.run(chat(f"An {word}"))
        await other.run(chat("Somebody else's spoonbill"))
        body = {"runs": [first[0]["run"]], "title": word}
        shared = httpx.post(f"{private.http}/api/shares", json=body, headers=headers).json()
        await client.send(chat(f"A long story of the {word}", 3000))
        await client.until("delta")
        counts = private.get("/api/visitor", headers=headers).json()
        assert counts == {"runs": 2, "conversations": 2, "shared_pages": 1}
        foreign = {**headers, "Origin": "https://elsewhere.example"}
        assert httpx.delete(f"{private.http}/api/visitor", headers=foreign).status_code == 403
        answer = httpx.delete(f"{private.http}/api/visitor", headers=headers, timeout=PATIENCE)
        receipt = answer.json()
        assert answer.status_code == 200 and receipt["by"] == "visitor"
        assert {name: receipt["erased"][name] for name in counts} == counts
        # The run under way was ended first, and said so.
        assert (await client.until("cancelled"))[-1]["type"] == "cancelled"
        gone = await client.ask({"type": "resume", "run": first[0]["run"], "after": 0})
        assert (gone["type"], gone["kind"]) == ("error", "not_found")
    assert private.get("/api/visitor", headers=headers).json() == {"runs": 0, "conversations": 0, "shared_pages": 0}
    assert private.get(f"/{shared['path']}").status_code == 410
    checked = private.get(f"/api/receipts/{receipt['id']}").json()
    assert checked == {"receipt": receipt, "texts_left": 0}
    assert private.get("/api/receipts/none").status_code == 404
    eventually(lambda: not private.service.hub.counts()["unwritten"], "everything is written")
    private.call(private.service.record.purge_search(by="test"))
    assert private.call(private.service.database.scrub())
    assert stands_in(private_database, word) == [] and stands_in(private_database, "spoonbill")
    visitor = visitor_id(client.cookie.partition("=")[2])
    assert stands_in(private_database, visitor) == []


async def test_a_deleted_conversation_leaves_the_memory_too(private: Thread) -> None:
    async with Client(private) as client:
        headers = {"Cookie": client.cookie}
        accepted = (await client.run(chat("A wagtail")))[0]
        path = f"{private.http}/api/conversations/{accepted['conversation']}"
        assert httpx.delete(path, headers=headers).status_code == 204
        gone = await client.ask({"type": "resume", "run": accepted["run"], "after": 0})
        assert (gone["type"], gone["kind"]) == ("error", "not_found")


async def test_administrators_delete_on_request(private: Thread) -> None:
    keys = {}
    for role in ("admin", "reviewer"):
        member = private.call(private.service.record.create_staff(f"{role} of deletions", role, None))
        keys[role] = {"Authorization": f"Bearer {(key := new_key())}"}
        private.call(private.service.record.add_key(key_hash(key), member.id, "key"))
    path = f"{private.http}/api/admin/visitors/delete"
    async with Client(private) as client:
        one, other = [(await client.run(chat(words)))[0]["run"] for words in ("A dunlin", "A ruff")]
    assert httpx.post(path, json={"run": one}).status_code == 401
    assert httpx.post(path, json={"run": one}, headers=keys["reviewer"]).status_code == 403
    for body in ({}, {"run": one, "cookie": "x"}, {"run": 5}, {"who": "x"}):
        assert httpx.post(path, json=body, headers=keys["admin"]).status_code == 422
    run = f"{private.http}/api/admin/runs/{one}"
    assert httpx.delete(run, headers=keys["reviewer"]).status_code == 403
    assert httpx.delete(run, headers=keys["admin"]).status_code == 204
    assert httpx.delete(run, headers=keys["admin"]).status_code == 404
    receipt = httpx.post(path, json={"run": other}, headers=keys["admin"], timeout=PATIENCE).json()
    assert receipt["by"] == "admin of deletions" and receipt["erased"]["runs"] == 1, "one was erased already"
    assert httpx.post(path, json={"run": other}, headers=keys["admin"]).status_code == 404
    shown = httpx.get(f"{private.http}/api/admin/retention", headers=keys["reviewer"]).json()
    assert (shown["kept_seconds"], shown["due"]) == (7776000.0, {})
    path = f"{private.http}/api/admin/statistics"
    found = httpx.get(path, params={"by": "mode"}, headers=keys["reviewer"]).json()
    assert {series["key"] for series in found["series"]} >= {"chat"} and found["disk"]["used"] > 0
    refused = httpx.get(path, params={"by": "visitor"}, headers=keys["reviewer"])
    assert refused.status_code == 422 and refused.json()["error"]["field"] == "by"
    assert httpx.get(path).status_code == 401


def test_the_notice_says_what_the_settings_do(private: Thread) -> None:
    info = private.get("/api/info").json()
    assert info["privacy"] == {
        "log_optional": True,
        "kept_seconds": 7776000.0,
        "failed_seconds": 7776000.0,
        "reviewed_seconds": 7776000.0,
    }
    assert "for 90 days." in info["notice"]["en"] and "90 天。" in info["notice"]["zh"]
    assert "isn't kept" in info["notice"]["en"]
    plain = notice(Settings.create())
    assert "until they are deleted." in plain["en"] and "isn't kept" not in plain["en"]
    several = notice(Settings.create(retention="36h", retention_failed="1d", retention_reviewed="forever"))
    assert (
        "for 36 hours, those of failed or stopped runs for 1 day, reviewed ones until they are deleted."
        in several["en"]
    )
    assert "36 小时；失败或中止的运行：1 天；经过审阅的：直到被删除。" in several["zh"]


@pytest.mark.parametrize("name", ["retention", "retention_failed", "retention_reviewed"])
def test_ages_that_make_no_sense_are_refused_by_name(name: str) -> None:
    flag = "--" + name.replace("_", "-")
    with pytest.raises(WrongSetting, match=f"{flag} .*write an age as 90d.*'soon'"):
        Settings.from_arguments([flag, "soon"])
    assert Settings.from_arguments([flag, "forever"])
