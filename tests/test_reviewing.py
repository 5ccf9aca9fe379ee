"""The review desk's routes on a real server with a tiny model: queue, one run, review, fills, spans, who may, who was faster."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from app.admin.access import key_hash, new_key
from app.admin.span_context import readable, span_context
from storage.models import Run
from storage.review_tables import SpanCorrection
from tests.server import LIVELY, PATIENCE, Client, Thread, rows

pytest_plugins = ("tests.server",)

Ask = Callable[..., httpx.Response]


def member(server: Thread, role: str) -> tuple[Ask, str]:
    """A way to ask as a new member of staff, and their id."""
    key = new_key()

    async def add() -> str:
        row = await server.service.record.create_staff(f"{role} {secrets.token_hex(4)}", role, None)
        await server.service.record.add_key(key_hash(key), row.id, "key", label="test")
        return row.id

    id = server.call(add())
    client = httpx.Client(base_url=server.http, headers={"Authorization": f"Bearer {key}"}, timeout=PATIENCE)

    def ask(method: str, path: str, **body: Any) -> httpx.Response:
        return client.request(method, f"/api/admin{path}", json=body or None)

    return ask, id


@pytest.fixture(scope="module")
def reviewer(server: Thread) -> Iterator[tuple[Ask, str]]:
    yield member(server, "reviewer")


@pytest.fixture
async def run(server: Thread) -> str:
    """A finished chat of a visitor's, in a conversation of three."""
    async with Client(server) as client:
        conversation = None
        for words in ("Hello", "红色的 train", "And then?"):
            chat = {"type": "chat", "messages": [{"role": "user", "content": words}]}
            chat |= {"parameters": {"max_new_tokens": 12, "seed": 4, **LIVELY}, "conversation": conversation}
            events = await client.run(chat)
            conversation = events[0]["conversation"]
            if words.startswith("红"):
                id = events[0]["run"]
    return id


PATHS = [
    ("GET", "/runs"),
    ("GET", "/runs/count"),
    ("GET", "/runs/none"),
    ("PUT", "/runs/none/review"),
    ("POST", "/runs/none/fills"),
    ("POST", "/runs/none/spans"),
    ("DELETE", "/runs/none/spans/none?version=1"),
    ("GET", "/tags"),
    ("GET", "/facets"),
]


@pytest.mark.parametrize("method, path", PATHS)
def test_only_staff_comes_in(server: Thread, method: str, path: str) -> None:
    refused = httpx.request(method, f"{server.http}/api/admin{path}", timeout=PATIENCE, json={})
    assert (refused.status_code, refused.json()["error"]["kind"]) == (401, "login_needed")


def test_the_queue_is_filtered_and_paged(reviewer: tuple[Ask, str], run: str) -> None:
    ask, _ = reviewer
    page = ask("GET", f"/runs?ids={run}").json()
    (row,) = page["runs"]
    assert (row["id"], row["mode"], row["status"], row["prompt"], row["model"]) == (
        run,
        "chat",
        "done",
        "红色的 train",
        "tiny",
    )
    assert row["uncertainty"] > 0 and row["review_version"] == 0 and row["tags"] == [] and page["complete"]
    assert run in [
        row["id"] for row in ask("GET", "/runs?words=红色&modes=chat&order=uncertainty&limit=200").json()["runs"]
    ]
    assert ask("GET", "/runs?words=红色的飞机").json()["runs"] == []
    first = ask("GET", "/runs?limit=1").json()
    second = ask("GET", f"/runs?limit=1&after={first['next']}").json()
    assert ask("GET", f"/runs?limit=1&before={second['previous']}").json()["runs"] == first["runs"]
    counted = ask("GET", "/runs/count?modes=chat").json()
    assert counted["count"] >= 3 and counted["complete"] and not counted["capped"]
    facets = ask("GET", "/facets").json()
    assert "chat" in [one["value"] for one in facets["modes"]] and facets["models"][0]["name"] == "tiny"


@pytest.mark.parametrize(
    "path, status, field",
    [
        ("/runs?colour=red", 422, "colour"),
        ("/runs?limit=201", 422, "limit"),
        ("/runs?order=random", 422, "order"),
        ("/runs?rating_from=9", 422, "rating_from"),
        ("/runs?after=x", 404, None),
        ("/runs/count?order=newest&colour=red", 422, "colour"),
        ("/runs/none", 404, None),
    ],
)
def test_what_makes_no_sense_is_named(reviewer: tuple[Ask, str], path: str, status: int, field: str | None) -> None:
    answer = reviewer[0]("GET", path)
    assert (answer.status_code, answer.json()["error"].get("field")) == (status, field)


def test_a_run_with_all_that_is_kept_of_it(reviewer: tuple[Ask, str], run: str, server: Thread, database: Any) -> None:
    told = reviewer[0]("GET", f"/runs/{run}").json()
    assert told["run"]["prompt"] == [{"role": "user", "content": "红色的 train"}]
    assert told["run"]["parameters"]["max_new_tokens"] == 12 and told["run"]["seed"] == 4
    assert told["model_version"]["name"] == "tiny"
    (blank,) = told["blanks"]
    assert len(blank["tokens"]) == told["run"]["new_tokens"] and blank["text"] == told["run"]["output"]
    texts = "".join(token["text"] for token in blank["tokens"])
    assert texts.strip().startswith(blank["text"].strip())
    assert all(token["logprob"] <= 0 for token in blank["tokens"])
    around = told["conversation"]["runs"]
    assert [one["prompt"] for one in around] == ["Hello", "红色的 train", "And then?"]
    assert [one["current"] for one in around] == [False, True, False]
    assert told["review"] == {
        "version": 0,
        "status": "open",
        "rating": None,
        "flagged": False,
        "corrected": None,
        "note": "",
        "reviewer": None,
        "created": None,
        "updated": None,
        "tags": [],
    }
    assert (told["spans"], told["feedback"], told["votes"], told["datasets"]) == ([], [], [], [])
    assert rows(database, "SELECT action FROM audit_entry WHERE subject_id = ?", run) == [("read",)]


def test_a_review_is_saved_once(reviewer: tuple[Ask, str], run: str, server: Thread) -> None:
    ask, id = reviewer
    saved = ask("PUT", f"/runs/{run}/review", version=0, rating=4, tags=["Nice"], note="hm").json()
    assert (saved["review"]["version"], saved["review"]["rating"], saved["review"]["tags"]) == (1, 4, ["nice"])
    assert saved["review"]["reviewer"]["id"] == id
    other, _ = member(server, "admin")
    late = other("PUT", f"/runs/{run}/review", version=0, rating=1)
    assert (late.status_code, late.json()["error"]["kind"]) == (409, "conflict")
    assert late.json()["review"]["rating"] == 4 and late.json()["review"]["version"] == 1
    assert other("PUT", f"/runs/{run}/review", version=1, rating=None, status="done").json()["review"]["rating"] is None
    assert "nice" in [one["value"] for one in ask("GET", "/tags?q=NI").json()["tags"]]
    for body, field in (
        ({"version": 2}, "rating"),
        ({"version": 2, "rating": 9}, "rating"),
        ({"rating": 3}, "version"),
        ({"version": 2, "tags": ["a,b"]}, "tags"),
        ({"version": 2, "stars": 5}, "stars"),
        ({"version": 2, "note": "x" * 5001}, "note"),
    ):
        answer = ask("PUT", f"/runs/{run}/review", **body)
        assert (answer.status_code, answer.json()["error"].get("field")) == (422, field), body


def test_a_span_becomes_a_blank_and_a_correction(reviewer: tuple[Ask, str], run: str, database: Any) -> None:
    ask, id = reviewer
    output = ask("GET", f"/runs/{run}").json()["run"]["output"]
    before = rows(database, "SELECT count(*) FROM run WHERE client = 'review'")[0][0]
    asked = {"start": 1, "end": 4, "alternatives": 3, "max_new_tokens": 4}
    offer = ask("POST", f"/runs/{run}/fills", **asked).json()
    assert (offer["rejected"], offer["mask"]) == (output[1:4], "[MASK]")
    assert offer["text"] == f"问：红色的 train\n答：{output[0]}[MASK]{output[4:]}"
    fills = offer["fills"]
    assert 1 <= len(fills) <= 3 and len({fill["text"] for fill in fills}) == len(fills)
    logprobs = [fill["logprob"] for fill in fills]
    assert logprobs == sorted(logprobs, reverse=True) and sum(fill["share"] for fill in fills) == pytest.approx(1)
    assert fills[0]["probability"] == pytest.approx(math.exp(logprobs[0])) and offer["rejected_logprob"] < 0
    assert ask("POST", f"/runs/{run}/fills", **asked).json()["fills"] == fills, "the same each time"
    # Nothing of it is kept, and no visitor and no queue sees these runs.
    made = rows(database, "SELECT visitor, prompt, output, deleted IS NULL FROM run WHERE client = 'review'")[before:]
    assert made == [(f"staff:{id}", None, None, 0)] * 4
    assert ask("GET", "/runs?clients=review&limit=200").json()["runs"] == []

    chosen = fills[0]
    body = {"version": 0, "start": 1, "end": 4, "chosen": "instead", "source": "model"}
    body |= {"alternatives": [{"text": fill["text"], "logprob": fill["logprob"]} for fill in fills]}
    saved = ask("POST", f"/runs/{run}/spans", **body, logprob=chosen["logprob"])
    assert saved.status_code == 200, saved.text
    state = saved.json()
    (span,) = state["spans"]
    assert (span["rejected"], span["chosen"], span["text"]) == (output[1:4], "instead", offer["text"])
    assert span["id"] == state["span"] and len(span["alternatives"]) == len(fills)
    assert state["review"]["corrected"] == output[0] + "instead" + output[4:]

    # The end of the answer: what follows is open, and what was corrected stands before it already.
    end = len(output)
    offer = ask("POST", f"/runs/{run}/fills", start=end - 2, end=end, temperature=1.0, alternatives=2).json()
    assert offer["mask"] == "[gMASK]" and offer["text"].endswith(f"答：{output[0]}instead{output[4 : end - 2]}[gMASK]")
    typed = {"start": end - 2, "end": end, "chosen": "完", "source": "typed"}
    late = ask("POST", f"/runs/{run}/spans", version=0, **typed)
    assert late.status_code == 409 and len(late.json()["spans"]) == 1
    state = ask("POST", f"/runs/{run}/spans", version=1, **typed).json()
    assert state["review"]["corrected"] == output[0] + "instead" + output[4 : end - 2] + "完"
    overlap = ask("POST", f"/runs/{run}/spans", version=2, start=3, end=6, chosen="x", source="typed")
    assert (overlap.status_code, overlap.json()["error"]["field"]) == (422, "start")
    gone = ask("DELETE", f"/runs/{run}/spans/{span['id']}?version=2").json()
    assert gone["review"]["corrected"] == output[: end - 2] + "完" and len(gone["spans"]) == 1
    assert ask("DELETE", f"/runs/{run}/spans/{span['id']}?version=3").status_code == 404
    assert ask("DELETE", f"/runs/{run}/spans/{gone['spans'][0]['id']}?version=2").status_code == 409
    kept = [row["corrected"] for row in ask("GET", f"/runs?ids={run}").json()["runs"]]
    assert kept == [True]


@pytest.mark.parametrize(
    "body, field",
    [
        ({"start": 0, "end": 10_000}, "end"),
        ({"start": 3, "end": 2}, "end"),
        ({"start": -1, "end": 2}, "start"),
        ({"start": 0, "end": 2, "alternatives": 9}, "alternatives"),
        ({"start": 0, "end": 2, "temperature": 3}, "temperature"),
        ({"start": 0}, "end"),
    ],
)
def test_a_blank_must_lie_in_the_output(reviewer: tuple[Ask, str], run: str, body: dict[str, Any], field: str) -> None:
    answer = reviewer[0]("POST", f"/runs/{run}/fills", **body)
    assert (answer.status_code, answer.json()["error"].get("field")) == (422, field)


def test_the_context_of_a_span() -> None:
    span = SpanCorrection(start=0, end=3, chosen="A", rejected="The")
    chat = Run(
        mode="chat", prompt=[{"role": "user", "content": "[MASK] or [mask]?"}], output="The answer [gMASK] is 5."
    )
    context = span_context(chat, 22, 23, None)
    assert (context.text, context.mask) == ("问：____ or ____?\n答：The answer ____ is [MASK].", "[MASK]")
    assert span_context(chat, 22, 23, None, corrected=[span]).text.endswith("答：A answer ____ is [MASK].")
    assert span_context(chat, 22, 24, None).text.endswith(" is [gMASK]")
    complete = Run(mode="generate", prompt="Once [gMASK]", output="upon a time")
    assert span_context(complete, 0, 4, None).text == "Once [MASK] a time"
    filled = Run(mode="fill", prompt="a [MASK] c", output="a b c")
    assert span_context(filled, 2, 3, None).text == "a [MASK] c"


def test_a_context_that_is_too_long_keeps_what_is_near(server: Thread) -> None:
    tokenizer = server.service.served().tokenizer
    messages = [
        {"role": role, "content": f"{role} {number} " * 30} for number in range(9) for role in ("user", "assistant")
    ]
    output = "left " * 100 + "WRONG" + " right" * 100
    run = Run(mode="chat", prompt=[*messages, {"role": "user", "content": "the last question"}], output=output)
    for room in (2000, 500, 60):
        fits = readable(tokenizer, room)
        text = span_context(run, 500, 505, None, fits=fits).text
        assert fits(text) and text.count("[MASK]") == 1 and "left [MASK] right" in text
        assert room < 2000 or "the last question" in text
