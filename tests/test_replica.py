"""A replica of several ranks over real processes: the same answers as one rank, and one end for all when any rank dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from engine.errors import GLMError
from engine.glm.config import Config, Quantization, weights_hash
from engine.glm.tokenizer import Tokenizer
from engine.serving import generate
from engine.serving.events import Blank, Delta, Done, Error
from engine.serving.pool import Pool
from engine.serving.protocol import LoadFailed, Options, Ready, Sampling
from engine.serving.replica import PACKAGE_ROOT, Death, Replica
from engine.serving.run import Run
from tests.conftest import SMALL_REFERENCE
from tests.lively import make_lively_model
from tests.reference import convert
from tests.server import LIVELY, Client, Program, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")
pytest_plugins = ("tests.server",)

DEADLINE = 120.0  # seconds for anything; four processes that import torch on a busy machine take half a minute
STORY = "Once upon a time [gMASK]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> Path:
    return make_lively_model(tmp_path_factory.mktemp("lively"), vocabulary_file)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one(folder: Path) -> AsyncIterator[Pool]:
    """A replica of one rank."""
    async with Pool(folder, threads=1, slots=4) as pool:
        yield pool


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two(folder: Path) -> AsyncIterator[Pool]:
    """Two replicas of two ranks each; prompts are read a layer at a time while others run."""
    async with Pool(folder, threads=1, slots=4, replicas=2, tensor_parallel=2, gap_seconds=1e-6) as pool:
        yield pool


async def events(run: Run) -> list[Any]:
    async with asyncio.timeout(DEADLINE):
        return [event async for event in run]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.01)


async def first_text(run: Run) -> None:
    async with asyncio.timeout(DEADLINE):
        async for event in run:
            if isinstance(event, Delta):
                return


def all_ready(pool: Pool) -> bool:
    return all(replica["state"] == "ready" for replica in pool.status()["replicas"])


def pids_of(pool: Pool, index: int) -> list[int]:
    return pool.status()["replicas"][index]["pids"]


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def ticks(pid: int) -> int:
    """Hundredths of a second that a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def begin(pool: Pool, tokenizer: Tokenizer, tokens: int, text: str = STORY, **sampling: Any) -> Run:
    values = {"temperature": 1.0, "seed": 5, "min_new_tokens": tokens, "max_new_tokens": tokens} | sampling
    return generate.fill(pool, tokenizer, text, Sampling(**values))


# The same as one rank


@pytest.mark.parametrize(
    "sampling, alternatives",
    [
        ({"temperature": 0.0}, 1),
        ({"seed": 3, "repetition_penalty": 1.3, "logprobs": 2}, 1),
        ({"seed": 4, "top_k": 50, "top_p": 0.9}, 3),
    ],
)
async def test_fills_are_those_of_one_rank(
    one: Pool, two: Pool, tokenizer: Tokenizer, sampling: dict[str, Any], alternatives: int
) -> None:
    asked = Sampling(**{"seed": 1, "max_new_tokens": 12, "min_new_tokens": 3} | sampling)
    text = "The capital of [MASK] is [MASK]. 床前明月光，[sMASK]。"
    expected, found = [await events(generate.fill(pool, tokenizer, text, asked, alternatives)) for pool in (one, two)]
    assert isinstance(expected[-1], Done) and found[-1].text == expected[-1].text
    blanks = [[event for event in told if isinstance(event, Blank)] for told in (expected, found)]
    assert len(blanks[0]) == len(blanks[1]) == 3
    for left, right in zip(*blanks, strict=True):
        for ours, theirs in zip(left.alternatives, right.alternatives, strict=True):
            assert ours.text == theirs.text and ours.logprob == pytest.approx(theirs.logprob, abs=1e-3)
    assert found[-1].fingerprint == expected[-1].fingerprint | {"tensor_parallel": "2"}


async def test_scores_are_those_of_one_rank(one: Pool, two: Pool, tokenizer: Tokenizer) -> None:
    text, answers = "The capital of [MASK] is [MASK].", ["Japan", "Tokyo, of course"]
    scores = []
    for pool in (one, two):
        told = await events(generate.score(pool, tokenizer, text, answers))
        scores.append([event.alternatives[0].logprob for event in told if isinstance(event, Blank)])
    assert len(scores[0]) == 2 and scores[1] == pytest.approx(scores[0], abs=1e-3)


async def test_idle_ranks_sleep(two: Pool) -> None:
    await until(lambda: all_ready(two))
    pids = [*pids_of(two, 0), *pids_of(two, 1)]
    assert len(set(pids)) == 4
    before = [ticks(pid) for pid in pids]
    await asyncio.sleep(1.0)  # the measurement itself
    assert max(ticks(pid) - start for pid, start in zip(pids, before, strict=True)) <= 5


# Deaths


@pytest.mark.parametrize("rank", [0, 1])
async def test_a_rank_that_dies_in_a_step_ends_its_replica_only(two: Pool, tokenizer: Tokenizer, rank: int) -> None:
    await until(lambda: all_ready(two))
    pids, others = pids_of(two, 0), pids_of(two, 1)
    runs = [begin(two, tokenizer, 230) for _ in range(4)]
    assert [replica["requests"] for replica in two.status()["replicas"]] == [2, 2]
    for run in runs:
        await first_text(run)
    os.kill(pids[rank], signal.SIGKILL)
    killed = time.monotonic()
    ends = [(await events(run))[-1] for run in runs[::2]]
    assert time.monotonic() - killed < 5, "nobody waits for the dead"
    assert all(isinstance(end, Error) and end.kind == "worker_died" for end in ends)
    assert not any(alive(pid) for pid in pids)
    reason = two.status()["replicas"][0]["reason"]
    assert reason == f"The worker process of rank {rank} ended with signal 9."
    assert [type((await events(run))[-1]) for run in runs[1::2]] == [Done, Done]
    assert pids_of(two, 1) == others
    await until(lambda: all_ready(two))
    again = [await events(begin(two, tokenizer, 5)) for _ in range(2)]
    assert [type(told[-1]) for told in again] == [Done, Done]


@pytest.mark.parametrize("rank", [0, 1])
async def test_a_rank_that_dies_idle_is_replaced(two: Pool, tokenizer: Tokenizer, rank: int) -> None:
    await until(lambda: all_ready(two))
    pids, others, starts = pids_of(two, 0), pids_of(two, 1), two.status()["replicas"][0]["starts"]
    os.kill(pids[rank], signal.SIGKILL)
    await until(lambda: not any(alive(pid) for pid in pids))
    assert isinstance((await events(begin(two, tokenizer, 5)))[-1], Done), "the other replica answers meanwhile"
    await until(lambda: all_ready(two))
    assert two.status()["replicas"][0]["starts"] == starts + 1 and pids_of(two, 1) == others


async def test_killed_before_any_text_a_request_is_run_again_unnoticed(
    one: Pool, two: Pool, tokenizer: Tokenizer
) -> None:
    await until(lambda: all_ready(two))
    expected = (await events(begin(one, tokenizer, 10)))[-1].text
    stopped = pids_of(two, 0)[1]
    os.kill(stopped, signal.SIGSTOP)  # rank 0 hangs in the first exchange
    run = begin(two, tokenizer, 10)
    await until(lambda: two.status()["replicas"][0]["requests"] == 1)
    os.kill(stopped, signal.SIGKILL)
    told = await events(run)
    assert isinstance(told[-1], Done) and told[-1].text == expected
    await until(lambda: all_ready(two))


# Starts that fail, and ends


def options(folder: Path, **more: Any) -> Options:
    return Options(str(folder), "fp32", 4, 1, None, 512, 0.1, 30, **more)


@pytest.fixture
def meetings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for all temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("rank", [0, 1])
async def test_a_rank_that_dies_while_loading_ends_all_ranks(folder: Path, meetings: Path, rank: int) -> None:
    heard: list[object] = []
    died: asyncio.Future[Death] = asyncio.get_running_loop().create_future()
    replica = Replica(options(folder, tensor_parallel=3), heard.append, died.set_result)
    assert len(list(meetings.iterdir())) == 1
    pids = replica.pids
    os.kill(pids[rank], signal.SIGKILL)
    async with asyncio.timeout(DEADLINE):
        assert await died == Death(rank, -9)
    assert not heard and not any(alive(pid) for pid in pids) and not list(meetings.iterdir())


async def test_ready_means_all_ranks_and_stop_ends_all(folder: Path, meetings: Path) -> None:
    heard: list[object] = []
    died: asyncio.Future[Death] = asyncio.get_running_loop().create_future()
    replica = Replica(options(folder, tensor_parallel=2, quantize="int8"), heard.append, died.set_result)
    await until(lambda: bool(heard))
    [ready] = heard
    assert isinstance(ready, Ready) and ready.limits.tensor_parallel == 2
    assert ready.limits.precision == "fp32, int8, fp16 cache" and ready.limits.weights_hash == weights_hash(folder)
    began = time.monotonic()
    await replica.close()
    async with asyncio.timeout(DEADLINE):
        assert await died == Death(0, 0)
    assert time.monotonic() - began < 5
    assert not any(alive(pid) for pid in replica.pids) and not list(meetings.iterdir())


async def test_a_rank_that_can_not_load_says_why(folder: Path, tmp_path: Path) -> None:
    """The pool refuses this shape before it starts anything; the ranks refuse it too."""
    heard: list[object] = []
    died: asyncio.Future[Death] = asyncio.get_running_loop().create_future()
    replica = Replica(options(folder, tensor_parallel=3), heard.append, died.set_result)
    async with asyncio.timeout(DEADLINE):
        await died
    failed = heard[0]
    assert isinstance(failed, LoadFailed) and (failed.error.kind, failed.error.field) == (
        "unsupported",
        "tensor_parallel",
    )
    assert "Rank " in str(failed.error) and "heads = 4" in str(failed.error)
    assert not any(alive(pid) for pid in replica.pids)


async def test_a_broken_file_is_named_and_nothing_is_left(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "tokenizer.model", "model.safetensors"):
        (broken / name).write_bytes((folder / name).read_bytes())
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    pool = Pool(broken, threads=1, tensor_parallel=2)
    with pytest.raises(GLMError, match=r"Rank [01]: model\.safetensors") as caught:
        await pool.start()
    assert caught.value.kind == "bad_model" and pool.status()["replicas"][0]["pids"] == []


@pytest.mark.parametrize("stored, words", [(None, "heads = 4"), (Quantization(8, shards=2), "column groups")])
async def test_what_can_not_be_split_is_refused_before_anything_starts(
    tmp_path: Path, stored: Quantization | None, words: str
) -> None:
    Config("small", 1, 96, 192, 4 if stored is None else 12, 99, 32, quantization=stored).save(tmp_path)
    with pytest.raises(GLMError, match=words) as caught:
        Pool(tmp_path, tensor_parallel=3)
    assert (caught.value.kind, caught.value.field) == ("unsupported", "tensor_parallel")


async def test_no_rank_outlives_the_parent(folder: Path, meetings: Path) -> None:
    code = (
        "import asyncio, json, sys\n"
        "from engine.serving.pool import Pool\n"
        "async def main():\n"
        "    pool = Pool(sys.argv[1], threads=1, tensor_parallel=2)\n"
        "    await pool.start()\n"
        "    print(json.dumps(pool.status()['replicas'][0]['pids']), flush=True)\n"
        "    await asyncio.sleep(1000)\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PACKAGE_ROOT), "TMPDIR": str(meetings)},
    )
    assert parent.stdout is not None
    pids = json.loads(await asyncio.to_thread(parent.stdout.readline))
    assert len(pids) == 2 and all(alive(pid) for pid in pids) and len(list(meetings.iterdir())) == 1
    parent.kill()
    parent.wait()
    await until(lambda: not any(alive(pid) for pid in pids) and not list(meetings.iterdir()))


# The program


async def test_the_program_serves_on_two_ranks_and_survives_either(long_model: Path, tmp_path: Path) -> None:
    running = Program(long_model, tmp_path / "glm.db", "--tensor-parallel", "2", "--log-level", "error")
    story = {"type": "generate", "text": "Once upon a time", "parameters": LIVELY | {"seed": 3, "max_new_tokens": 5}}
    endless = story | {"parameters": LIVELY | {"seed": 3, "min_new_tokens": 4000, "max_new_tokens": 4000}}
    try:
        running.wait_until_ready()
        async with Client(running) as client:
            expected = (await client.run(story))[-1]
            assert expected["type"] == "done" and expected["fingerprint"]["tensor_parallel"] == "2"
            for rank in (1, 0):
                workers = sorted(running.workers(), key=lambda worker: worker.create_time())
                assert len(workers) == 2
                await client.send(endless)
                await client.until("delta")
                workers[rank].kill()
                (told,) = (await client.all()).values()
                assert (told[-1]["type"], told[-1]["kind"]) == ("error", "worker_died")
                after = (await client.run(story))[-1]  # waits for the new ranks
                assert (after["type"], after["text"]) == ("done", expected["text"])
                assert not any(worker.is_running() for worker in workers)
        workers = running.workers()
    finally:
        output, errors = running.stop()
    assert output.startswith("For staff: /admin. ") and running.process.returncode == 0
    assert eventually(lambda: not any(worker.is_running() for worker in workers), "the ranks leave too")
    assert errors.count("rank 1 ended with signal 9") == errors.count("rank 0 ended with signal 9") == 1


async def test_a_converted_checkpoint_is_served_on_two_ranks_and_survives_either(tmp_path: Path) -> None:
    """From the files of two ranks as GLM-130B's own tool wrote them to a server that says what GLM-130B's own code said."""
    [recorded, *_] = json.loads((SMALL_REFERENCE / "fill_blanks.json").read_text())
    assert recorded["robust"] and recorded["params"]["top_k"] == 1
    expected = " ".join(map(str, recorded["blanks"][0][0][:8]))
    folder = convert(SMALL_REFERENCE, "tiny-mp2", tmp_path / "converted")
    running = Program(folder, tmp_path / "glm.db", "--tensor-parallel", "2", "--log-level", "error")
    parameters = {"temperature": 0, "max_new_tokens": 8}
    message = {"type": "fill", "text": recorded["raw_text"], "parameters": parameters}
    try:
        running.wait_until_ready()
        async with Client(running) as client:
            for rank in (None, 1, 0):
                if rank is not None:
                    sorted(running.workers(), key=lambda worker: worker.create_time())[rank].kill()
                events = await client.run(message)  # waits for the new ranks
                [first, _] = [event for event in events if event["type"] == "blank"]
                assert first["text"].strip() == expected and events[-1]["type"] == "done"
    finally:
        running.stop()
    assert running.process.returncode == 0
