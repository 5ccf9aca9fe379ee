"""Keys and values in 16 bits beside arithmetic in 32: from the setting to what attention sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.errors import GLMError
from engine.glm import checkpoint, plan
from engine.glm.cache_precision import KV_CACHES, cache_precision
from engine.glm.config import PRESETS
from engine.glm.model import GLM
from engine.glm.prepacked import prepack
from engine.serving.bench import random_readings
from engine.serving.pool import Pool
from engine.serving.runner import Runner
from engine.serving.work import Tree
from tests.lively import make_lively_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> Path:
    return make_lively_model(tmp_path_factory.mktemp("lively") / "model", vocabulary_file)


def test_what_is_chosen() -> None:
    found = {
        (kind, precision, quantized): cache_precision(kind, precision, quantized)
        for kind in KV_CACHES
        for precision in ("fp32", "bf16")
        for quantized in (False, True)
    }
    halves = {of for of, precision in found.items() if precision == "fp16"}
    assert halves == {("auto", "fp32", True)} | {("fp16", name, some) for name in ("fp32", "bf16") for some in (0, 1)}
    assert all(precision == of[1] for of, precision in found.items() if of not in halves)


def loaded(folder: Path, quantize: str | None, *, own: bool) -> GLM:
    """own: with whole layers of our own, where they can be had; else all that is done is torch's attention."""
    model = checkpoint.load(folder, quantize=quantize).requires_grad_(False)
    prepack(model)
    if not own:
        model.whole = None
        for layer in model.layers:
            layer.whole = None
    return model


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("kind", ["full", "fp16"])
def test_what_attention_sees_is_what_is_kept(folder: Path, kind: str, own: bool) -> None:
    """A prompt's own tokens see what steps see later: a step gives what reading one token more gives. So do trees."""
    model = loaded(folder, "int8", own=own)
    [reading] = random_readings(model, 1, 40)
    runner, other = (Runner(model, 2, 64, kv_cache=kind) for _ in range(2))
    assert runner.cache.keys.dtype == (torch.float16 if kind == "fp16" else torch.float32)

    def logits(some: Runner, state) -> torch.Tensor:
        some.advance(state)
        return some.logits(state)

    first = logits(runner, runner.read([reading]))
    step = logits(runner, runner.step([0], [7], [41], [41]))
    prompt = reading.prompt
    longer = replace(prompt, ids=(*prompt.ids, 7), positions=(*prompt.positions, 41))
    wanted = logits(other, other.read([reading._replace(prompt=longer)]))
    size = wanted.abs().max()
    assert (step - wanted).abs().max() < 1e-3 * size < (first - wanted).abs().max()
    # Up to roundings that differ in their last bit.
    assert (runner.cache.keys[:, 0] - other.cache.keys[:, 0]).abs().max() < 1e-2 * other.cache.keys.abs().max()
    tree = Tree((0,), 41, 0, 41, (7,), ((0,),))
    found = logits(other, other.step([], [], [], [], [tree]))
    assert (found - wanted).abs().max() < 1e-3 * size


def test_16_bits_change_little(folder: Path) -> None:
    model = loaded(folder, None, own=True)
    found = []
    for kind in ("full", "fp16"):
        runner = Runner(model, 1, 64, kv_cache=kind)
        state = runner.read(random_readings(model, 1, 40))
        runner.advance(state)
        found.append(runner.logits(state))
    assert 0 < (found[0] - found[1]).abs().max() < 2e-2 * found[0].abs().max()


async def test_a_pool_says_so(folder: Path) -> None:
    for options, wanted in (
        ({"quantize": "int8"}, "fp32, int8, fp16 cache"),
        ({"quantize": "int8", "kv_cache": "full"}, "fp32, int8"),
        ({"kv_cache": "fp16"}, "fp32, fp16 cache"),
    ):
        async with Pool(folder, threads=1, slots=1, **options) as pool:
            assert pool.limits is not None and pool.limits.fingerprint()["precision"] == wanted
    with pytest.raises(GLMError) as caught:
        Pool(folder, kv_cache="fp8")
    assert (caught.value.kind, caught.value.field) == ("bad_request", "kv_cache")


def test_a_plan_counts_it() -> None:
    machine = plan.Machine(0, 1 << 40)
    sizes = {
        kind: plan.plan(PRESETS["glm-330m"], machine, plan.Wish("fp32", "int8", slots=4, kv_cache=kind)).cache
        for kind in KV_CACHES
    }
    assert sizes["full"] == 2 * sizes["fp16"] == 2 * sizes["auto"] == 4 * 2048 * 2 * 24 * 1024 * 4
