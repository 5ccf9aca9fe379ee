"""Evaluations on a real pool: several replicas, runs that are killed and go on, the command line, a running server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import pytest_asyncio

from app.admin.access import key_hash, new_key
from app.settings import Settings
from engine.commands import evaluate as command
from engine.errors import GLMError
from engine.evaluation.asker import Asker, PoolAsker
from engine.evaluation.kinds import Answer, Generation, Question
from engine.evaluation.prompts import masked
from engine.evaluation.result import TaskResult
from engine.evaluation.runner import Evaluation
from engine.evaluation.server import ServerAsker
from engine.evaluation.task import Task, load_task, parse_task
from engine.glm.tokenizer import Tokenizer
from engine.serving.pool import Pool
from tests.lively import make_lively_model
from tests.server import PATIENCE, ROOT, Client, Thread

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORDS = "the sea a house was red and old when birds came over 北京 是 中国 的 首都 one two three".split()  # noqa: SIM905
TASKS: dict[str, dict[str, Any]] = {
    "choices": {"type": "mul", "path": "mul", "file-pattern": {"dev": "**/dev.jsonl", "test": "**/test.jsonl"}},
    "answers": {"type": "gen", "path": "gen", "max-gen-length": 12},
    "beams": {
        "type": "gen",
        "path": "gen",
        "max-gen-length": 6,
        "sampling-strategy": "BeamSearchStrategy",
        "use-task-mask": True,
        "unidirectional": True,
    },
    "text": {
        "type": "lm",
        "path": "lm",
        "file-pattern": "*.txt",
        "generation-length": 40,
        "use-task-mask": True,
        "metrics": ["PPL", "PPL_tokens", "BPB"],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> Path:
    return make_lively_model(tmp_path_factory.mktemp("lively"), vocabulary_file)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of all types, and a task file for each of TASKS."""
    out = tmp_path_factory.mktemp("data")
    random = Random(1)

    def text(most: int) -> str:
        return " ".join(random.choices(WORDS, k=random.randint(1, most)))

    for name in ("mul/one/dev", "mul/one/test", "mul/two/test"):
        rows = []
        for _ in range(12):
            choices = [" " + text(3) for _ in range(random.randint(2, 5))]
            rows.append({"inputs_pretokenized": text(40), "choices_pretokenized": choices, "label": 0})
        write(out / f"{name}.jsonl", rows)
    rows = [{"inputs_pretokenized": text(30), "targets_pretokenized": [text(2)]} for _ in range(12)]
    write(out / "gen" / "test.jsonl", rows)
    (out / "lm").mkdir()
    (out / "lm" / "test.txt").write_text("\n".join(text(40) for _ in range(30)), encoding="utf-8")
    for name, settings in TASKS.items():
        (out / f"{name}.yaml").write_text(json.dumps({"name": name} | settings), encoding="utf-8")
    return out


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def tasks(data: Path) -> list[Task]:
    return [load_task(data / f"{name}.yaml") for name in TASKS]


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def asker(folder: Path, tokenizer: Tokenizer) -> AsyncIterator[PoolAsker]:
    async with Pool(folder, threads=1, slots=8, batch_invariant=True) as pool:
        yield PoolAsker(pool, tokenizer)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plain(asker: PoolAsker, data: Path, tasks: list[Task], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All tasks on one replica, which others are compared with."""
    return await run_all(asker, data, tasks, tmp_path_factory.mktemp("plain"))


class Run:
    """Results and rows of a run, and what it told."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.results: list[TaskResult] = []
        self.events: list[dict[str, Any]] = []

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """By file, in order."""
        found = {}
        for path in sorted(self.out.glob("*/*/*.jsonl")):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[f"{path.parent.name}/{path.name}"] = sorted(rows, key=lambda row: (row["row"], row["part"]))
        return found

    def numbers(self) -> list[Any]:
        return [(result.name, result.groups, [file.metrics for file in result.files]) for result in self.results]


async def run_all(asker: Asker, data: Path, tasks: list[Task], out: Path, **options: Any) -> Run:
    run = Run(out)
    evaluation = Evaluation(asker, data, out, run.events.append, **options)
    for task in tasks:
        run.results.append(await evaluation.run(task, f"{task.name}.yaml"))
    return run


def command_line(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "engine", "evaluate", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
    )


async def test_every_row_is_there_and_the_numbers_are_those_of_the_rows(plain: Run) -> None:
    counts = {result.name: [file.count for file in result.files] for result in plain.results}
    assert counts["choices"] == [12, 12, 12] and counts["answers"] == counts["beams"] == [12] and counts["text"][0] > 5
    choices, answers, _, text = plain.results
    assert list(choices.groups) == ["dev", "test"] and choices.groups["test"]["Accuracy"].max <= 100
    for result, file in ((choices, choices.files[1]), (answers, answers.files[0])):
        rows = plain.rows()[f"{folder_name(plain, result)}/{file.rows}"]
        for metric in result.task["metrics"]:
            mean = sum(row["scores"][metric] for row in rows) / len(rows)
            assert file.metrics[metric] == pytest.approx(mean) and metric in file.means
            assert file.standard_errors[metric] >= 0
    assert text.files[0].metrics["PPL"] > text.files[0].metrics["PPL_tokens"] > 1 and text.files[0].metrics["BPB"] > 0
    ends = [event["event"] for event in plain.events if event["event"] != "progress"]
    assert ends == ["task", *["file"] * 3, "result", *["task", "file", "result"] * 3]


def folder_name(run: Run, result: TaskResult) -> str:
    [path] = run.out.glob(f"*/*-{result.task_hash[:12]}")
    return path.name


@pytest.mark.heavy  # a server's two replicas give it below
async def test_several_replicas_give_what_one_gives(
    folder: Path, tokenizer: Tokenizer, data: Path, tasks: list[Task], plain: Run, tmp_path: Path
) -> None:
    """To the bit, with --batch-invariant."""
    async with Pool(folder, threads=1, slots=4, replicas=3, batch_invariant=True) as pool:
        asker = PoolAsker(pool, tokenizer)
        assert asker.replicas == 3
        found = await run_all(asker, data, tasks, tmp_path)
    assert found.rows() == plain.rows() and found.numbers() == plain.numbers()


async def test_rows_side_by_side_give_the_same_answers(
    folder: Path, tokenizer: Tokenizer, data: Path, tasks: list[Task], plain: Run, tmp_path: Path
) -> None:
    async with Pool(folder, threads=1, slots=16, replicas=2) as pool:
        found = await run_all(PoolAsker(pool, tokenizer), data, tasks, tmp_path)
    for (_, rows), (_, expected) in zip(found.rows().items(), plain.rows().items(), strict=True):
        for row, other in zip(rows, expected, strict=True):
            assert row.get("prediction") == other.get("prediction") and row["scores"] == other["scores"]
            for key in ("logprobs", "loss"):
                assert row.get(key) == (other.get(key) and pytest.approx(other[key], abs=1e-3))


async def test_what_is_done_is_not_asked_again(
    asker: PoolAsker, data: Path, tasks: list[Task], plain: Run, tmp_path: Path
) -> None:
    """A run breaks in the middle of a line; the next asks the rest only; a third nothing."""
    broken = Breaking(asker, after=20)
    with pytest.raises(GLMError, match="broke"):
        await run_all(broken, data, tasks, tmp_path, parallel=4)
    [half] = [path for path in tmp_path.glob("*/*/*.jsonl") if len(path.read_text().splitlines()) < 12]
    half.write_text(half.read_text() + '{"row": 11, "pa')
    counting = Breaking(asker, after=10**9)
    found = await run_all(counting, data, tasks, tmp_path)
    total = sum(event["total"] for event in found.events if event["event"] == "task")
    done = sum(event["done"] for event in found.events if event["event"] == "task")
    assert done >= 16 and counting.asked == total - done  # four were open when it broke
    assert found.rows() == plain.rows() and found.numbers() == plain.numbers()
    again = await run_all(Breaking(asker, after=0), data, tasks, tmp_path)
    assert [event["cached"] for event in again.events] == [True] * len(tasks)
    assert again.numbers() == plain.numbers()


class Breaking:
    """Asks another asker, until it has asked so often."""

    def __init__(self, asker: Asker, after: int) -> None:
        self._asker, self._after, self.asked = asker, after, 0
        self.limits, self.tokenizer, self.replicas, self.width = asker.limits, asker.tokenizer, 1, asker.width

    async def ask(self, question: Question) -> list[Answer]:
        if self.asked >= self._after:
            raise GLMError("internal", "It broke.")
        self.asked += 1
        return await self._asker.ask(question)


async def test_other_rows_settings_or_limits_are_another_run(asker: PoolAsker, tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.jsonl", [{"inputs": [300, 301], "choices": [[302], [303]], "label": 0}] * 2)
    settings = {"name": "a", "type": "mul"}
    hashes = []
    for change, limit in (({}, None), ({"use_task_mask": True}, None), ({}, 1), ("rows", None)):
        if change == "rows":
            write(tmp_path / "data" / "a.jsonl", [{"inputs": [300], "choices": [[302], [303]], "label": 0}])
            change = {}
        run = await run_all(asker, tmp_path / "data", [parse_task(settings | change, "a")], tmp_path, limit=limit)
        hashes.append(run.results[0].task_hash)
    assert len(set(hashes)) == 4


async def test_many_choices_are_asked_in_parts(asker: PoolAsker) -> None:
    prompt = masked((300, 301, 302), asker.tokenizer, gmask=False)
    choices = tuple((number, 301) for number in range(300, 340))
    together = await asker.ask(Question(0, 0, prompt, choices))
    assert [answer.ids for answer in together] == list(choices)
    [alone] = await asker.ask(Question(0, 0, prompt, choices[20:21]))
    assert alone.logprob == pytest.approx(together[20].logprob, abs=1e-4)


async def test_banned_starts(asker: PoolAsker) -> None:
    """An answer may not begin so, but may go on so; by tokens and by beams."""
    for strategy in ("BaseStrategy", "BeamSearchStrategy"):
        values = {"name": "a", "type": "gen", "sampling_strategy": strategy, "max_gen_length": 4, "min_gen_length": 4}
        kind = Generation(parse_task(values, "a"), asker.tokenizer, 256)
        prompt = masked((300, 301, 302), asker.tokenizer, gmask=True)
        free = await ask(asker, kind, prompt)
        for length in (1, 2):
            start = free[:length]
            other = await ask(asker, kind, prompt, banned_starts=(start, (299, 299)))
            assert other[:length] != start and other[: length - 1] == start[:-1] or strategy != "BaseStrategy"
            assert other[:length] != start


async def ask(asker: Asker, kind: Generation, prompt: Any, **changes: Any) -> tuple[int, ...]:
    answers = await asker.ask(Question(0, 0, prompt, sampling=replace(kind.sampling(prompt), **changes)))
    return answers[0].ids


# The command line


@pytest.mark.heavy
async def test_killed_and_interrupted_runs_go_on(
    folder: Path, asker: PoolAsker, data: Path, tasks: list[Task], plain: Run, tmp_path: Path
) -> None:
    """Real processes: one is killed, the next interrupted as by Ctrl-C, and what they leave is gone on with."""
    arguments = (data / "choices.yaml", data / "beams.yaml", data / "answers.yaml", "--data", data, "--out", tmp_path / "out",
        "--model", folder, "--threads", 1, "--json", "--parallel", 1, "--batch-invariant")  # fmt: skip
    for how, seen, status in ((signal.SIGKILL, 5, -signal.SIGKILL), (signal.SIGINT, 5, 130)):
        process = command_line(*arguments)
        assert process.stdout is not None
        rows = 0
        for line in process.stdout:  # a row's line is in its file before it is told
            rows = len("".join(path.read_text() for path in (tmp_path / "out").glob("*/*/*.jsonl")).splitlines())
            if json.loads(line)["event"] == "progress" and rows >= seen:
                process.send_signal(how)
                break
        said = process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == status, said
        if how is signal.SIGINT:
            assert json.loads(said.splitlines()[-1])["event"] == "interrupted"
    found = await run_all(asker, data, [tasks[0], tasks[2], tasks[1]], tmp_path / "out")
    assert found.events[0]["event"] == "result" or found.events[0]["done"] >= 5
    expected = plain.rows()
    assert len(found.rows()) == 5 and all(expected[name] == rows for name, rows in found.rows().items())


async def test_the_table(
    folder: Path, data: Path, plain: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two tasks, one of whose rows are not there: the other is measured, and the exit status tells."""
    (tmp_path / "missing.yaml").write_text("name: missing\ntype: mul\npath: nowhere\n")
    status = await run_command(tmp_path / "missing.yaml", data / "choices.yaml", "--data", data, "--out",
        tmp_path / "out", "--model", folder, "--threads", 1, "--batch-invariant")  # fmt: skip
    said, errors = capfd.readouterr()
    assert status == 1 and "there is no folder" in errors and "Traceback" not in errors
    result = plain.results[0]
    accuracy = [f"{file.metrics['Accuracy']:.3f}" for file in result.files]
    lines = said.splitlines()
    expected = [
        "    Evaluating group dev:",
        f"        Finish one/dev.jsonl, Accuracy = {accuracy[0]}",
        "    Evaluating group test:",
        f"        Finish one/test.jsonl, Accuracy = {accuracy[1]}",
        f"        Finish two/test.jsonl, Accuracy = {accuracy[2]}",
        "Evaluation results of task choices:",
    ]
    start = lines.index(expected[0])
    assert lines[start : start + 6] == expected and lines[start + 6].startswith("    Group dev Accuracy: max = ")
    assert "Finish 1 task in" in said and "1 task failed" in said
    assert (tmp_path / "out" / "report.md").is_file() and (tmp_path / "out" / "report.html").is_file()


async def run_command(*arguments: object) -> int:
    """In this process, on a thread with a loop of its own; the exit status."""

    def call() -> int:
        try:
            return command.main(list(map(str, arguments)))
        except SystemExit as error:
            assert isinstance(error.code, int)
            return error.code

    return await asyncio.to_thread(call)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Say what to do"),
        (["{data}/choices.yaml"], "--data"),
        (["{data}/choices.yaml", "--data", "nowhere"], "no folder nowhere"),
        (["nothing.yaml", "--data", "{data}"], "no task file or folder nothing.yaml"),
        (["{data}/choices.yaml", "--data", "{data}", "--server", "http://x", "--slots", "3"], "leave --slots out"),
        (["{data}/choices.yaml", "--data", "{data}", "--server", "x"], "GLM_ADMIN_KEY"),
        (["{data}/choices.yaml", "--data", "{data}", "--key-file", "x"], "--key-file is for --server"),
        (["{data}/choices.yaml", "--data", "{data}", "--limit", "0"], "'0' is not a whole number"),
        (["{data}/choices.yaml", "--data", "{data}", "--model", "nowhere"], "nowhere"),
        (["--report", "--out", "{data}"], "no finished results"),
        (["--prepare", "nothing", "x", "--data", "{data}"], "no benchmark 'nothing'"),
        (["--prepare", "cola", "--data", "{data}"], "SOURCE"),
        (["--report", "--prepare", "list"], "One of them"),
    ],
)
async def test_wrong_arguments_in_a_sentence(
    data: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.delenv("GLM_ADMIN_KEY", raising=False)
    assert await run_command(*(argument.format(data=data) for argument in arguments)) == 2
    errors = capfd.readouterr().err
    assert said in errors and errors.startswith("error: ") and len(errors.strip().splitlines()) == 1


async def test_benchmarks_that_can_be_prepared_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--prepare", "list"]) == 0
    assert "mmlu" in capfd.readouterr().out


# A running server


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Thread]:
    database = tmp_path_factory.mktemp("server") / "glm.db"
    running = Thread(
        Settings.create(model=str(folder), database=str(database), slots=8), replicas=2, batch_invariant=True
    )
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.stop()


def key_of(server: Thread, role: str) -> str:
    """A new member's."""
    record = server.service.record
    key = new_key()
    staff = server.call(record.create_staff(f"{role} {key[-6:]}", role, None))
    server.call(record.add_key(key_hash(key), staff.id, "key", label="evaluation"))
    return key


async def test_a_servers_replicas_answer(
    server: Thread, data: Path, tasks: list[Task], plain: Run, tmp_path: Path
) -> None:
    """The same rows to the bit, though the connection breaks in the middle and a replica dies."""
    async with ServerAsker(server.http, key_of(server, "admin")) as asker:
        assert asker.replicas == 2 and asker.tokenizer.hash() == Tokenizer.load(server.service.pool.model).hash()
        breaking = Dropping(asker, server)
        found = await run_all(breaking, data, tasks, tmp_path)
    assert breaking.dropped == 2
    assert found.rows() == plain.rows() and found.numbers() == plain.numbers()


class Dropping(Breaking):
    """Closes the server asker's connection at the 10th question and kills a replica at the 60th."""

    def __init__(self, asker: ServerAsker, server: Thread) -> None:
        super().__init__(asker, after=10**9)
        self._server, self.dropped = server, 0

    async def ask(self, question: Question) -> list[Answer]:
        assert isinstance(self._asker, ServerAsker)
        if self.asked == 10:
            assert self._asker._socket is not None
            self._asker._socket.transport.abort()
            self.dropped += 1
        elif self.asked == 60:
            os.kill(self._server.service.pool.status()["replicas"][0]["pid"], signal.SIGKILL)
            self.dropped += 1
        return await super().ask(question)


async def test_only_an_administrators_key_is_taken(server: Thread) -> None:
    for key in ("wrong", key_of(server, "reviewer")):
        with pytest.raises(GLMError, match="refuses the key") as caught:
            async with ServerAsker(server.http, key):
                pass
        assert caught.value.kind == "bad_request"
    with pytest.raises(GLMError, match="can't be reached"):
        async with ServerAsker("http://127.0.0.1:9", "wrong"):
            pass
    async with Client(server) as client:
        assert (await client.ask({"type": "evaluate_model", "id": 5}))["kind"] == "login_needed"


async def test_a_key_that_was_taken_back_is_refused(server: Thread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.evaluation_socket.CHECK_SECONDS", 0.0)
    key = key_of(server, "admin")
    async with ServerAsker(server.http, key) as asker:
        prompt = masked((300, 301), asker.tokenizer, gmask=False)
        assert await asker.ask(Question(0, 0, prompt, ((302,),)))
        await asyncio.to_thread(server.call, server.service.record.remove_key(key_hash(key)))
        with pytest.raises(GLMError, match="refuses the key"):
            await asker.ask(Question(0, 0, prompt, ((302,),)))


async def test_what_can_not_be_asked_is_refused_by_name(server: Thread) -> None:
    prompt = {"ids": [300, 301], "positions": [0, 1], "context_length": 1, "next_position": 2, "position_step": 1}
    good = {"type": "evaluate", "id": 1, "prompt": prompt, "choices": [[302]]}
    wrong = {
        "positions must be": {"prompt": prompt | {"positions": [0, 5]}},
        "within the ids": {"prompt": prompt | {"context_length": 2}},
        "either choices or sampling": {"choices": []},
        "doesn't know": {"choices": [[10**6]]},
        "id": {"id": "text"},
        "leaves room for": {
            "prompt": prompt | {"ids": [300] * 9, "positions": [*range(9)]},
            "choices": [],
            "sampling": {"max_new_tokens": 255},
        },
        "no field": {"surplus": 1},
    }
    client = Client(server, key=key_of(server, "admin"))
    async with client:
        assert (await client.ask(good))["type"] == "evaluated"
        for said, change in wrong.items():
            event = await client.ask(good | change)
            assert (event["type"], event["kind"]) == ("error", "bad_request") and said in event["message"], event
        assert (await client.ask(good))["type"] == "evaluated"


async def test_the_command_on_a_server(
    server: Thread,
    data: Path,
    plain: Run,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "key").write_text(key_of(server, "admin") + "\n")
    arguments = [data / "choices.yaml", "--data", data, "--out", tmp_path / "out", "--json", "--server", server.http]
    assert await run_command(*arguments, "--key-file", tmp_path / "key") == 0
    events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    kinds = [event["event"] for event in events if event["event"] not in ("progress", "file")]
    assert kinds == ["tasks", "model", "task", "result", "end", "note"]
    [result] = [event["result"] for event in events if event["event"] == "result"]
    assert TaskResult.from_json(result).groups == plain.results[0].groups
    monkeypatch.setenv("GLM_ADMIN_KEY", "wrong")
    assert await run_command(*arguments) == 2
    assert "refuses the key" in capfd.readouterr().out
