"""Other weights put into service under load: what runs ends on the weights it began with, and nothing is lost."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from engine.errors import GLMError
from engine.glm import checkpoint, lora
from engine.glm.adapter import Lora
from engine.glm.config import PRESETS, weights_hash
from engine.glm.tokenizer import Tokenizer
from engine.serving import generate
from engine.serving.events import Blank, Done
from engine.serving.pool import Pool
from engine.serving.protocol import Finished, Sampling
from engine.serving.stream import Started
from tests.lively import make_lively_model
from tests.test_pool import DEADLINE, alive, drain, first_text, long, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEEDS = range(1, 9)
TEXT = "Once upon a [MASK] there was a [MASK] that [MASK]."


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> dict[str, Path]:
    """Two models of their own weights, and an adapter over the first."""
    parent = tmp_path_factory.mktemp("versions")
    folders = {
        name: make_lively_model(parent / name, vocabulary_file, seed=seed) for name, seed in (("one", 7), ("two", 8))
    }
    model = checkpoint.load(folders["one"], training=True)
    lora.add(model, Lora(4, 8), torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, matrix in lora.named_parameters(model).items():
            if name.endswith("lora_b"):
                matrix.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(len(name)))
    lora.save(model, parent / "adapter", base=folders["one"], name="adapted")
    return folders | {"adapter": parent / "adapter"}


@pytest.fixture(scope="module")
def tokenizer(folders: dict[str, Path]) -> Tokenizer:
    return Tokenizer.load(folders["one"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(folders: dict[str, Path]) -> AsyncIterator[Pool]:
    async with Pool(folders["one"], threads=1, slots=4, queue=64, batch_invariant=True) as pool:
        yield pool


@pytest.fixture
def make(tokenizer: Tokenizer):
    from engine.glm import blanks
    from engine.serving.protocol import Request

    count = 0

    def make(text: str = "Once upon a time [gMASK]", alternatives: int = 1, **sampling) -> Request:
        nonlocal count
        count += 1
        document = blanks.parse(text, tokenizer)
        prompt = blanks.prompt(document.ids, document.masks[-1].index, tokenizer)
        values = {"seed": count, "max_new_tokens": 40, "min_new_tokens": 40} | sampling
        return Request(f"{id(make)}.{count}", prompt, Sampling(**values), alternatives)

    return make


async def ids_of(pool: Pool, make) -> dict[int, tuple[int, ...]]:
    streams = {seed: pool.stream(make(seed=seed)) for seed in SEEDS}
    return {seed: (await drain(stream))[-1].results[0].ids for seed, stream in streams.items()}


async def test_every_stream_ends_on_the_weights_it_began_with(pool: Pool, folders: dict[str, Path], make) -> None:
    """Ten clients ask without a pause on four slots, while switches come, one of them back."""
    expected = {"one": await ids_of(pool, make)}
    hashes = {weights_hash(folder): name for name, folder in folders.items()}
    done = False
    found: list[tuple[str, int, tuple[int, ...]]] = []
    straddled: list[tuple[str, str]] = []  # served when it was accepted, and when it had ended

    async def client(number: int) -> None:
        turn = number
        while not done:
            seed = SEEDS[turn % len(SEEDS)]
            turn += 1
            accepted_for, ends = pool.model, None
            async for event in pool.stream(make(seed=seed)):
                if isinstance(event, Started):
                    assert str(folders[hashes[event.limits.weights_hash]]) == accepted_for
                elif isinstance(event, Finished):
                    ends = event.results[0].ids
            assert ends is not None
            found.append((Path(accepted_for).name, seed, ends))
            if pool.model != accepted_for:
                straddled.append((Path(accepted_for).name, Path(pool.model).name))

    clients = [asyncio.create_task(client(number)) for number in range(10)]
    async with asyncio.timeout(DEADLINE):
        for name in ("two", "one", "two"):
            limits = await pool.switch(folders[name])
            assert limits.weights_hash == weights_hash(folders[name]) and pool.limits is limits
            before = len(found)
            await until(lambda before=before: len(found) >= before + 20)
        done = True
        await asyncio.gather(*clients)
        await pool.settled()
    assert set(straddled) == {("one", "two"), ("two", "one")}
    expected["two"] = await ids_of(pool, make)
    assert expected["one"] != expected["two"]
    for name, seed, ids in found:
        assert ids == expected[name][seed], (name, seed)
    status = pool.status()
    assert [replica["model"] for replica in status["replicas"]] == [str(folders["two"])]
    assert status["in_flight"] == status["waiting"] == 0


async def test_a_run_of_several_blanks_stays_on_its_weights(
    pool: Pool, folders: dict[str, Path], tokenizer: Tokenizer, make
) -> None:
    """To its end, or until nobody holds it."""
    sampling = Sampling(seed=5, max_new_tokens=8)

    async def fills(run) -> list[str]:
        return [event.text async for event in run if isinstance(event, Blank)]

    alone = await fills(generate.fill(pool, tokenizer, TEXT, sampling))
    events = aiter(run := generate.fill(pool, tokenizer, TEXT, sampling))
    found = []
    async for event in events:
        if isinstance(event, Blank):
            found.append(event.text)
            break
    forgotten = generate.fill(pool, tokenizer, TEXT, sampling)
    async for event in forgotten:
        if isinstance(event, Blank):
            break
    old, hashed = pool.status()["replicas"][0]["pid"], run.limits.weights_hash
    await pool.switch(folders["adapter"])
    del forgotten, event
    gc.collect()
    assert isinstance((await drain(pool.stream(make())))[-1], Finished)
    leaving = {replica["pid"]: replica["leaving"] for replica in pool.status()["replicas"]}
    assert leaving[old] and list(leaving.values()) == [False, True]  # nothing of it runs, but blanks are to come
    last = None
    async for event in events:
        last = event
        if isinstance(event, Blank):
            found.append(event.text)
    assert isinstance(last, Done) and last.fingerprint["weights_hash"] == hashed
    assert found == alone != await fills(generate.fill(pool, tokenizer, TEXT, sampling))
    await asyncio.wait_for(pool.settled(), DEADLINE)
    assert not alive(old) and run.limits.weights_hash == hashed != pool.require_limits().weights_hash


async def test_weights_that_can_not_be_loaded_leave_the_old_ones(
    pool: Pool, folders: dict[str, Path], tmp_path: Path, make
) -> None:
    before = pool.model
    broken, large = tmp_path / "broken", tmp_path / "large"
    for folder in (broken, large):
        shutil.copytree(folders["one"], folder)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    replace(PRESETS["glm-130b"], num_image_tokens=0, layers=7000).save(large)
    stream = pool.stream(long(make))
    for folder, kind, said in (
        (broken, "bad_model", "model.safetensors"),
        (large, "overloaded", "does not fit"),
        (tmp_path / "nothing", "model_not_found", "There is no model"),
    ):
        with pytest.raises(GLMError, match=said) as caught:
            await pool.switch(folder)
        assert caught.value.kind == kind
    assert isinstance((await drain(stream))[-1], Finished)
    assert pool.model == before and pool.ready and len(pool.status()["replicas"]) == 1
    assert isinstance((await drain(pool.stream(make())))[-1], Finished)


async def test_a_new_replica_killed_while_it_loads(pool: Pool, folders: dict[str, Path], make) -> None:
    before, other = pool.model, folders["one" if pool.model == str(folders["two"]) else "two"]
    switching = asyncio.create_task(pool.switch(other))
    await until(lambda: len(pool.status()["replicas"]) == 2 and bool(pool.status()["replicas"][1]["pid"]))
    with pytest.raises(GLMError, match="just now") as caught:
        await pool.switch(other)
    assert caught.value.kind == "overloaded"
    pid = pool.status()["replicas"][1]["pid"]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(GLMError, match="signal 9"):
        await switching
    assert pool.model == before and len(pool.status()["replicas"]) == 1
    assert isinstance((await drain(pool.stream(make())))[-1], Finished)


async def test_an_old_replica_killed_while_it_drains_is_no_loss(pool: Pool, folders: dict[str, Path], make) -> None:
    """What had shown nothing runs again, on the same old weights."""
    expected = await ids_of(pool, make)
    pid = pool.status()["replicas"][0]["pid"]
    running = [pool.stream(long(make)) for _ in range(4)]
    for stream in running:
        await first_text(stream)
    os.kill(pid, signal.SIGSTOP)
    waiting = {seed: pool.stream(make(seed=seed)) for seed in SEEDS}
    await pool.switch(folders["one"])
    os.kill(pid, signal.SIGKILL)
    for stream in running:
        end = (await drain(stream))[-1]
        assert isinstance(end, GLMError) and end.kind == "worker_died"
    assert {seed: (await drain(stream))[-1].results[0].ids for seed, stream in waiting.items()} == expected
    await asyncio.wait_for(pool.settled(), DEADLINE)
    assert pool.model == str(folders["one"]) and pool.ready


@pytest.mark.heavy
async def test_drained_first(pool: Pool, folders: dict[str, Path], tmp_path: Path, make) -> None:
    """With no room for both: the old weights end what they have, new requests are refused until the new ones are there."""
    for folder, after in ((folders["two"], "two"), (tmp_path / "broken", "two")):
        if not folder.exists():
            shutil.copytree(folders["one"], folder)
            (folder / "model.safetensors").write_bytes(b"nothing")
        streams = [pool.stream(long(make)) for _ in range(6)]
        switching = asyncio.create_task(pool.switch(folder, drain=True))
        await asyncio.sleep(0)
        with pytest.raises(GLMError, match="being loaded") as caught:
            pool.stream(make())
        assert caught.value.kind == "overloaded" and caught.value.retry_after_s
        for stream in streams:
            assert isinstance((await drain(stream))[-1], Finished)
        assert len(pool.status()["replicas"]) <= 1
        if after in str(folder):
            await switching
        else:
            with pytest.raises(GLMError) as caught:
                await switching
            assert caught.value.kind == "bad_model"
        assert pool.model == str(folders[after])
        assert isinstance((await drain(pool.stream(make())))[-1], Finished)


async def test_chosen_before_the_start(folders: dict[str, Path], tmp_path: Path, make) -> None:
    """And again after a start that failed."""
    broken = tmp_path / "broken"
    shutil.copytree(folders["two"], broken)
    (broken / "model.safetensors").write_bytes(b"nothing")
    pool = Pool(folders["one"], threads=1)
    pool.choose(broken)
    with pytest.raises(GLMError):
        await pool.start()
    pool.choose(folders["two"])
    async with pool:
        assert pool.limits is not None and pool.limits.weights_hash == weights_hash(folders["two"])
        assert json.loads((folders["two"] / "config.json").read_text())["name"] == pool.limits.model
        assert isinstance((await drain(pool.stream(make())))[-1], Finished)
