"""Fine-tuning through the administrator's routes: real trainer, real processes, real weights put into service under a stream."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from app import processes
from app.admin.access import key_hash, new_key
from app.comparison import verdict
from app.settings import Settings
from app.training_plan import Options, make_plan
from storage import Record
from storage.training_tables import Dataset, DatasetRow
from tests.server import LIVELY, PATIENCE, Client, Thread, eventually, serving

pytest_plugins = ("tests.server",)

ROWS = [
    *(
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": "Blue birds."}]}
        for q in "abcdef"
    ),
    *({"text": f"{word} is [MASK].", "answers": ["good"]} for word in ("Tea", "Rain", "Bread", "Snow")),
]
TIMEOUT = 180.0  # a process that imports torch on a busy machine takes ten seconds, and there are several


async def add_dataset(record: Record, rows: list[dict[str, Any]] = ROWS, held_out: int = 2) -> str:
    """A frozen dataset, as storage/datasets.py leaves it; its own tests are tests/test_datasets.py."""
    id = secrets.token_hex(6)

    async def work(session: Any) -> None:
        values = {"name": id, "version": 1, "hash": id, "rows": len(rows), "filters": {}, "parameters": {}}
        session.add(Dataset(id=id, **values, created=record.clock(), created_by=None))
        await session.flush()
        for index, row in enumerate(rows):
            part = "held_out" if index < held_out else "train"
            session.add(DatasetRow(dataset_id=id, index=index, part=part, hash=f"{index}", content=row))

    await record.database.write(work)
    return id


class Desk:
    """An administrator's program, by a key of theirs."""

    def __init__(self, server: Thread) -> None:
        record, key = server.service.record, new_key()
        staff = server.call(record.create_staff(f"admin {key[:9]}", "admin", None))
        server.call(record.add_key(key_hash(key), staff.id, "key"))
        self._client = httpx.Client(
            base_url=f"{server.http}/api/admin", headers={"Authorization": f"Bearer {key}"}, timeout=PATIENCE
        )

    def get(self, path: str = "") -> dict[str, Any]:
        return self._said(self._client.get(f"/training{path}"))

    def post(self, path: str, body: dict[str, Any] | None = None, status: int = 200) -> dict[str, Any]:
        return self._said(self._client.post(f"/training{path}", json=body or {}), status)

    def _said(self, response: httpx.Response, status: int = 200) -> dict[str, Any]:
        assert response.status_code == status, response.text
        return response.json()

    def until(self, id: str, *states: str) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            run = self.get(f"/runs/{id}")
            assert run["state"] in (*states, "queued", "running", "stopping"), run
            return run if run["state"] in states else None

        return eventually(reached, f"the training is {states}", TIMEOUT)

    def compared(self, version: int) -> dict[str, Any]:
        def done() -> dict[str, Any] | None:
            [found] = [one for one in self.get()["versions"] if one["id"] == version]
            evaluation = found["evaluation"]
            return evaluation if evaluation and evaluation["state"] != "running" else None

        return eventually(done, "the versions are compared", TIMEOUT)

    def put_into_service(self, version: int, **how: bool) -> None:
        self.post(f"/versions/{version}/deploy", how)
        eventually(lambda: self.get()["switch"]["state"] != "loading", "the version is loaded", TIMEOUT)
        overview = self.get()
        assert overview["switch"]["problem"] is None and overview["current"] == version


@pytest.fixture(scope="module")
def settings(long_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("finetuning")
    check = folder / "check.jsonl"
    check.write_text('{"text": "The quick brown fox jumps over the lazy dog."}\n')
    return Settings.create(
        model=str(long_model),
        database=str(folder / "glm.db"),
        training_folder=str(folder / "training"),
        check_rows=str(check),
        training_threads=1,
    )


@pytest.fixture(scope="module")
def tuned(settings: Settings) -> Iterator[Thread]:
    with serving(settings) as running:
        yield running


@pytest.fixture(scope="module")
def desk(tuned: Thread) -> Desk:
    return Desk(tuned)


def test_from_rows_to_a_version_in_service_and_back(tuned: Thread, desk: Desk, settings: Settings) -> None:
    record = tuned.service.record
    dataset = tuned.call(add_dataset(record))
    overview = desk.get()
    base = overview["current"]
    assert [one["id"] for one in overview["versions"]] == [base] and overview["datasets"][0]["train"] == 8

    found = desk.post("/preview", {"dataset": dataset, "base": base})
    assert found["rows"]["sequences"] == 8 and found["plan"]["seconds"] > 0
    [blank] = found["rows"]["shown"][4]["sequences"]
    assert blank["reads"].replace(" ", "") == "Teais[MASK]." and blank["answers"].strip() == "good"

    body = {"dataset": dataset, "base": base, "name": "birds", "options": {"steps": 12, "kind": "lora"}}
    run = desk.post("/runs", body)
    refusal = desk.post("/runs", body, status=409)
    assert refusal["error"]["kind"] == "conflict" and "under way" in refusal["error"]["message"]
    done = desk.until(run["id"], "done")
    assert done["progress"]["step"] == 12 and [step for step, _ in done["curve"]] == list(range(1, 13))
    assert any("step 10/12" in line for line in done["log"]) and done["error"] is None
    folder = Path(settings.training_folder) / run["id"]
    assert (
        not (folder / "data").exists() and not (folder / "run" / "state").exists()
    )  # visitors' texts, and what is large

    version = done["result"]
    refusal = desk.post(f"/versions/{version}/deploy", status=409)
    assert refusal["error"]["field"] == "unchecked"
    evaluation = desk.compared(version)
    assert evaluation["state"] == "done" and evaluation["other"] == base
    new, old = evaluation["results"]["models"]
    assert new["rows"]["held-out-corrections"]["questions"] == 2 and old["general"]["check"]["bytes"] == 44
    assert set(evaluation["results"]["verdict"]) == {"corrections", "general", "overall"}
    assert not list(Path(settings.training_folder).glob("comparison-*"))

    hashes = {one["id"]: one["weights_hash"] for one in desk.get()["versions"]}
    asyncio.run(switch_under_a_stream(tuned, desk, version, hashes, base))
    [now, before] = desk.get()["deployments"]
    assert (now["version"], now["until"], before["version"]) == (base, None, version) and before["until"]
    lineage = tuned.call(record.ancestors(version))
    assert [one.id for one in lineage] == [version, base] and lineage[0].dataset_id == dataset
    assert {one.action for one in tuned.call(record.list_audit(limit=50)).rows} >= {
        "start training",
        "put into service",
    }


async def switch_under_a_stream(server: Thread, desk: Desk, version: int, hashes: dict[int, str], base: int) -> None:
    """There and back, with a stream under way both times; nothing of it is lost, and each run says who made it."""
    message = {"type": "generate", "id": None, "text": "Once"}
    parameters = {**LIVELY, "max_new_tokens": 3000, "min_new_tokens": 3000}
    served = [base, version]
    async with Client(server) as client:
        for target in (version, base):
            await client.send({**message, "parameters": parameters})
            [accepted] = await client.until("accepted")
            await client.until("delta")
            reading = asyncio.create_task(client.all())
            await asyncio.to_thread(desk.put_into_service, target)
            served.append(target)
            short = await client_run(server, {**message, "parameters": {"max_new_tokens": 4}})
            assert short["fingerprint"]["weights_hash"] == hashes[target]
            events = (await reading)[accepted["run"]]
            assert events[-1]["type"] == "done" and events[-1]["usage"]["new_tokens"] == 3000
            began = hashes[version if target == base else base]
            assert events[-1]["fingerprint"]["weights_hash"] == began
            run = await asyncio.to_thread(server.call, server.service.record.get_run(accepted["run"], None))
            assert run.model_version.weights_hash == began


async def client_run(server: Thread, message: dict[str, Any]) -> dict[str, Any]:
    async with Client(server) as client:
        return (await client.run(message))[-1]


@pytest.mark.heavy
@pytest.mark.timeout(1200)
def test_stop_resume_restart_and_failure(long_model: Path, tmp_path: Path) -> None:
    """A training is stopped with its state saved, goes on, survives the end of its server, and is found again; one that is
    killed has failed and can go on; its version serves after a restart, and a lost folder falls back to the base."""
    values = {
        "model": str(long_model),
        "database": str(tmp_path / "glm.db"),
        "training_folder": str(tmp_path / "training"),
    }
    settings = Settings.create(**values, training_threads=1)
    server = Thread(settings)
    try:
        server.wait_until_ready()
        desk = Desk(server)
        dataset, base = server.call(add_dataset(server.service.record)), desk.get()["current"]
        body = {"dataset": dataset, "base": base, "name": "full", "options": {"steps": 400, "kind": "full"}}
        id = desk.post("/runs", body)["id"]
        eventually(lambda: (desk.get(f"/runs/{id}")["progress"] or {}).get("step", 0) >= 3, "three steps", TIMEOUT)
        assert desk.post(f"/runs/{id}/stop")["state"] == "stopping"
        stopped = desk.until(id, "stopped")
        step = stopped["progress"]["step"]
        assert 3 <= step < 400 and (tmp_path / "training" / id / "run" / "state" / f"step-{step:08d}").is_dir()
        desk.post(f"/runs/{id}/resume")
        eventually(lambda: desk.get(f"/runs/{id}")["progress"]["step"] > step, "it goes on", TIMEOUT)
        assert any(f"resumed at step {step}" in line for line in desk.get(f"/runs/{id}")["log"])
        process = psutil.Process(server.call(server.service.record.active_training_runs())[0].process["pid"])
    finally:
        server.stop()
    assert process.is_running() and process.nice() == processes.NICENESS and os.getsid(process.pid) == process.pid

    server = Thread(settings)
    try:
        server.wait_until_ready()
        desk = Desk(server)
        assert desk.get(f"/runs/{id}")["state"] == "running"
        process.send_signal(signal.SIGKILL)
        failed = desk.until(id, "failed")
        assert "without a word" in failed["error"] and not any("Traceback" in line for line in failed["log"])
        desk.post(f"/runs/{id}/resume")
        desk.until(id, "running")
    finally:
        server.stop()  # it works on, and ends with nobody there
    state = tmp_path / "training" / id / "run" / "model" / "config.json"
    eventually(state.is_file, "the training ends by itself", TIMEOUT)

    server = Thread(settings)
    try:
        server.wait_until_ready()
        desk = Desk(server)
        version = desk.until(id, "done")["result"]
        desk.put_into_service(version, unchecked=True)
    finally:
        server.stop()

    server = Thread(settings)
    try:
        server.wait_until_ready()
        assert server.service.pool.limits.model == "full"
    finally:
        server.stop()
    state.unlink()
    server = Thread(settings)
    try:
        server.wait_until_ready()
        desk = Desk(server)
        overview = desk.get()
        assert overview["current"] == base and "There is no model in" in overview["reason"]
        assert not [one for one in overview["versions"] if one["id"] == version][0]["there"]
        assert (
            desk.post(f"/versions/{version}/deploy", {"unchecked": True}, status=503)["error"]["kind"]
            == "model_not_found"
        )
    finally:
        server.stop()


def test_for_administrators_alone(tuned: Thread) -> None:
    assert httpx.get(f"{tuned.http}/api/admin/training").status_code == 401
    key = new_key()
    staff = tuned.call(tuned.service.record.create_staff("reviewer", "reviewer", None))
    tuned.call(tuned.service.record.add_key(key_hash(key), staff.id, "key"))
    for method, path in (("GET", ""), ("POST", "/runs"), ("POST", "/versions/1/deploy"), ("POST", "/preview")):
        answer = httpx.request(
            method, f"{tuned.http}/api/admin/training{path}", headers={"Authorization": f"Bearer {key}"}, json={}
        )
        assert answer.status_code == 403, path


@pytest.mark.parametrize(
    "body, field",
    [
        ({"base": 1}, "dataset"),
        ({"dataset": "x", "base": 0}, "base"),
        ({"dataset": "x", "base": 1, "options": {"rank": 0}}, "options.rank"),
        ({"dataset": "x", "base": 1, "options": {"replay_share": 1.0}}, "options.replay_share"),
        ({"dataset": "x", "base": 1, "more": 1}, "more"),
    ],
)
def test_mistakes_name_their_field(desk: Desk, body: dict[str, Any], field: str) -> None:
    assert desk.post("/preview", body, status=422)["error"]["field"] == field


def test_rows_that_the_trainer_refuses_are_said(tuned: Thread, desk: Desk) -> None:
    bad = tuned.call(add_dataset(tuned.service.record, [{"text": "[MASK] and [MASK]", "answers": ["one"]}], 0))
    refusal = desk.post("/preview", {"dataset": bad, "base": desk.get()["current"]}, status=422)
    assert "1 answers for 2 blanks" in refusal["error"]["message"] and refusal["error"]["field"] == "dataset"
    assert "/" not in refusal["error"]["message"]


def test_what_is_said_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text(
        'fine\nTraceback (most recent call last):\n  File "secret.py", line 3\n    run()\nRuntimeError: no room\n'
    )
    assert processes.last_lines(log) == ["fine", "RuntimeError: no room"]
    assert processes.last_lines(tmp_path / "none") == []


def test_a_process_is_known_by_its_start(tmp_path: Path) -> None:
    process = processes.start(["rows", "--help"], tmp_path / "log.txt")
    assert not processes.alive(process | {"started": "another time"}) and not processes.alive(None)
    eventually(lambda: not processes.alive(process), "it ends")
    assert "what the trainer makes of rows" in (tmp_path / "log.txt").read_text()
    processes.end(process)  # no error


def test_plans_scale_with_the_rows() -> None:
    def plan(tokens: int, longest: int = 60, **options: Any):
        size = {"tokens": tokens, "longest": longest}
        return make_plan(Options(**options), size, parameters=10**7, positions=512, threads=1, flops=None)

    few, some, many = plan(1000), plan(20_000), plan(400_000)
    assert few.steps < some.steps < many.steps and few.epochs > some.epochs > many.epochs >= 2.9
    assert (plan(1000, 200).length, plan(1000, 4000).length, plan(1000, steps=7).steps) == (256, 512, 7)
    assert plan(1000, kind="full").learning_rate < few.learning_rate


@pytest.mark.parametrize(
    "new, old, general, expected",
    [
        ({"questions": 10, "questions_right": 9}, {"questions": 10, "questions_right": 1}, (2.0, 2.0), "better"),
        ({"questions": 10, "questions_right": 9}, {"questions": 10, "questions_right": 1}, (2.2, 2.0), "mixed"),
        ({"questions": 10, "questions_right": 1}, {"questions": 10, "questions_right": 9}, (2.0, 2.0), "worse"),
        ({"blanks": 10, "blanks_right": 1, "perplexity": 3}, {"blanks": 10, "blanks_right": 1, "perplexity": 9}, (2, 2), "better"),
        ({"questions": 10, "questions_right": 1}, {"questions": 10, "questions_right": 1}, (2.0, 2.0), "same"),
        (None, None, (2.0, 2.0), "unknown"),
        (None, None, (2.5, 2.0), "worse"),
    ],
)  # fmt: skip
def test_verdicts(new: dict | None, old: dict | None, general: tuple[float, float], expected: str) -> None:
    measured = [
        {"rows": {} if own is None else {"held-out-corrections": own}, "general": {"english": {"bits_per_byte": bits}}}
        for own, bits in zip((new, old), general, strict=True)
    ]
    assert verdict(*json.loads(json.dumps(measured)))["overall"] == expected
