"""Our own products and layers for CPUs with AVX-512: exact, and the same for a row, to the bit, whatever rows are beside it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from engine.glm import checkpoint, native
from engine.glm.config import EMBEDDED, resolve_model
from engine.glm.native_layer import NativeLayer
from engine.glm.prepacked import prepack
from engine.glm.quantize import dequantize_weight, quantize_weight
from engine.serving.cache import KeyValueCache, PromptAttention, Segment, StepAttention
from engine.serving.runner import Runner
from tests.lively import make_lively_model

CPU = torch.device("cpu")
own = pytest.mark.skipif(
    not native.has_products(CPU), reason="no AVX-512 or no compiler: there are no products of our own"
)
# rows that don't fill four, columns that don't fill a vector, more activations than stay in a core's cache
SHAPES = [(5, 34), (30, 16), (64, 1024), (320, 856), (1024, 2816)]
KINDS = ["bf16", "fp16", "fp32", "int4", "int8"]


def numbers(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def matrix(kind: str, rows: int, columns: int, groups: int = 1) -> tuple[native.Matrix, torch.Tensor]:
    """A matrix and the weight that it stands for."""
    weight = numbers(rows, columns)
    if kind.startswith("int"):
        bits = int(kind[3:])
        # Scales so small that products with them have fewer bits in fp16, too.
        weight = weight * torch.logspace(-6, 0, rows)[:, None]
        whole, scale = quantize_weight(weight, bits, groups)
        return native.Matrix(whole, rows, columns, scale), dequantize_weight(whole, scale, bits).double()
    short = weight.to({"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[kind])
    return native.Matrix(short, rows, columns), short.double()


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(params=[False, True], ids=["vectors", "unit"])
def unit(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Without the matrix unit and, where there is one, with it."""
    library = native.library()
    if library is None or library.glm_use_tiles(request.param) != request.param:
        pytest.skip("no matrix unit")
    yield request.param
    library.glm_use_tiles(native.may_use_tiles())


@own
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_products_of_prompts(kind: str, shape: tuple[int, int], threads: int, unit: bool) -> None:
    """As near as sums in fp32 are; with the unit, of whole numbers, as near as two parts of each are. Each row the same, to the
    bit."""
    rows, columns = shape
    by, weight = matrix(kind, rows, columns)
    states, bias, beside = numbers(330, columns, seed=2), numbers(rows, seed=3), numbers(330, rows, seed=4)
    exact = states.double() @ weight.t()
    share = 2**-17 if unit and kind.startswith("int") else 2**-20
    bound = share * (states.double().abs() @ weight.abs().t()) + 1e-6
    whole = native.multiply(by, states, prompt=True)
    assert ((whole - exact).abs() <= bound).all()
    added = native.multiply(by, states, bias, beside, prompt=True)
    assert ((added - (exact + bias + beside)).abs() <= bound + 1e-5).all()
    for count in (1, 2, 15, 16, 17, 31, 32, 33, 64, 100, 329):
        some = states[330 - count :].clone()
        assert torch.equal(native.multiply(by, some, prompt=True), whole[330 - count :]), count
    assert native.multiply(by, states[:0], prompt=True).shape == (0, rows)
    broken = states[:40].clone()
    broken[7, 3], broken[9, 5] = float("nan"), float("inf")
    found = native.multiply(by, broken, prompt=True)
    usual = [row for row in range(40) if row not in (7, 9)]
    assert torch.equal(found[usual], whole[usual]) and not torch.isfinite(found[[7, 9]]).all(dim=1).any()


@own
@pytest.mark.parametrize("rows, columns", [(40, 320), (33, 128), (16, 100)])
def test_eight_bits_by_the_unit_are_the_same(rows: int, columns: int, threads: int) -> None:
    library = native.library()
    if not native.has_eight_bit_products(CPU) or not library.glm_use_tiles(True):
        pytest.skip("no matrix unit")
    whole, scale = quantize_weight(numbers(rows, columns), 8)
    by = native.arranged(whole), scale.flatten().float(), whole.sum(dim=1, dtype=torch.int32), columns
    for count in (1, 7, 8, 16, 17, 33, 100):
        states = numbers(count, columns, seed=count)
        states[0, 5] = 60.0  # far outside
        found = []
        for wanted in (True, False):
            library.glm_use_tiles(wanted)
            found.append(native.multiply8(*by, states))
        assert torch.equal(*found)
    library.glm_use_tiles(native.may_use_tiles())


SEGMENTS = [Segment(40, (1,), 2), Segment(3, (4,), 0), Segment(75, (3, 1, 9), None), Segment(1, (1,), 3)]


@own
@pytest.mark.parametrize("kept", [torch.float32, torch.float16])
@pytest.mark.parametrize("width", [16, 40, 64])
def test_attention_of_prompts(width: int, kept: torch.dtype, threads: int) -> None:
    """What torch's gives, each prompt to the bit as alone; the same keys and values in the cache."""
    caches = [KeyValueCache(2, 4, 3, 80, width, kept, CPU) for _ in range(3)]
    tokens = sum(segment.length for segment in SEGMENTS)
    query, key, value = (numbers(tokens, 3, width, seed=seed) for seed in (1, 2, 3))
    wanted = PromptAttention(caches[0], SEGMENTS)(1, query[None], key[None], value[None])[0]
    found = PromptAttention(caches[1], SEGMENTS).read(1, query, key, value)
    assert (found - wanted).abs().max() < 1e-5
    assert torch.equal(caches[0].keys, caches[1].keys) and torch.equal(caches[0].values, caches[1].values)
    assert caches[0].keys[1, 2, :, :41].abs().min() > 0 and not caches[0].keys[0].any()
    start = 0
    for segment in SEGMENTS:
        own = slice(start, start + segment.length)
        alone = PromptAttention(caches[2], [segment]).read(1, query[own].clone(), key[own].clone(), value[own].clone())
        assert torch.equal(alone, found[own])
        start += segment.length
    # The prompts' last tokens once more, of what is in the cache.
    ends, slots, columns = [40, 47, tokens - 1], [2, 0, 3], [40, 6, 1]
    order = [1, 0, 2]  # by slot
    ends, slots, columns = ([of[row] for row in order] for of in (ends, slots, columns))
    again = StepAttention(caches[1], slots, columns, whole=False)
    some = [part[ends].contiguous() for part in (query, key, value)]
    assert torch.equal(again.read(1, *some), found[ends])
    assert torch.equal(caches[0].keys, caches[1].keys)


@own
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_products(kind: str, shape: tuple[int, int], threads: int) -> None:
    """As near as sums in fp32 are, with and without bias and residual, for any number of rows; each row the same, to the bit."""
    rows, columns = shape
    by, weight = matrix(kind, rows, columns)
    states, bias, beside = numbers(140, columns, seed=2), numbers(rows, seed=3), numbers(140, rows, seed=4)
    exact = states.double() @ weight.t()
    bound = 2**-22 * (states.double().abs() @ weight.abs().t()) + 1e-6
    whole = native.multiply(by, states)
    assert ((whole - exact).abs() <= bound).all()
    assert ((native.multiply(by, states, bias, beside) - (exact + bias + beside)).abs() <= bound + 1e-5).all()
    for count in (1, 2, 3, 4, 5, 6, 7, 12, 13, 64, 139):
        some = states[140 - count :].clone()
        assert torch.equal(native.multiply(by, some), whole[140 - count :]), count
    assert native.multiply(by, states.view(4, 35, columns)).shape == (4, 35, rows)
    assert native.multiply(by, states[:0]).shape == (0, rows)


@own
@pytest.mark.parametrize(
    "kind, columns, groups", [("int4", 256, 8), ("int4", 96, 3), ("int8", 256, 16), ("int8", 96, 2)]
)
def test_scales_of_groups(kind: str, columns: int, groups: int) -> None:
    assert native.can_multiply(int(kind[3:]), columns, groups)
    by, weight = matrix(kind, 40, columns, groups)
    states = numbers(9, columns, seed=2)
    exact = states.double() @ weight.t()
    assert (
        (native.multiply(by, states) - exact).abs() <= 2**-22 * (states.double().abs() @ weight.abs().t()) + 1e-6
    ).all()


def test_what_has_no_product() -> None:
    """Scales that cover parts of vectors, and halves of a byte."""
    assert not native.can_multiply(4, 64, 4) and not native.can_multiply(8, 64, 8)
    assert not native.can_multiply(4, 33, 1) and not native.can_multiply(8, 96, 5)
    assert not native.has_products(torch.device("meta"))


@own
def test_the_gate() -> None:
    pair = torch.cat((numbers(7, 90), torch.linspace(-12, 12, 7 * 90).view(7, 90)), dim=1)
    value, gate = pair.double().chunk(2, dim=1)
    found = native.gated(pair)
    assert (found - value * F.gelu(gate)).abs().max() < 2e-6
    assert torch.equal(native.gated(pair[3:4]), found[3:4])


@own
@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_what_is_no_number_shows(number: float) -> None:
    """In its own row, which a pool ends with an error; the others are as they were."""
    usual = numbers(5, 320, seed=2)
    broken = usual.clone()
    broken[2, 17] = number
    products = [partial(native.multiply, matrix(kind, 40, 320)[0]) for kind in KINDS]
    products.append(native.gated)
    if native.has_eight_bit_products(CPU):
        whole, scale = quantize_weight(numbers(40, 320), 8)
        sums, by = whole.sum(dim=1, dtype=torch.int32), native.arranged(whole)
        products.append(lambda states: native.multiply8(by, scale.flatten().float(), sums, 320, states))
        assert native.multiply8(by, scale.flatten().float(), sums, 320, usual[:0]).shape == (0, 40)
    for product in products:
        found = product(broken)
        assert not torch.isfinite(found[2]).all()
        assert torch.equal(found[[0, 1, 3, 4]], product(usual)[[0, 1, 3, 4]])


@own
def test_a_key_that_is_no_number_shows(folder: Path) -> None:
    model = checkpoint.load(folder).requires_grad_(False)
    prepack(model)
    config = model.config
    cache = KeyValueCache(config.layers, 2, config.heads, 40, config.head_dim, torch.float32, CPU)
    cache.keys[1, 0, 2, 3] = float("nan")
    hidden, rotary = numbers(2, 1, config.hidden, seed=7), model.rotary(torch.tensor([[6], [1]]))
    with torch.inference_mode():
        found = model.layers[1](hidden, rotary, StepAttention(cache, [0, 1], [5, 0]))
    assert found[0].isnan().all() and torch.isfinite(found[1]).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> Path:
    return make_lively_model(tmp_path_factory.mktemp("lively") / "model", vocabulary_file)


@own
@pytest.mark.parametrize("embedded", [False, True])  # heads of 16 and of 40
@pytest.mark.parametrize("quantize", [None, "int4", "int8", "w8a8"])
@pytest.mark.parametrize("kept", [torch.float32, torch.float16])
def test_a_layer_in_one_call(folder: Path, quantize: str | None, embedded: bool, kept: torch.dtype) -> None:
    """It computes what the layer's parts do, writes the same keys and values, and each row as if it were alone."""
    model = checkpoint.load(resolve_model(EMBEDDED) if embedded else folder, quantize=quantize).requires_grad_(False)
    prepack(model)
    layer, config = model.layers[1], model.config
    assert isinstance(layer.whole, NativeLayer)
    slots, columns = [0, 2, 3], [5, 0, 33]
    caches = [KeyValueCache(config.layers, 4, config.heads, 40, config.head_dim, kept, CPU) for _ in range(3)]
    for cache in caches:
        cache.keys.copy_(numbers(*cache.keys.shape, seed=5))
        cache.values.copy_(numbers(*cache.values.shape, seed=6))
    hidden, rotary = numbers(3, 1, config.hidden, seed=7), model.rotary(torch.tensor([[6], [1], [30]]))
    with torch.inference_mode():
        found = layer(hidden, rotary, StepAttention(caches[0], slots, columns))
        whole, layer.whole = layer.whole, None
        wanted = layer(hidden, rotary, StepAttention(caches[1], slots, columns))
        assert (found - wanted).abs().max() < (0.05 if quantize == "w8a8" else 2e-5) * wanted.abs().max()
        near = 1e-4 if kept == torch.float32 else 4e-3  # a rounding
        assert (caches[0].keys - caches[1].keys).abs().max() < near
        assert (caches[0].values - caches[1].values).abs().max() < near
        layer.whole = whole
        for row in range(3):
            only = tuple(table[row : row + 1] for table in rotary)
            alone = layer(
                hidden[row : row + 1], only, StepAttention(caches[2], slots[row : row + 1], columns[row : row + 1])
            )
            assert torch.equal(alone, found[row : row + 1])
    assert torch.equal(caches[2].keys, caches[0].keys) and torch.equal(caches[2].values, caches[0].values)


def test_without_a_compiler_torchs_products_serve(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does one that fails end anything."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o700)
    for path in (tmp_path / "nothing", tmp_path):
        monkeypatch.setenv("PATH", str(path))
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setattr(native, "library", native.library.__wrapped__)
        assert not native.has_products(CPU)
        model = checkpoint.load(folder, quantize="int4")
        prepack(model)
        assert all(layer.whole is None for layer in model.layers)
        monkeypatch.undo()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert "were not built" in caplog.text
    assert not list((tmp_path / "cache").rglob("*.so"))


@own
def test_a_prompts_last_token_among_running_rows(folder: Path) -> None:
    """It is computed in its own way, and each row of logits comes back in its place."""
    model = checkpoint.load(folder).requires_grad_(False)
    prepack(model)
    slots, tokens, columns = [0, 1, 2], [31, 32, 33], [5, 9, 3]

    def logits(rows: list[int], again: list[int]) -> torch.Tensor:
        runner = Runner(model, 3, 16)
        runner.cache.keys.copy_(numbers(*runner.cache.keys.shape, seed=5))
        runner.cache.values.copy_(numbers(*runner.cache.values.shape, seed=6))
        some = [[of[row] for row in rows] for of in (slots, tokens, columns, columns)]
        state = runner.step(*some, again=again)
        runner.advance(state)
        return runner.logits(state)

    together = logits([0, 1, 2], [1])
    for row in range(3):
        assert torch.equal(logits([row], [0] if row == 1 else []), together[row : row + 1])
    assert (logits([1], []) - together[1]).abs().max() < 1e-3
