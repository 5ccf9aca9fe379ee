"""/ws on a real server: streams, batches, cancel, resume, bad input, and what the database holds afterwards."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.server import LIVELY, Client, Thread, eventually, rows, text_of

pytest_plugins = ("tests.server",)

# Longer than any test lasts: it ends by being cancelled.
ENDLESS = {"type": "generate", "text": "Once", "parameters": {**LIVELY, "min_new_tokens": 4000, "max_new_tokens": 4000}}


def lively(text: str, seed: int, tokens: int = 40) -> dict[str, Any]:
    sampling = {**LIVELY, "seed": seed, "min_new_tokens": tokens, "max_new_tokens": tokens}
    return {"type": "generate", "id": f"seed {seed}", "text": text, "parameters": sampling}


async def test_tokens_come_one_by_one_and_add_up_to_the_answer(server: Thread, database: Path) -> None:
    async with Client(server) as client:
        events = await client.run(lively("The sea", seed=5))
    kinds = [event["type"] for event in events]
    assert kinds[0] == "accepted" and kinds[-2:] == ["blank", "done"]
    assert kinds.index("queued") < kinds.index("started") < kinds.index("delta")
    assert kinds.count("delta") > 20
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert len({event["run"] for event in events}) == 1
    accepted, blank, done = events[0], events[-2], events[-1]
    assert accepted["id"] == "seed 5" and accepted["conversation"]
    assert text_of(events) == blank["text"] == done["text"] == blank["alternatives"][0]["text"]
    assert len(blank["ids"]) == len(blank["tokens"]) == done["usage"]["new_tokens"] == 40
    assert (done["finish_reason"], done["seed"]) == ("length", 5)

    (row,) = rows(
        database,
        "SELECT status, mode, json_extract(prompt, '$'), output, seed, prompt_tokens, new_tokens, mean_logprob < 0, "
        "first_token_milliseconds > 0, total_milliseconds >= first_token_milliseconds, parameters, weights_hash "
        "FROM run JOIN model_version ON model_version.id = model_version_id WHERE run.id = ?",
        accepted["run"],
    )
    used = done["usage"]
    assert row[:7] == ("done", "generate", "The sea", done["text"], 5, used["prompt_tokens"], used["new_tokens"])
    assert row[7:10] == (1, 1, 1)
    assert json.loads(row[10]) == {**LIVELY, "min_new_tokens": 40, "max_new_tokens": 40}
    assert row[11] == done["fingerprint"]["weights_hash"]
    (stored,) = rows(
        database, "SELECT kind, text, length(token_ids), length(logprobs) FROM blank WHERE run_id = ?", accepted["run"]
    )
    assert stored == ("[gMASK]", blank["text"], 40 * 4, 40 * 4)


async def test_two_blanks_are_filled_in_place(server: Thread, database: Path) -> None:
    message = {
        "type": "fill",
        "id": 7,
        "text": "a [MASK] b [sMASK].",
        "parameters": {"max_new_tokens": 4, "alternatives": 2},
    }
    async with Client(server) as client:
        events = await client.run(message)
    blanks = [event for event in events if event["type"] == "blank"]
    assert [blank["index"] for blank in blanks] == [0, 1]
    assert all(len(blank["alternatives"]) == 2 for blank in blanks)
    first, second = blanks
    assert events[-1]["text"] == f"a {first['text'].lstrip(' ')} b {second['text'].lstrip(' ')}."
    assert [text_of(events, index) for index in (0, 1)] == [first["text"], second["text"]]
    kinds = rows(database, 'SELECT kind FROM blank WHERE run_id = ? ORDER BY "index"', events[0]["run"])
    assert kinds == [("[MASK]",), ("[sMASK]",)]


async def test_beams_are_told_and_kept(server: Thread, database: Path) -> None:
    parameters = {"num_beams": 3, "length_penalty": 0.7, "min_new_tokens": 6, "max_new_tokens": 9, "no_repeat_ngram": 2}
    async with Client(server) as client:
        events = await client.run({"type": "fill", "text": "a [MASK] b", "parameters": parameters})
    assert [event["type"] for event in events][-2:] == ["blank", "done"]
    searches = [event for event in events if event["type"] == "beams"]
    assert [search["final"] for search in searches] == [False] * (len(searches) - 1) + [True] and len(searches) > 1
    final, blank = searches[-1], events[-2]
    assert [beam["text"] for beam in final["beams"]] == [other["text"] for other in blank["alternatives"]]
    assert set(final["beams"][0]) == {"text", "logprob", "score", "ended"} and len(final["beams"]) == 3
    assert text_of(events) == blank["text"]
    query = "SELECT parameters, alternatives FROM run JOIN blank ON blank.run_id = run.id WHERE run.id = ?"
    (row,) = rows(database, query, events[0]["run"])
    assert json.loads(row[0]) == parameters
    assert [other["text"] for other in json.loads(row[1])] == [beam["text"] for beam in final["beams"]]


async def test_a_conversation_keeps_its_runs(server: Thread, database: Path) -> None:
    async with Client(server) as client:
        first = await client.run({"type": "chat", "messages": [{"role": "user", "content": "你好\n吗"}]})
        answer = first[-1]["text"]
        messages = [
            {"role": "user", "content": "你好\n吗"},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": "再见"},
        ]
        conversation = first[0]["conversation"]
        second = await client.run({"type": "chat", "messages": messages, "conversation": conversation})
        assert second[0]["conversation"] == conversation
    async with Client(server) as stranger:
        refused = await stranger.ask(
            {"type": "chat", "id": "x", "messages": messages[:1], "conversation": conversation}
        )
        assert (refused["type"], refused["kind"], refused["id"], refused["run"]) == ("error", "not_found", "x", None)
    assert rows(database, "SELECT kind, title FROM conversation WHERE id = ?", conversation) == [("chat", "你好 吗")]
    found = rows(database, "SELECT status, prompt FROM run WHERE conversation_id = ? ORDER BY created", conversation)
    assert [(status, json.loads(prompt)) for status, prompt in found] == [("done", messages[:1]), ("done", messages)]


async def test_own_words_are_scored(server: Thread) -> None:
    async with Client(server) as client:
        events = await client.run({"type": "score", "text": "a [MASK] c [MASK]", "answers": ["b", "d"]})
        assert [event["text"].strip() for event in events if event["type"] == "blank"] == ["b", "d"]
        assert all(event["alternatives"][0]["logprob"] < 0 for event in events if event["type"] == "blank")
        refused = await client.ask({"type": "score", "id": "n", "text": "a [MASK]", "answers": ["b", "d"]})
        assert (refused["kind"], refused["field"], refused["limit"], refused["id"]) == (
            "bad_request",
            "answers",
            1,
            "n",
        )


async def test_sixteen_at_once_are_one_batch_and_get_what_each_gets_alone(server: Thread) -> None:
    wanted = [lively(f"Story {number}:", seed=number, tokens=120) for number in range(16)]
    async with Client(server) as client:
        alone = [(await client.run(message))[-1] for message in wanted]
    assert len({done["text"] for done in alone}) == 16
    assert {done["usage"]["largest_batch"] for done in alone} == {1}

    async def one(message: dict[str, Any]) -> dict[str, Any]:
        async with Client(server) as client:
            return (await client.run(message))[-1]

    together = await asyncio.gather(*(one(message) for message in wanted))
    assert [done["text"] for done in together] == [done["text"] for done in alone]
    assert max(done["usage"]["largest_batch"] for done in together) == 16


async def test_cancel_ends_a_run_and_frees_its_slot(server: Thread, database: Path) -> None:
    async with Client(server) as client:
        await client.send(ENDLESS)
        events = await client.until("delta")
        await client.send({"type": "cancel", "run": events[0]["run"]})
        (rest,) = (await client.all()).values()
        assert rest[-1]["type"] == "cancelled"
        assert rest[-1]["text"] == text_of(events + rest)
        eventually(lambda: server.service.pool.status()["replicas"][0]["rows"] == 0, "the slot is free")
        # Cancelling what is over changes nothing, and the connection is as good as new.
        await client.send({"type": "cancel", "run": events[0]["run"]})
        assert (await client.run(lively("And", seed=1, tokens=3)))[-1]["type"] == "done"
    assert rows(database, "SELECT status, output FROM run WHERE id = ?", events[0]["run"]) == [
        ("cancelled", rest[-1]["text"])
    ]
    # What was made of it is kept like a whole answer's: tokens, their log-probabilities, counts and times.
    made = len([event for event in events + rest if event["type"] == "delta"])
    query = (
        "SELECT run.new_tokens, length(blank.token_ids) / 4, length(blank.logprobs) / 4, blank.text, total_milliseconds > 0"
        " FROM run JOIN blank ON blank.run_id = run.id WHERE run.id = ?"
    )
    ((new_tokens, ids, logprobs, text, timed),) = rows(database, query, events[0]["run"])
    assert new_tokens == ids == logprobs >= made > 0
    assert (text, timed) == (rest[-1]["text"], 1)


async def test_a_run_can_be_cancelled_before_it_has_begun(server: Thread) -> None:
    async with Client(server) as client:
        for _ in range(20):
            accepted = await client.ask(ENDLESS)
            assert accepted["type"] == "accepted"
            await client.send({"type": "cancel", "run": accepted["run"]})
            (rest,) = (await client.all()).values()
            assert rest[-1]["type"] == "cancelled"


async def test_a_dropped_connection_loses_nothing(server: Thread) -> None:
    message = lively("The river", seed=77, tokens=400)
    async with Client(server) as client:
        whole = (await client.run(message))[-1]["text"]
    async with Client(server) as client:
        await client.send(message)
        seen = await client.until("delta")
        client.socket.transport.abort()  # no farewell, as when a phone loses its network
    async with Client(server, client.cookie) as client:
        await client.send({"type": "resume", "run": seen[0]["run"], "after": seen[-1]["seq"]})
        (rest,) = (await client.all()).values()
        events = seen + rest
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert text_of(events) == events[-1]["text"] == whole
        # Also a run that has ended can be read again from the beginning.
        await client.send({"type": "resume", "run": seen[0]["run"], "after": 0})
        assert (await client.all()) == {seen[0]["run"]: events}


async def test_two_connections_follow_one_run(server: Thread) -> None:
    async with Client(server) as first:
        await first.send(lively("Both", seed=3, tokens=200))
        begun = await first.until("delta")
        async with Client(server, first.cookie) as second:
            await second.send({"type": "resume", "run": begun[0]["run"]})
            (one,), (two,) = (await first.all()).values(), (await second.all()).values()
    assert begun + one == two


async def test_another_visitor_can_neither_follow_nor_cancel_a_run(server: Thread) -> None:
    async with Client(server) as owner:
        await owner.send(ENDLESS)
        run = (await owner.until("delta"))[0]["run"]
        async with Client(server) as stranger:
            assert stranger.cookie != owner.cookie
            for message in (
                {"type": "resume", "run": run},
                {"type": "cancel", "run": run},
                {"type": "resume", "run": "none"},
            ):
                refused = await stranger.ask(message | {"id": "mine"})
                assert (refused["type"], refused["kind"], refused["id"]) == ("error", "not_found", "mine")
                assert (refused["run"], refused["seq"]) == (message["run"], 0)
        await owner.send({"type": "cancel", "run": run})
        (rest,) = (await owner.all()).values()
        assert rest[-1]["type"] == "cancelled" and text_of(rest), "it went on until its owner ended it"


async def test_the_same_request_sent_twice_is_one_run(server: Thread) -> None:
    """A page that lost its connection before it was told its run's number asks again."""
    message = lively("Again", seed=9, tokens=30) | {"id": "0b7a5f1e-8a53-4b5e-9d2f-6f2f0c1d2e3f"}
    async with Client(server) as client:
        first = await client.run(message)
    async with Client(server, client.cookie) as client:
        assert await client.run(message) == first
        other = await client.run(message | {"text": "Another"})
        assert other[0]["run"] != first[0]["run"]
    async with Client(server) as stranger:
        assert (await stranger.run(message))[0]["run"] != first[0]["run"]


GOOD = {"type": "generate", "id": "me", "text": "Hello"}
BAD: dict[str, tuple[Any, str, str | None, Any]] = {
    "not JSON": ("hello", "bad_request", None, None),
    "binary": (b"\x00\x01", "bad_request", None, None),
    "a list": ("[1]", "bad_request", None, None),
    "nested deeply": ("[" * 200_000, "bad_request", None, None),
    "no type": ({"id": "me"}, "bad_request", "type", None),
    "unknown type": (GOOD | {"type": "sing"}, "bad_request", "type", None),
    "unknown field": (GOOD | {"colour": 1}, "bad_request", "colour", None),
    "unknown parameter": (GOOD | {"parameters": {"heat": 1}}, "bad_request", "parameters.heat", None),
    "missing text": ({"type": "fill", "id": "me"}, "bad_request", "text", None),
    "empty text": (GOOD | {"text": ""}, "bad_request", "text", 1),
    "half a character": ('{"type":"generate","id":"me","text":"\\ud800"}', "bad_request", "text", None),
    "temperature hot": (GOOD | {"parameters": {"temperature": "hot"}}, "bad_request", "parameters.temperature", None),
    "temperature 3": (GOOD | {"parameters": {"temperature": 3}}, "bad_request", "parameters.temperature", 2),
    "temperature true": (GOOD | {"parameters": {"temperature": True}}, "bad_request", "parameters.temperature", None),
    "NaN": ('{"type":"generate","id":"me","text":"a","parameters":{"temperature":NaN}}', "bad_request", None, None),
    "infinity": (
        '{"type":"generate","id":"me","text":"a","parameters":{"top_p":1e999}}',
        "bad_request",
        "parameters.top_p",
        None,
    ),
    "top_k over the vocabulary": (GOOD | {"parameters": {"top_k": 10**9}}, "bad_request", "parameters.top_k", None),
    "too many new tokens": (
        GOOD | {"parameters": {"max_new_tokens": 99999}},
        "bad_request",
        "parameters.max_new_tokens",
        4095,
    ),
    "alternatives 9": (GOOD | {"parameters": {"alternatives": 9}}, "bad_request", "parameters.alternatives", 8),
    "beams 17": (GOOD | {"parameters": {"num_beams": 17}}, "bad_request", "parameters.num_beams", 16),
    "beams hot": (
        GOOD | {"parameters": {"num_beams": 2, "temperature": 0.5}},
        "bad_request",
        "parameters.temperature",
        None,
    ),
    "beams and alternatives": (
        GOOD | {"parameters": {"num_beams": 2, "alternatives": 2}},
        "bad_request",
        "parameters.alternatives",
        None,
    ),
    "penalty without beams": (
        GOOD | {"parameters": {"length_penalty": 1.0}},
        "bad_request",
        "parameters.length_penalty",
        None,
    ),
    "seed beyond JavaScript": (GOOD | {"parameters": {"seed": 2**53}}, "bad_request", "parameters.seed", 2**53 - 1),
    "a system message": (
        {"type": "chat", "messages": [{"role": "system", "content": "x"}]},
        "bad_request",
        "messages.0.role",
        None,
    ),
    "assistant last": (
        {"type": "chat", "messages": [{"role": "assistant", "content": "x"}]},
        "bad_request",
        "messages",
        None,
    ),
    "unknown mask": (GOOD | {"type": "fill", "text": "a [XMASK] b"}, "unknown_mask", "text", None),
    "longer than the model": (GOOD | {"text": "ab cd " * 5000}, "prompt_too_long", "text", 4095),
    "far longer": (GOOD | {"type": "fill", "text": "word " * 39_999}, "prompt_too_long", "text", 4095),
    "text over the limit": (GOOD | {"text": "a" * 200_001}, "bad_request", "text", 200_000),
    "ten megabytes": (GOOD | {"text": "a" * 10_000_000}, "too_large", None, 1_000_000),
    "resume before the first": ({"type": "resume", "id": "me", "run": "x", "after": -1}, "bad_request", "after", 0),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_input_is_answered_and_nothing_else_suffers(server: Thread, name: str, database: Path) -> None:
    message, kind, field, limit = BAD[name]
    before = rows(database, "SELECT count(*) FROM run")
    async with Client(server) as client:
        refused = await client.ask(message)
        assert (refused["type"], refused["run"], refused["seq"]) == ("error", None, 0)
        assert (refused["kind"], refused.get("field")) == (kind, field)
        if limit is not None:
            assert refused["limit"] == limit
            assert str(limit) in refused["message"].replace(",", "")
        assert refused["message"].endswith(".") and "Traceback" not in refused["message"]
        if isinstance(message, dict) and "id" in message:
            assert refused["id"] == "me"
        assert rows(database, "SELECT count(*) FROM run") == before, "what was refused is no run"
        assert (await client.run(lively("Still here", seed=1, tokens=2)))[-1]["type"] == "done"


async def test_a_hundred_messages_at_once_each_get_their_own_answer(server: Thread, database: Path) -> None:
    def message(number: int) -> Any:
        if number % 10 == 3:
            return GOOD | {"id": number, "parameters": {"temperature": "hot"}}
        return lively(f"Number {number}", seed=number, tokens=5) | {"id": number}

    async with Client(server) as client:
        await asyncio.gather(*(client.send(message(number)) for number in range(100)))
        runs = await client.all(100)
    refused = {key for key in runs if key.startswith("refused ")}
    assert refused == {f"refused {number}" for number in range(100) if number % 10 == 3}
    accepted = {events[0]["id"]: events for key, events in runs.items() if key not in refused}
    assert sorted(accepted) == [number for number in range(100) if number % 10 != 3]
    for events in accepted.values():
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert [event["type"] for event in events if event["type"] in ("done", "cancelled", "error")] == ["done"]
    marks = ",".join("?" * len(accepted))
    found = rows(
        database, f"SELECT status FROM run WHERE id IN ({marks})", *(events[0]["run"] for events in accepted.values())
    )
    assert found == [("done",)] * 90


async def test_a_client_that_does_not_read_holds_up_nobody(server: Thread) -> None:
    """Its socket's buffers fill; the others' events go on, and its own wait for it in the run's log."""
    async with Client(server, max_queue=1) as lazy:
        first = (await lazy.ask(ENDLESS))["run"]
        runs = [first]
        for _ in range(7):
            await lazy.send(ENDLESS | {"parameters": ENDLESS["parameters"] | {"logprobs": 20}})
        async with Client(server) as other:
            for seed in range(3):
                assert (await other.run(lively("Busy", seed=seed, tokens=50)))[-1]["type"] == "done"
        while len(runs) < 8:
            event = await lazy.receive()
            if event["type"] == "accepted":
                runs.append(event["run"])
        for run in runs:
            await lazy.send({"type": "cancel", "run": run})
        ended = await lazy.all(8)
        assert {events[-1]["type"] for events in ended.values()} <= {"cancelled", "done"}
        for events in ended.values():
            numbers = [event["seq"] for event in events]
            assert numbers == list(range(numbers[0], numbers[-1] + 1)), "each event once and in order"


async def test_ids_of_clients_come_back_as_they_were(server: Thread) -> None:
    async with Client(server) as client:
        for id in (0, -5, "", "中文", None):
            assert (await client.run(lively("Id", seed=1, tokens=1) | {"id": id}))[0]["id"] == id
        for id in (1.5, True, [], "x" * 129):
            assert (await client.ask(lively("Id", seed=1, tokens=1) | {"id": id}))["kind"] == "bad_request"


async def test_seeds_are_drawn_reported_and_repeatable(server: Thread) -> None:
    message = lively("Luck", seed=0, tokens=20)
    del message["parameters"]["seed"]
    async with Client(server) as client:
        first, second = [(await client.run(message))[-1] for _ in range(2)]
        assert first["seed"] != second["seed"] and first["text"] != second["text"]
        again = await client.run(message | {"parameters": message["parameters"] | {"seed": first["seed"]}})
        assert again[-1]["text"] == first["text"]


async def test_a_run_that_nobody_follows_is_cancelled_after_its_grace_time(
    strict: Thread, strict_database: Path
) -> None:
    async with Client(strict) as client:
        await client.send(ENDLESS)
        run = (await client.until("delta"))[0]["run"]
    query = "SELECT status, output <> '' FROM run WHERE id = ?"
    eventually(lambda: rows(strict_database, query, run) == [("cancelled", 1)], "the run is cancelled and written down")


async def test_a_run_no_longer_in_memory_is_answered_from_the_record(strict: Thread) -> None:
    async with Client(strict) as client:
        done = (await client.run(lively("Remember", seed=4, tokens=6)))[-1]
        recalled = await client.ask({"type": "resume", "run": done["run"], "after": 3})
        assert (recalled["type"], recalled["seq"], recalled["recalled"]) == ("done", 4, True)
        for name in ("run", "text", "seed", "finish_reason", "fingerprint"):
            assert recalled[name] == done[name]
        assert recalled["usage"]["new_tokens"] == 6
    async with Client(strict) as stranger:
        assert (await stranger.ask({"type": "resume", "run": done["run"]}))["kind"] == "not_found"


async def test_one_visitor_cant_take_everything_and_a_full_queue_says_so(strict: Thread) -> None:
    """2 slots, a queue of 2, 4 runs a visitor at a time, over however many connections."""
    async with Client(strict) as greedy, Client(strict, greedy.cookie) as second, Client(strict) as other:
        runs = []
        for client, state in ((greedy, "delta"), (greedy, "delta"), (second, "queued"), (second, "queued")):
            await client.send(ENDLESS)
            event = await client.receive()
            while event["type"] != "accepted":
                event = await client.receive()
            runs.append(event["run"])
            while event["type"] != state or event["run"] != runs[-1]:
                event = await client.receive()
        await second.send(ENDLESS | {"id": "fifth"})
        refused = await second.receive()
        while refused["type"] != "error":
            refused = await second.receive()
        assert (refused["kind"], refused["limit"], refused["id"]) == ("rate_limited", 4, "fifth")
        assert refused["run"] is None and refused["retry_after_s"] > 0
        full = await other.run(ENDLESS)
        assert [event["type"] for event in full] == ["accepted", "error"]
        assert (full[-1]["kind"], full[-1]["limit"]) == ("queue_full", 2) and full[-1]["retry_after_s"] > 0
        for run in runs:
            await second.send({"type": "cancel", "run": run})
        assert {events[-1]["type"] for events in (await second.all(4)).values()} == {"cancelled"}
        assert (await other.run(lively("Room again", seed=1, tokens=2)))[-1]["type"] == "done"


async def test_the_socket_says_when_a_server_stops(long_model: Path, tmp_path: Path) -> None:
    from app.settings import Settings
    from tests.server import Thread

    path = tmp_path / "glm.db"
    running = Thread(Settings.create(model=str(long_model), database=str(path)))
    try:
        eventually(lambda: running.get("/healthz").status_code == 200, "the process answers")
        async with Client(running) as client:
            early = await client.ask(GOOD)
            assert (early["kind"], early["run"]) == ("not_ready", None) and early["retry_after_s"] > 0
            await asyncio.to_thread(running.wait_until_ready)
            await client.send(ENDLESS)
            run = (await client.until("delta"))[0]["run"]
            stopping = asyncio.create_task(asyncio.to_thread(running.stop))
            with pytest.raises(ConnectionClosed):
                while True:
                    await client.receive()
            assert client.socket.close_code == 1012
            await stopping
    finally:
        if running._thread.is_alive():
            running.stop()
    (row,) = rows(path, "SELECT status, error_kind, output <> '', finished IS NOT NULL FROM run WHERE id = ?", run)
    assert row == ("interrupted", "interrupted", 1, 1)
