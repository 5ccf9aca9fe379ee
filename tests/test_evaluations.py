"""Evaluations begun under /admin: a real server that is asked by a real evaluator, from start to history and report."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from app.admin.access import key_hash, new_key
from app.admin.evaluating import report_policy
from app.evaluation_log import EvaluationLog
from app.evaluations import ENDED_UNSAID, KEY_LABEL, NAME
from app.settings import Settings
from storage import Record
from tests import databases
from tests.databases import refused
from tests.server import PATIENCE, Thread, eventually, serving

pytest_plugins = ("tests.server",)
address, record = databases.address, databases.record

COLA, LAMBADA, PTB = "bloom/glue_cola.yaml", "lambada/lambada.yaml", "language-modeling/ptb.yaml"
OFFERED = [COLA, "lambada/lambada-unidirectional.yaml", LAMBADA, PTB]
MANY = 6000  # rows that nobody waits for


def write_rows(data: Path, many: int = MANY) -> None:
    """Made-up rows of three tasks; those of the last can't be read."""
    grammar, novel, text = data / "bloom" / "glue_cola", data / "lambada" / "lambada", data / "ptbdataset"
    for folder in (grammar, novel, text):
        folder.mkdir(parents=True)
    rows = [{"sentence": f"The sea is {word}.", "label": "acceptable"} for word in ("red", "old", "wide", "of of")]
    (grammar / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = json.dumps({"inputs_pretokenized": "The house was red and", "targets_pretokenized": ["old"]})
    (novel / "test.jsonl").write_text((row + "\n") * many)
    (text / "ptb.test.txt").write_bytes(b"\xff\xfe no text")


class Desk:
    """A program of a member, by a key of theirs."""

    def __init__(self, server: Thread, role: str = "admin") -> None:
        record, key = server.service.record, new_key()
        self.id = server.call(record.create_staff(f"{role} {key[:9]}", role, None)).id
        server.call(record.add_key(key_hash(key), self.id, "key"))
        headers = {"Authorization": f"Bearer {key}"}
        self.client = httpx.Client(base_url=f"{server.http}/api/admin", headers=headers, timeout=PATIENCE)

    def overview(self) -> dict[str, Any]:
        return self.client.get("/evaluations").raise_for_status().json()

    def start(self, *tasks: str, limit: int | None = None) -> str:
        answer = self.client.post("/evaluations", json={"tasks": tasks, "limit": limit})
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    def one(self, id: str) -> dict[str, Any]:
        [found] = [each for each in self.overview()["evaluations"] if each["id"] == id]
        return found

    def ended(self, id: str) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            found = self.one(id)
            return found if found["state"] != "running" else None

        return eventually(reached, "the evaluation ends")

    def asking(self, id: str) -> dict[str, Any]:
        """The evaluation when rows were answered."""

        def reached() -> dict[str, Any] | None:
            found = self.one(id)
            assert found["state"] == "running", found
            progress = found["progress"]
            return found if progress and progress["done"] and progress["seconds_left"] is not None else None

        return eventually(reached, "rows are answered")


@pytest.fixture(scope="module")
def settings(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("evaluations")
    write_rows(folder / "data")
    return Settings.create(
        model=str(tiny_model_folder),
        database=str(folder / "glm.db"),
        training_folder=str(folder / "training"),
        evaluation_data=str(folder / "data"),
    )


@pytest.fixture(scope="module")
def measured(settings: Settings) -> Iterator[Thread]:
    with serving(settings) as running:
        yield running


@pytest.fixture(scope="module")
def desk(measured: Thread) -> Desk:
    return Desk(measured)


def process_of(server: Thread, id: str) -> psutil.Process:
    def started() -> psutil.Process | None:
        process = server.call(server.service.record.get_evaluation(NAME, id)).parameters.get("process")
        return process and psutil.Process(process["pid"])

    return eventually(started, "it has a process")


def test_from_the_start_to_the_history(measured: Thread, desk: Desk) -> None:
    found = desk.overview()
    assert [task["file"] for task in found["tasks"]] == OFFERED and found["data"]
    assert not found["report"] and desk.client.get("/evaluations/report").status_code == 404
    id = desk.start(COLA, LAMBADA, limit=3)
    again = desk.client.post("/evaluations", json={"tasks": [COLA]})
    assert again.status_code == 409 and "measured already" in again.json()["error"]["message"]
    done = desk.ended(id)
    assert (done["state"], done["error"], done["version"]) == ("done", None, found["current"]["id"])
    grammar, novel = done["results"]
    assert (grammar["name"], grammar["limit"], novel["limit"]) == ("glue_cola", 3, 3)
    [row] = grammar["rows"]
    assert (row["group"], row["metric"], row["rows"]) == ("validation", "Accuracy", 9) and 0 <= row["value"] <= 100
    assert row["published"][0]["value"] == 57.6 and row["published"][0]["origin"]

    assert measured.call(measured.service.record.list_keys(desk.id))[0].label != KEY_LABEL  # taken back
    assert not list((measured.service.evaluations.folder / "runs").iterdir())
    page = desk.client.get("/evaluations/report")
    assert "published, not measured" in page.text and "glue_cola" in page.text
    policy = page.headers["content-security-policy"]
    assert policy == report_policy(page.text) and "default-src 'none'" in policy and "unsafe" not in policy
    actions = [one.action for one in measured.call(measured.service.record.list_audit(limit=5)).rows]
    assert "start evaluation" in actions


def test_progress_stop_and_going_on(measured: Thread, desk: Desk) -> None:
    id = desk.start(LAMBADA)
    running = desk.asking(id)
    progress = running["progress"]
    assert (progress["task"], progress["number"], progress["tasks"]) == ("LAMBADA", 1, 1)
    assert progress["total"] == MANY and progress["seconds_left"] > 0
    record = measured.service.record
    [folder] = (measured.service.evaluations.folder / "runs").iterdir()
    assert stat.S_IMODE((folder / "key").stat().st_mode) == 0o600 and stat.S_IMODE(folder.stat().st_mode) == 0o700
    key = (folder / "key").read_text()
    assert key not in " ".join(process_of(measured, id).cmdline())
    assert measured.call(record.staff_of_key(key_hash(key), "key")).id == desk.id
    assert desk.client.post(f"/evaluations/{id}/stop").status_code == 200
    stopped = desk.ended(id)
    assert stopped["state"] == "stopped" and stopped["error"] is None and stopped["progress"]["done"]
    assert measured.call(record.staff_of_key(key_hash(key), "key")) is None and not folder.exists()
    assert desk.client.post(f"/evaluations/{id}/stop").status_code == 409

    id = desk.start(LAMBADA)  # goes on with what is there
    assert desk.asking(id)["progress"]["done"] > stopped["progress"]["done"]
    os.kill(process_of(measured, id).pid, signal.SIGKILL)
    failed = desk.ended(id)
    assert (failed["state"], failed["error"]) == ("failed", ENDED_UNSAID)


def test_rows_that_cannot_be_read_are_said(measured: Thread, desk: Desk, settings: Settings) -> None:
    failed = desk.ended(desk.start(PTB, COLA, limit=1))
    assert failed["state"] == "failed" and "Penn Treebank" in failed["error"] and "can't be read" in failed["error"]
    assert settings.evaluation_data not in failed["error"] and [one["name"] for one in failed["results"]] == [
        "glue_cola"
    ]
    assert not any("Traceback" in line or line.startswith("{") for line in failed["log"])


def test_roles(measured: Thread, desk: Desk) -> None:
    assert httpx.get(f"{measured.http}/api/admin/evaluations").status_code == 401
    assert httpx.get(f"{measured.http}/api/admin/evaluations/report").status_code == 401
    reviewer = Desk(measured, "reviewer")
    assert reviewer.overview()["tasks"] and reviewer.client.get("/evaluations/report").status_code == 200
    assert reviewer.client.post("/evaluations", json={"tasks": [COLA]}).status_code == 403
    assert reviewer.client.post("/evaluations/any/stop").status_code == 403
    assert desk.client.post("/evaluations/any/stop").status_code == 404


@pytest.mark.parametrize(
    "body, status, field",
    [
        ({"tasks": []}, 422, "tasks"),
        ({"tasks": [COLA], "limit": 0}, 422, "limit"),
        ({"tasks": ["mmlu/mmlu.yaml"]}, 422, "tasks"),
        ({"tasks": ["../../evil.yaml"]}, 422, "tasks"),
        ({"tasks": [COLA], "out": "/"}, 422, "out"),
    ],
)
def test_mistakes_name_their_field(desk: Desk, body: dict[str, Any], status: int, field: str) -> None:
    answer = desk.client.post("/evaluations", json=body)
    assert answer.status_code == status and answer.json()["error"]["field"] == field, answer.text


@pytest.mark.heavy
def test_one_that_vanished_while_the_server_was_away(settings: Settings, measured: Thread, desk: Desk) -> None:
    """The last one on the shared server, which it ends: the evaluator lives on, until it is killed."""
    id = desk.start(LAMBADA)
    process = process_of(measured, id)
    measured.stop()
    assert process.is_running()
    process.send_signal(signal.SIGKILL)
    second = Thread(settings)
    try:
        second.wait_until_ready()
        assert Desk(second).ended(id)["error"] == ENDED_UNSAID
    finally:
        second.stop()


async def test_what_was_measured_is_no_comparison(record: Record) -> None:
    """Both are evaluations of a version; the training page shows comparisons alone."""
    version = await record.ensure_model_version("hash", "base", {})
    staff = await record.create_staff("Ann", "admin", None)
    how = {"other": None, "training_run": None, "parameters": {}}
    compared = await record.create_evaluation("comparison", version, by=None, **how)
    measured = await record.create_evaluation(NAME, version, by=staff.id, **how)
    assert await refused(record.create_evaluation(NAME, version, by=None, **how)) == "conflict"
    assert [entry.evaluation.id for entry in await record.list_versions()] == [compared.id]
    [entry] = await record.list_evaluations(NAME)
    assert (entry.evaluation.id, entry.version, entry.by) == (measured.id, "base", "ann")
    assert await refused(record.get_evaluation(NAME, compared.id)) == "not_found"


def test_a_log_is_read_as_it_comes(tmp_path: Path) -> None:
    path, now = tmp_path / "log.txt", [0.0]
    log = EvaluationLog(path, lambda: now[0])
    log.read()
    assert log.progress() is None
    tasks = [{"name": "one", "file": "one.yaml"}, {"name": "two", "file": "two.yaml"}]
    events = [{"event": "tasks", "tasks": tasks}, {"event": "task", "task": "two", "total": 50, "done": 10}]
    half = json.dumps({"event": "progress", "task": "two", "done": 20, "total": 50})
    path.write_text("".join(json.dumps(event) + "\n" for event in events) + half[:9])
    log.read()
    assert log.progress() == {"task": "two", "number": 2, "tasks": 2, "done": 10, "total": 50, "seconds_left": None}
    now[0] = 5.0
    with path.open("a") as file:
        file.write(half[9:] + '\nTraceback (most recent call last):\n  File "x"\nOSError: no room\n{"no": "event"}\n')
    log.read()
    assert log.progress() == {"task": "two", "number": 2, "tasks": 2, "done": 20, "total": 50, "seconds_left": 15}
    assert log.lines(5) == ["OSError: no room", '{"no": "event"}']
