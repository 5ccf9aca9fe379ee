"""The HTTP routes on a real server: health, info, a visitor's own runs and conversations, feedback, errors as JSON."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from app import errors
from app.schemas import Generate
from app.settings import Settings
from engine import errors as engine_errors
from storage import errors as storage_errors
from tests.server import PATIENCE, Client, Thread, eventually, rows

pytest_plugins = ("tests.server",)

CHAT = {
    "type": "chat",
    "messages": [{"role": "user", "content": "Hello"}],
    "parameters": {"max_new_tokens": 3, "seed": 1},
}


@pytest.fixture
async def visit(server: Thread) -> tuple[dict[str, str], dict]:
    """A visitor's cookie header and the `done` event of a chat of theirs, with its conversation."""
    async with Client(server) as client:
        events = await client.run(CHAT)
    assert client.cookie
    return {"Cookie": client.cookie}, events[-1] | {"conversation": events[0]["conversation"]}


def test_health_and_readiness(server: Thread) -> None:
    assert server.get("/healthz").json() == {"status": "ok"}
    assert server.get("/readyz").json() == {"status": "ready", "record": {"state": "writing", "reason": None}}


def test_a_model_that_cant_be_loaded_is_named(long_model: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(long_model, broken)
    (broken / "model.safetensors").write_bytes(b"nothing")
    running = Thread(Settings.create(model=str(broken), database=str(tmp_path / "glm.db")))
    try:
        eventually(lambda: running.service.state == "failed", "the model is given up")
        assert running.get("/healthz").status_code == 200
        answer = running.get("/readyz")
        assert answer.status_code == 503 and answer.json()["status"] == "failed" and answer.json()["reason"]
        info = running.get("/api/info").json()
        assert (info["ready"], info["state"]) == (False, "failed") and info["limits"] is None
    finally:
        running.stop()


def test_info_tells_what_a_client_needs(server: Thread) -> None:
    info = server.get("/api/info").json()
    assert (info["ready"], info["state"], info["model"]) == (True, "ready", "tiny")
    assert info["max_new_tokens"] == info["limits"]["max_new_tokens"] == 4095
    assert info["limits"]["positions"] == 4096 and info["limits"]["slots"] == 16
    assert info["chat_format"]["name"] == "question-answer"
    assert info["defaults"]["temperature"] == 1.0
    assert set(info["notice"]) == {"en", "zh"}
    assert info["errors"]["queue_full"]["retry"] is True
    assert set(info["fingerprint"]) == {"model", "weights_hash", "precision", "device", "version", "sampler"}


def test_every_kind_of_error_has_its_sentence() -> None:
    raised = set(engine_errors.KINDS) | set(storage_errors.KINDS)
    assert raised <= set(errors.TABLE)
    for kind, entry in errors.TABLE.items():
        assert entry.en.endswith(".") and entry.zh.endswith("。"), kind
        assert 400 <= entry.status < 600 and 1000 <= entry.close < 5000


def test_an_unexpected_error_is_an_incident_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    words = "what a visitor typed"
    try:
        raise RuntimeError(words)
    except RuntimeError as error:
        told = errors.problem(error)
    assert told.kind == "internal" and words not in told.message
    number = told.message.rpartition("Incident ")[2].rstrip(".")
    assert number in caplog.text and "test_api.py" in caplog.text and words not in caplog.text


@pytest.mark.parametrize(
    "method, path, status, kind, field",
    [
        ("GET", "/api/nothing", 404, "not_found", None),
        ("GET", "/api/", 404, "not_found", None),
        ("POST", "/api/info", 405, "method_not_allowed", None),
        ("GET", "/api/feedback", 405, "method_not_allowed", None),
        ("GET", "/api/runs/none", 404, "not_found", None),
        ("GET", "/api/conversations/none", 404, "not_found", None),
        ("GET", "/api/conversations?limit=0", 422, "bad_request", "limit"),
        ("GET", "/api/conversations?limit=many", 422, "bad_request", "limit"),
        ("GET", "/api/conversations?after=x", 404, "not_found", None),
    ],
)
def test_errors_are_json(server: Thread, method: str, path: str, status: int, kind: str, field: str | None) -> None:
    answer = httpx.request(method, server.http + path, timeout=PATIENCE)
    assert answer.status_code == status
    assert (answer.json()["error"]["kind"], answer.json()["error"].get("field")) == (kind, field)


def test_a_run_is_its_visitors_alone(server: Thread, visit: tuple[dict[str, str], dict]) -> None:
    cookie, done = visit
    run = server.get(f"/api/runs/{done['run']}", headers=cookie).json()
    assert (run["id"], run["status"], run["output"], run["seed"]) == (done["run"], "done", done["text"], 1)
    assert run["prompt"] == CHAT["messages"] and run["fingerprint"] == done["fingerprint"]
    (blank,) = run["blanks"]
    assert blank["kind"] == "[gMASK]" and len(blank["ids"]) == len(blank["logprobs"]) == done["usage"]["new_tokens"]
    assert server.get(f"/api/runs/{done['run']}").status_code == 404
    assert server.get(f"/api/runs/{done['run']}", headers={"Cookie": "glm_visitor=" + "A" * 32}).status_code == 404


async def test_conversations_are_listed_for_their_visitor(server: Thread) -> None:
    async with Client(server) as client:
        started = [(await client.run(CHAT))[0]["conversation"] for _ in range(3)]
        await client.run({"type": "fill", "text": "a [MASK]", "parameters": {"max_new_tokens": 1}})
        cookie = {"Cookie": client.cookie or ""}
    listed = server.get("/api/conversations?kind=chat&limit=2", headers=cookie).json()
    assert [row["id"] for row in listed["conversations"]] == started[:0:-1]
    assert listed["conversations"][0]["title"] == "Hello"
    rest = server.get("/api/conversations", params={"kind": "chat", "after": listed["next"]}, headers=cookie).json()
    assert ([row["id"] for row in rest["conversations"]], rest["next"]) == (started[:1], None)
    one = server.get(f"/api/conversations/{started[0]}", headers=cookie).json()
    assert [run["status"] for run in one["runs"]] == ["done"]
    assert server.get(f"/api/conversations/{started[0]}").status_code == 404
    assert server.get("/api/conversations").json() == {"conversations": [], "next": None}


async def test_conversations_are_found_renamed_and_deleted(server: Thread, database: Path) -> None:
    async with Client(server) as client:
        chats = []
        for said in ("Hello", "About 100% of Éire", "你好，世界"):
            message = CHAT | {"messages": [{"role": "user", "content": said}]}
            chats.append((await client.run(message))[0]["conversation"])
        cookie = {"Cookie": client.cookie or ""}

    def found(words: str) -> list[str]:
        listed = server.get("/api/conversations", params={"q": words}, headers=cookie).json()
        return [row["id"] for row in listed["conversations"]]

    [(answer,)] = rows(database, "SELECT output FROM run WHERE conversation_id = ?", chats[0])
    assert chats[0] in found("HELLO") and found("100%") == [chats[1]] and found("世界") == [chats[2]]
    assert chats[0] in found(answer[:20].upper()) if answer.strip() else True
    assert found("0%0") == [] and found("_") == [] and set(found("")) == set(chats)
    assert server.get("/api/conversations", params={"q": "世界"}).json()["conversations"] == []
    assert server.get("/api/conversations", params={"q": "x" * 201}, headers=cookie).status_code == 422

    def change(method: str, number: int, headers: dict[str, str], **body: object) -> httpx.Response:
        address = f"{server.http}/api/conversations/{chats[number]}"
        return httpx.request(method, address, json=body or None, headers=headers, timeout=PATIENCE)

    assert change("PATCH", 0, cookie, title="  Greetings 问候 ").json() == {"id": chats[0], "title": "Greetings 问候"}
    assert found("问候") == [chats[0]]
    for title, status in (("", 422), (" ", 422), ("x" * 201, 422), (7, 422)):
        refused = change("PATCH", 0, cookie, title=title)
        assert (refused.status_code, refused.json()["error"]["field"]) == (status, "title")
    stranger = {"Cookie": "glm_visitor=" + "A" * 32}
    for method, body in (("PATCH", {"title": "mine"}), ("DELETE", {})):
        assert change(method, 0, stranger, **body).status_code == 404
        assert change(method, 0, cookie | {"Origin": "http://evil.example"}, **body).status_code == 403
    assert change("DELETE", 0, cookie).status_code == 204
    assert change("DELETE", 0, cookie).status_code == 404
    assert found("问候") == [] and set(found("")) == set(chats[1:])
    assert rows(database, "SELECT prompt, output FROM run WHERE conversation_id = ?", chats[0]) == [(None, None)]


def test_feedback_is_kept_changed_and_taken_back(
    server: Thread, database: Path, visit: tuple[dict[str, str], dict]
) -> None:
    cookie, done = visit

    def send(**body: object) -> httpx.Response:
        body = {"run": done["run"], **body}
        return httpx.post(server.http + "/api/feedback", json=body, headers=cookie, timeout=PATIENCE)

    query = "SELECT rating, comment FROM feedback WHERE run_id = ?"
    assert send(rating=1).json() == {"run": done["run"], "rating": 1, "comment": ""}
    assert send(comment="不错").json()["comment"] == "不错"
    assert rows(database, query, done["run"]) == [(1, "不错")]
    assert send(rating=0).json()["rating"] == 0
    assert rows(database, query, done["run"]) == [(None, "不错")]
    for body, field in (
        ({"rating": 2}, "rating"),
        ({}, "rating"),
        ({"stars": 1}, "stars"),
        ({"comment": "x" * 5001}, "comment"),
    ):
        refused = send(**body)
        assert (refused.status_code, refused.json()["error"]["field"]) == (422, field)


def test_feedback_needs_this_site_and_json(server: Thread, database: Path, visit: tuple[dict[str, str], dict]) -> None:
    cookie, done = visit
    body = json.dumps({"run": done["run"], "rating": 1})
    json_type = {"Content-Type": "application/json"}

    def send(headers: dict[str, str], content: str = body) -> httpx.Response:
        return httpx.post(server.http + "/api/feedback", content=content, headers=headers, timeout=PATIENCE)

    assert send(cookie | json_type | {"Origin": "http://evil.example"}).status_code == 403
    assert send(cookie | {"Content-Type": "text/plain"}).status_code == 422
    assert send(cookie | json_type, "{").json()["error"]["kind"] == "bad_request"
    assert send(cookie | json_type, json.dumps({"comment": "x" * 200_000})).status_code == 413
    assert send(json_type).status_code == 404, "somebody else's run"
    assert rows(database, "SELECT * FROM feedback WHERE run_id = ?", done["run"]) == []
    assert send(cookie | json_type | {"Origin": server.http}).status_code == 200


async def test_the_cost_is_told_before_anything_is_sent(server: Thread, database: Path) -> None:
    # The server has a measured pace after its first answers.
    fill = {
        "type": "fill",
        "text": "One [MASK] two [sMASK].",
        "parameters": {"max_new_tokens": 20, "min_new_tokens": 20},
    }
    async with Client(server) as client:
        done = (await client.run(fill))[-1]
        before = rows(database, "SELECT count(*) FROM run")

        def ask(**body: object) -> dict:
            answer = httpx.post(server.http + "/api/estimate", json=body, timeout=PATIENCE)
            assert answer.status_code == 200, answer.text
            return answer.json()

        told = ask(**fill)
        assert told.keys() == {"prompt_tokens", "positions", "new_tokens", "dropped_messages", "seconds", "queued"}
        assert (told["positions"], told["new_tokens"], told["dropped_messages"], told["queued"]) == (4096, 40, 0, 0)
        assert done["usage"]["new_tokens"] == 40 and told["prompt_tokens"] < done["usage"]["prompt_tokens"]
        assert told["seconds"] > 0
        # Its prompts are read more often, which may be less than the hundredths that are told.
        assert ask(**fill | {"order": "confident"})["seconds"] >= told["seconds"]
        assert ask(**fill | {"id": "x" * 16, "conversation": "none"})["new_tokens"] == 40  # the very message of a run
        assert ask(type="generate", text="Once upon a time")["new_tokens"] == 256
        # A conversation that doesn't fit, and long enough to be read beside the event loop.
        turns = [
            {"role": ("user", "assistant")[number % 2], "content": f"{number} " + "word " * 150} for number in range(41)
        ]
        told = ask(type="chat", messages=turns, parameters={"max_new_tokens": 5})
        assert told["dropped_messages"] > 0 and told["prompt_tokens"] + told["new_tokens"] <= told["positions"]
        events = await client.run({"type": "chat", "messages": turns, "parameters": {"max_new_tokens": 5}})
        [started] = [event for event in events if event["type"] == "started"]
        assert {name: started[name] for name in ("dropped_messages", "prompt_tokens")} == {
            name: told[name] for name in ("dropped_messages", "prompt_tokens")
        }
    assert rows(database, "SELECT count(*) FROM run") == [(before[0][0] + 1,)], "an estimate is no run"


@pytest.mark.parametrize(
    "body, status, kind, field, limit",
    [
        ({}, 422, "bad_request", "type", None),
        ([], 422, "bad_request", None, None),
        ({"type": "score", "text": "a [MASK]", "answers": ["b"]}, 422, "bad_request", "type", None),
        ({"type": "fill", "text": ""}, 422, "bad_request", "text", 1),
        ({"type": "fill", "text": "a [MASK]", "order": "right"}, 422, "bad_request", "order", None),
        ({"type": "fill", "text": "[MASK]" * 17, "order": "confident"}, 422, "bad_request", "text", 16),
        ({"type": "fill", "text": "a [MASK]", "parameters": {"temperature": 9}}, 422, "bad_request", None, 2),
        ({"type": "fill", "text": "a [NASK]", "parameters": {"max_new_tokens": 9999}}, 422, "bad_request", None, 4095),
        ({"type": "fill", "text": "a [xMASK]"}, 422, "unknown_mask", "text", None),
        ({"type": "generate", "text": "word " * 5000}, 422, "prompt_too_long", "text", 4095),
        ({"type": "chat", "messages": []}, 422, "bad_request", "messages", 1),
        ({"type": "generate", "text": "x" * 200_001}, 422, "bad_request", "text", 200_000),
        ({"type": "generate", "text": "x" * 1_000_000}, 413, "too_large", None, 1_000_000),
        ({"type": "generate", "text": "x" * 4_000_000}, 413, "too_large", None, 4_000_000),
    ],
)  # fmt: skip
def test_estimates_that_are_refused(
    server: Thread, body: object, status: int, kind: str, field: str | None, limit: int | None
) -> None:
    answer = httpx.post(server.http + "/api/estimate", json=body, timeout=PATIENCE)
    error = answer.json()["error"]
    assert (answer.status_code, error["kind"], error.get("limit")) == (status, kind, limit), error
    assert field is None or error["field"] == field


def test_an_estimate_needs_this_site_and_json(server: Thread) -> None:
    def send(headers: dict[str, str], content: bytes = b'{"type": "fill", "text": "a [MASK]"}') -> int:
        return httpx.post(server.http + "/api/estimate", content=content, headers=headers, timeout=PATIENCE).status_code

    json_type = {"Content-Type": "application/json"}
    assert send(json_type) == send(json_type | {"Origin": server.http}) == 200
    assert send(json_type | {"Origin": "http://evil.example"}) == 403
    assert send({"Content-Type": "text/plain"}) == 422
    assert send(json_type, b'{"type": "fill", "text": "\xff"}') == 422
    assert httpx.get(server.http + "/api/estimate", timeout=PATIENCE).status_code == 405


def test_only_a_few_long_texts_are_measured_at_the_same_time(server: Thread) -> None:
    task = Generate(type="generate", text="word " * 1000)

    async def ask_six() -> list:
        return await asyncio.gather(*(server.service.estimate(task) for _ in range(6)), return_exceptions=True)

    kinds = [getattr(told, "kind", "told") for told in server.call(ask_six())]
    assert sorted(kinds) == ["rate_limited"] * 2 + ["told"] * 4
    assert "rate_limited" not in [getattr(told, "kind", "told") for told in server.call(ask_six())][:4]


def test_before_anything_was_measured_there_are_no_seconds(long_model: Path, tmp_path: Path) -> None:
    running = Thread(Settings.create(model=str(long_model), database=str(tmp_path / "glm.db")))
    try:
        body = {"type": "generate", "text": "Hello"}
        first = httpx.post(running.http + "/api/estimate", json=body, timeout=PATIENCE)
        if first.status_code != 200:  # the model may be there already
            assert (first.status_code, first.json()["error"]["kind"]) == (503, "not_ready")
        running.wait_until_ready()
        told = httpx.post(running.http + "/api/estimate", json=body, timeout=PATIENCE).json()
        assert told["seconds"] is None and told["new_tokens"] == 256
    finally:
        running.stop()


async def test_the_order_of_filling_is_kept_with_the_run(server: Thread) -> None:
    fill = {"type": "fill", "text": "One [MASK] two [MASK].", "parameters": {"max_new_tokens": 4, "seed": 3}}
    async with Client(server) as client:
        events = await client.run(fill | {"order": "confident"})
        left = await client.run(fill | {"order": "left"})
        cookie = {"Cookie": client.cookie or ""}
    run = server.get(f"/api/runs/{events[0]['run']}", headers=cookie).json()
    assert run["parameters"] == {"max_new_tokens": 4, "order": "confident"} and run["status"] == "done"
    assert [blank["index"] for blank in run["blanks"]] == [0, 1]
    made = [(event["index"], event["text"]) for event in events if event["type"] == "blank"]
    assert sorted(made) == [(blank["index"], blank["text"]) for blank in run["blanks"]]
    run = server.get(f"/api/runs/{left[0]['run']}", headers=cookie).json()
    assert run["parameters"] == {"max_new_tokens": 4}


async def test_too_many_blanks_for_the_order_are_refused_before_there_is_a_run(server: Thread, database: Path) -> None:
    before = rows(database, "SELECT count(*) FROM run")
    async with Client(server) as client:
        await client.send({"type": "fill", "id": "many", "text": "[MASK]" * 17, "order": "confident"})
        error = await client.receive()
        await client.send({"type": "fill", "text": "[MASK]", "order": "confident", "parameters": {"num_beams": 2}})
        beams = await client.receive()
    assert (error["type"], error["run"], error["id"], error["kind"]) == ("error", None, "many", "bad_request")
    assert (error["field"], error["limit"]) == ("text", 16)
    assert (beams["type"], beams["run"], beams["field"]) == ("error", None, "order")
    assert rows(database, "SELECT count(*) FROM run") == before


def test_pages_are_served_with_care(server: Thread) -> None:
    script = server.get("/static/socket.js")
    assert script.status_code == 200 and "javascript" in script.headers["content-type"]
    assert script.headers["cache-control"] == "no-cache"
    again = server.get("/static/socket.js", headers={"If-None-Match": script.headers["etag"]})
    assert again.status_code == 304
    assert server.get("/favicon.ico").status_code in (200, 204)
    assert server.get("/api/conversations").headers["cache-control"] == "private, no-cache"
    assert (
        server.get("/api/nothing", headers={"Cookie": "glm_visitor=" + "A" * 32}).headers["cache-control"] == "no-store"
    )
    for path in ("/healthz", "/api/info", "/api/nothing", "/static/socket.js"):
        headers = server.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert "frame-ancestors 'self'" in headers["content-security-policy"]
        assert "server" not in headers
    assert server.get("/static/../app/main.py").status_code == 404


def test_the_schema_names_every_route(server: Thread) -> None:
    paths = server.get("/api/openapi.json").json()["paths"]
    own = {
        "/healthz",
        "/readyz",
        "/api/info",
        "/api/runs/{run}",
        "/api/conversations",
        "/api/feedback",
        "/api/estimate",
    }
    assert own <= set(paths)
