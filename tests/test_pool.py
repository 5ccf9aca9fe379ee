"""The pool over real worker processes: batching, waiting, cancelling, and processes that die at bad moments."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from engine.errors import GLMError
from engine.glm import blanks
from engine.glm.tokenizer import Tokenizer
from engine.serving.pool import Pool
from engine.serving.protocol import Cancelled, Failed, Finished, Options, Ready, Request, Sampling, Step, Token
from engine.serving.replica import PACKAGE_ROOT, Replica
from engine.serving.stream import Queued, Started, Stream
from tests.lively import make_lively_model

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEADLINE = 90.0  # seconds for anything; a process that imports torch on a busy machine takes ten


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> Path:
    return make_lively_model(tmp_path_factory.mktemp("lively"), vocabulary_file)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(folder: Path) -> AsyncIterator[Pool]:
    async with Pool(folder, threads=1, slots=4, queue=3) as pool:
        yield pool


@pytest.fixture
def make(tokenizer: Tokenizer) -> Callable[..., Request]:
    count = 0

    def make(text: str = "Once upon a time [gMASK]", alternatives: int = 1, **sampling) -> Request:
        nonlocal count
        count += 1
        document = blanks.parse(text, tokenizer)
        prompt = blanks.prompt(document.ids, document.masks[-1].index, tokenizer)
        values = {"seed": count, "max_new_tokens": 10} | sampling
        return Request(f"{count} {time.monotonic()}", prompt, Sampling(**values), alternatives)

    return make


def long(make: Callable[..., Request], **more) -> Request:
    """A request that runs until something happens to it, for as long as the positions last."""
    return make(max_new_tokens=240, min_new_tokens=240, **more)


async def drain(stream: Stream) -> list:
    """All events; an error is the last one."""
    events: list = []
    try:
        async with asyncio.timeout(DEADLINE):
            async for event in stream:
                events.append(event)
    except GLMError as error:
        events.append(error)
    return events


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.01)


async def first_text(stream: Stream) -> None:
    async with asyncio.timeout(DEADLINE):
        async for event in stream:
            if isinstance(event, Token):
                return


def pid_of(pool: Pool, index: int = 0) -> int:
    pid = pool.status()["replicas"][index]["pid"]
    assert pid
    return pid


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_events_of_one_request(pool: Pool, make) -> None:
    events = await drain(pool.stream(make(alternatives=2)))
    kinds = [type(event) for event in events]
    assert kinds[0] is Queued and kinds[1] is Started and kinds[-1] is Finished
    assert set(kinds[2:-1]) == {Token}
    assert events[1].limits == pool.limits and pool.limits.slots == 4
    for alternative, result in enumerate(events[-1].results):
        tokens = [event for event in events[2:-1] if event.alternative == alternative]
        assert tuple(event.token for event in tokens if event.token is not None) == result.ids
        assert "".join(event.text for event in tokens) == result.text
        assert tuple(event.logprob for event in tokens if event.token is not None) == result.logprobs
    assert pool.status()["in_flight"] == 0


async def test_waiting_in_order_with_positions_and_refusal_when_full(pool: Pool, make) -> None:
    os.kill(pid_of(pool), signal.SIGSTOP)
    try:
        running = [pool.stream(make()) for _ in range(4)]
        waiting = [pool.stream(make()) for _ in range(3)]
        with pytest.raises(GLMError) as caught:
            pool.stream(make())
        assert caught.value.kind == "queue_full" and caught.value.retry_after_s > 0 and caught.value.limit == 3
        goes_on = pool.stream(make(), first=True)  # part of a run that was accepted: never refused
        await asyncio.sleep(0)
        assert pool.status()["waiting"] == 4 and pool.status()["in_flight"] == 4
        cancelled = waiting.pop(0)
        assert await pool.cancel(cancelled.request.id)
        assert await drain(cancelled) == [Queued(1, pool._eta(1)), Cancelled(cancelled.request.id)]
    finally:
        os.kill(pid_of(pool), signal.SIGCONT)
    order: list[Stream] = []

    async def started(stream: Stream) -> list[Queued]:
        seen = []
        async for event in stream:
            if isinstance(event, Queued):
                seen.append(event)
            elif isinstance(event, Started):
                order.append(stream)
        return seen

    async with asyncio.timeout(DEADLINE):
        positions = await asyncio.gather(*(started(stream) for stream in [*running, goes_on, *waiting]))
    assert order == [*running, goes_on, *waiting]
    assert [[event.position for event in seen][0] for seen in positions] == [0, 0, 0, 0, 0, 1, 2]
    assert all(
        event.eta_s is not None and event.eta_s >= 0 for seen in positions[4:] for event in seen
    )  # measured before


async def test_cancel_frees_the_slots_for_the_next(pool: Pool, make) -> None:
    streams = [pool.stream(long(make)) for _ in range(4)]
    for stream in streams:
        await first_text(stream)
    nexts = pool.stream(make(alternatives=2))
    assert await pool.cancel(streams[1].request.id) and await pool.cancel(streams[2].request.id)
    assert isinstance((await drain(nexts))[-1], Finished)  # long before the others could end
    for stream in streams[1:3]:
        events = await drain(stream)
        assert isinstance(events[-1], Cancelled) and len(events) < 200
    assert not streams[0].ended and not streams[3].ended
    for stream in (streams[0], streams[3]):
        await pool.cancel(stream.request.id)
        assert isinstance((await drain(stream))[-1], Cancelled)
    assert not await pool.cancel(streams[0].request.id) and not await pool.cancel("nobody")


async def test_refused_at_once(pool: Pool, make) -> None:
    with pytest.raises(GLMError) as caught:
        pool.stream(make(temperature=-1))
    assert caught.value.kind == "bad_request" and caught.value.field == "temperature"
    assert pool.status()["in_flight"] == 0


async def test_killed_before_any_text_the_request_is_run_again_unnoticed(pool: Pool, make) -> None:
    request = make()
    expected = (await drain(pool.stream(make(seed=request.sampling.seed))))[-1].results
    pid = pid_of(pool)
    os.kill(pid, signal.SIGSTOP)
    stream, cancelled = pool.stream(request), pool.stream(make())
    await pool.cancel(cancelled.request.id)
    os.kill(pid, signal.SIGKILL)
    events = await drain(stream)
    assert isinstance(events[-1], Finished) and events[-1].results == expected
    assert sum(isinstance(event, Started) for event in events) == 1
    assert isinstance((await drain(cancelled))[-1], Cancelled)
    assert pid_of(pool) != pid and pool.status()["replicas"][0]["starts"] >= 2


async def test_a_request_that_kills_its_worker_is_not_run_for_ever(pool: Pool, make) -> None:
    """A prompt without positions can only come from a mistake of ours: the worker ends, each time that it is tried."""
    await until(lambda: pool.ready)
    starts = pool.status()["replicas"][0]["starts"]
    good = make()
    bad = Request("bad", replace(good.prompt, positions=()), good.sampling)
    [end] = [event for event in await drain(pool.stream(bad)) if not isinstance(event, (Queued, Started))]
    assert isinstance(end, GLMError) and end.kind == "worker_died"
    assert isinstance((await drain(pool.stream(good)))[-1], Finished)
    assert pool.status()["replicas"][0]["starts"] == starts + 2


async def test_killed_during_sixteen_streams(folder: Path, make) -> None:
    async with Pool(folder, threads=1, slots=16) as pool:
        streams = [pool.stream(long(make) if number % 2 else make(max_new_tokens=2)) for number in range(16)]
        for stream in streams[1::2]:
            await first_text(stream)
        killed_at = time.monotonic()
        os.kill(pid_of(pool), signal.SIGKILL)
        ends = [(await drain(stream))[-1] for stream in streams]
        for number, end in enumerate(ends):
            if number % 2:
                assert isinstance(end, GLMError) and end.kind == "worker_died" and end.retry_after_s
            else:  # short ones had ended, or had shown nothing, or are told
                assert isinstance(end, Finished) or end.kind == "worker_died"
        assert isinstance((await drain(pool.stream(make())))[-1], Finished)
        print(f"answered again {time.monotonic() - killed_at:.1f} s after the kill")
        assert pool.status()["in_flight"] == pool.status()["waiting"] == 0


async def test_two_replicas_share_the_load_and_not_their_deaths(folder: Path, make) -> None:
    async with Pool(folder, threads=1, slots=4, replicas=2) as pool:
        await until(lambda: all(member["state"] == "ready" for member in pool.status()["replicas"]))
        streams = [pool.stream(long(make)) for _ in range(4)]
        assert [member["requests"] for member in pool.status()["replicas"]] == [2, 2]
        for stream in streams:
            await first_text(stream)
        os.kill(pid_of(pool, 0), signal.SIGKILL)
        ends = [(await drain(stream))[-1] for stream in streams]
        assert [type(end) for end in ends] == [GLMError, Finished, GLMError, Finished]
        assert pool.ready
        pids = [pid_of(pool, 1)]
    assert not any(alive(pid) for pid in pids)


async def test_stop_is_quick_clean_and_ends_every_stream(folder: Path, make) -> None:
    pool = Pool(folder, threads=1, slots=2)
    await pool.start()
    pid = pid_of(pool)
    streams = [pool.stream(long(make)) for _ in range(3)]
    await first_text(streams[0])
    began = time.monotonic()
    await pool.stop()
    assert time.monotonic() - began < 5
    assert not alive(pid) and not pool.ready
    for stream in streams:
        end = (await drain(stream))[-1]
        assert isinstance(end, GLMError) and end.kind == "worker_died"
    with pytest.raises(GLMError) as caught:
        pool.stream(make())
    assert caught.value.kind == "overloaded"
    await pool.stop()


async def test_a_model_that_can_not_be_loaded(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "tokenizer.model", "model.safetensors"):
        (broken / name).write_bytes((folder / name).read_bytes())
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    pool = Pool(broken, threads=1)
    with pytest.raises(GLMError) as caught:
        await pool.start()
    assert caught.value.kind == "bad_model" and "model.safetensors" in str(caught.value)
    assert "Traceback" not in str(caught.value) and pool.status()["replicas"][0]["pid"] is None
    with pytest.raises(GLMError) as caught:
        Pool(tmp_path / "nothing")
    assert caught.value.kind == "model_not_found"


async def test_a_model_that_breaks_later_fails_what_waits(folder: Path, tmp_path: Path, make) -> None:
    """Its file is damaged while it runs; then its process dies. Who waits is told why, and a repaired file is found again."""
    fragile = tmp_path / "fragile"
    fragile.mkdir()
    for name in ("config.json", "tokenizer.model", "model.safetensors"):
        (fragile / name).write_bytes((folder / name).read_bytes())
    async with Pool(fragile, threads=1, slots=1) as pool:
        weights = fragile / "model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-1000])
        pid = pid_of(pool)
        os.kill(pid, signal.SIGSTOP)
        streams = [pool.stream(make()), pool.stream(make())]
        os.kill(pid, signal.SIGKILL)
        for stream in streams:
            end = (await drain(stream))[-1]
            assert isinstance(end, GLMError) and end.kind == "worker_died" and "model.safetensors" in str(end)
        with pytest.raises(GLMError) as caught:
            pool.stream(make())
        assert caught.value.kind == "overloaded" and caught.value.retry_after_s
        weights.write_bytes(whole)
        await until(lambda: pool.ready)
        assert isinstance((await drain(pool.stream(make())))[-1], Finished)


async def test_non_finite_logits_are_a_named_error(tmp_path: Path, vocabulary_file: Path, make) -> None:
    async with Pool(make_lively_model(tmp_path, vocabulary_file, poison=True), threads=1) as pool:
        pid = pid_of(pool)
        for _ in range(2):
            end = (await drain(pool.stream(make())))[-1]
            assert isinstance(end, GLMError) and end.kind == "non_finite_logits"
        assert pid_of(pool) == pid


async def test_what_a_pool_can_not_be() -> None:
    for values, kind, field in (
        ({"tensor_parallel": 0}, "bad_request", "tensor_parallel"),
        ({"tensor_parallel": 3}, "unsupported", "tensor_parallel"),
        ({"quantize": "int3"}, "bad_request", "quantize"),
        ({"quantize": "int4-g128"}, "bad_model", "group"),
        ({"offload": "tape"}, "bad_request", "offload"),
        ({"offload": "disk", "weights_budget": 0}, "bad_request", "weights_budget"),
        ({"weights_budget": 1 << 30}, "bad_request", "weights_budget"),
        ({"replicas": 0}, "bad_request", "replicas"),
        ({"precision": "fp8"}, "bad_request", "precision"),
        ({"device": "tpu"}, "bad_request", "device"),
        ({"threads": -1}, "bad_request", "threads"),
    ):
        with pytest.raises(GLMError) as caught:
            Pool("embedded", **values)
        assert (caught.value.kind, caught.value.field) == (kind, field)


# One replica by itself


async def test_neither_end_blocks_the_other_when_pipes_are_full(folder: Path, make) -> None:
    """Many times what a pipe holds goes in while the worker is stopped; all answers come, and the loop was never held."""
    heard: list = []
    died = asyncio.Event()
    options = Options(str(folder), "fp32", 4, 1, None, 512, 0.1, 30)
    replica = Replica(options, heard.append, lambda code: died.set())
    await until(lambda: bool(heard))
    assert isinstance(heard.pop(), Ready)
    os.kill(replica.pid, signal.SIGSTOP)
    refused = make(temperature=-1)
    began = time.monotonic()
    for number in range(3000):
        replica.send(Request(f"{number}", refused.prompt, refused.sampling))
    assert time.monotonic() - began < 2
    os.kill(replica.pid, signal.SIGCONT)
    await until(lambda: sum(len(step.ends) for step in heard) == 3000)
    ends = [end for step in heard for end in step.ends]
    assert all(isinstance(step, Step) for step in heard) and all(isinstance(end, Failed) for end in ends)
    assert [end.id for end in ends] == [f"{number}" for number in range(3000)]
    await replica.close()
    await asyncio.wait_for(died.wait(), DEADLINE)


async def test_an_idle_worker_sleeps_and_ctrl_c_is_not_its_business(folder: Path) -> None:
    async with Pool(folder, threads=1) as pool:
        pid = pid_of(pool)

        def ticks() -> int:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return int(fields[11]) + int(fields[12])

        os.kill(pid, signal.SIGINT)
        before = ticks()
        await asyncio.sleep(1.0)  # the measurement itself
        assert ticks() - before <= 5  # hundredths of a second
        assert alive(pid) and pool.ready


async def test_a_worker_does_not_outlive_its_parent(folder: Path) -> None:
    code = (
        "import asyncio, os, sys\n"
        "from engine.serving.pool import Pool\n"
        "async def main():\n"
        "    pool = Pool(sys.argv[1], threads=1)\n"
        "    await pool.start()\n"
        "    print(pool.status()['replicas'][0]['pid'], flush=True)\n"
        "    await asyncio.sleep(1000)\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PACKAGE_ROOT)},
    )
    assert parent.stdout is not None
    pid = int(await asyncio.to_thread(parent.stdout.readline))
    assert alive(pid)
    parent.kill()
    parent.wait()
    await until(lambda: not alive(pid) or "Z" in Path(f"/proc/{pid}/stat").read_text().split(")")[1])
