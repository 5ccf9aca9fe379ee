"""Quantised weights: GLM-130B's own numbers, products in blocks and by the CPU's kernels, in memory, streamed, and in ranks."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from engine.errors import GLMError
from engine.glm import checkpoint, native, offload, sat
from engine.glm.config import CHAT, QUANTIZATIONS, Config, Quantization, weights_hash
from engine.glm.layer_sources import FileSource, prepared_layers
from engine.glm.model import GLM, initialise
from engine.glm.packed import best_product, int4_product, int8_product, pack
from engine.glm.parallel import SINGLE, Ranks
from engine.glm.quantize import (
    ROWS,
    QuantizedLinear,
    dequantize_weight,
    exact_product,
    pack_nibbles,
    quantize_weight,
    unpack_nibbles,
)
from engine.glm.quantize_folder import quantize_folder
from engine.glm.random_layers import random_ends, random_layers
from tests import sat_files
from tests.command_line import call, run
from tests.ranks import run_ranks

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 2e-4  # of logits, from the original code's
CPU = torch.device("cpu")
CONFIG = Config("small", 3, 128, 256, 4, 256, 64, chat=CHAT)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> Path:
    """A random model in fp32, with biases."""
    folder = tmp_path_factory.mktemp("plain") / "model"
    model = GLM(CONFIG)
    initialise(model, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            if name.endswith("bias"):
                parameter.copy_(0.1 * random(*parameter.shape, seed=number))
    checkpoint.save(model, folder, tokenizer=vocabulary_file, dtype=torch.float32)
    return folder


def logits(model: GLM) -> torch.Tensor:
    ids = torch.randint(0, CONFIG.vocabulary, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model(ids, torch.arange(9).expand(3, 9), torch.tensor([4, 1, 8])).float()


# The numbers


@pytest.mark.parametrize("bits", [8, 4])
def test_numbers_and_scales_of_a_row_are_the_originals(bits: int) -> None:
    """Against the tests' own arithmetic on the whole matrix, which has more rows than are quantised at a time."""
    weight = random(2 * ROWS + 3, 64).half()
    weight[5] = 0
    numbers, scale = quantize_weight(weight, bits)
    weight[5, 0] = 1  # their scale must not be zero
    expected, expected_scale = sat_files.quantize(weight, bits)
    expected[5], expected_scale[5] = 0, 0
    assert torch.equal(numbers, expected) and torch.equal(scale.flatten(), expected_scale)
    assert not dequantize_weight(numbers, scale, bits)[5].any()


def test_nibbles_of_every_byte() -> None:
    packed = torch.arange(-128, 128).to(torch.int8).view(4, 64)
    numbers = unpack_nibbles(packed)
    for byte, pair in zip(packed.flatten().tolist(), numbers.view(-1, 2).tolist(), strict=True):
        high, low = (byte & 255) >> 4, byte & 15
        assert pair == [high - 16 * (high > 7), low - 16 * (low > 7)]
    assert torch.equal(pack_nibbles(numbers), packed)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_groups_of_columns_against_double_precision(bits: int, groups: int) -> None:
    weight, states = random(48, 256).half(), random(3, 256, seed=1)
    numbers, scale = quantize_weight(weight, bits, groups)
    exact = unpack_nibbles(numbers).double() if bits == 4 else numbers.double()
    steps = scale.double().repeat_interleave(256 // groups, dim=1)
    stands = exact * steps
    # Half a step, and what the quotient loses in fp16: a 2^-11th of up to 127 or 7 steps.
    largest = {8: 127, 4: 7}[bits]
    assert ((weight.double() - stands).abs() <= steps * (0.5 + largest * 2**-11)).all()
    assert (exact.abs().view(48, groups, -1).amax(dim=-1) == largest).all()
    # The weight is rounded to fp16, the sum is in fp32.
    found = exact_product(states, numbers, scale).double()
    magnitude = states.double().abs() @ stands.abs().T
    assert ((found - states.double() @ stands.T).abs() <= magnitude * (2**-11 + 256 * 2**-24)).all()


def test_shapes_that_do_not_come_out_even_are_refused() -> None:
    for quantization, columns, kind in (
        (Quantization(8, 128), 64, "bad_model"),
        (Quantization(8, 48), 64, "bad_model"),
        (Quantization(8, shards=3), 64, "bad_model"),
        (Quantization(4, shards=2), 6, "unsupported"),
    ):
        with pytest.raises(GLMError, match=f"{columns}") as caught:
            quantization.groups(columns, split_columns=True)
        assert caught.value.kind == kind


# The exact product


def filled(columns: int, rows: int, bits: int, groups: int = 1, dtype: torch.dtype = torch.float32) -> QuantizedLinear:
    linear = QuantizedLinear(columns, rows, bits, groups, dtype=dtype)
    numbers, scale = quantize_weight(random(rows, columns), bits, groups)
    with torch.no_grad():
        linear.weight.copy_(numbers)
        linear.weight_scale.copy_(scale)
        linear.bias.copy_(random(rows, seed=2).mul_(8).round_() / 8)
    return linear


@pytest.mark.parametrize("bits", [8, 4])
def test_in_blocks_is_at_once(bits: int) -> None:
    """To the bit: small whole numbers have exact sums in any order."""
    linear = filled(64, 2 * ROWS + 5, bits)
    linear.weight_scale.fill_(0.25)
    states = random(2, 3, 64, seed=1).mul_(4).round_()
    whole = dequantize_weight(linear.weight, linear.weight_scale, bits).float()
    with torch.no_grad():
        assert torch.equal(linear.product(states), F.linear(states, whole))
        assert torch.equal(linear(states) - linear.product(states), linear.bias.expand(2, 3, -1))


class Largest(TorchDispatchMode):
    """The most bytes of a tensor that an operation made."""

    nbytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        if isinstance(result, torch.Tensor):
            self.nbytes = max(self.nbytes, result.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("bits", [8, 4])
def test_no_product_writes_out_the_whole_weight(bits: int) -> None:
    linear = filled(64, 8 * ROWS, bits)
    states = torch.ones(1, 64)
    with torch.no_grad(), Largest() as exact:
        linear(states)
    assert exact.nbytes <= max(linear.weight.nbytes, 4 * ROWS * 64) < 4 * 8 * ROWS * 64
    with torch.no_grad(), Largest() as packing:
        pack(linear, torch.bfloat16, CPU)
    assert packing.nbytes <= linear.weight.nbytes


# The CPU's kernels

KERNELS = [(8, 1), (4, 1), (4, 2), (4, 8)]


@pytest.mark.parametrize("bits, groups", KERNELS)
def test_kernels_against_the_exact_product(bits: int, groups: int) -> None:
    """Rounding to bf16 (scales, the result) changes at most a 2^-8th, that of weights to fp16 a 2^-11th."""
    linear = filled(512, 592, bits, groups, torch.bfloat16)  # some blocks of the kernel's, and less than one
    linear.weight[7], linear.weight_scale[7] = 0, 0
    weight = dequantize_weight(linear.weight, linear.weight_scale, bits).double()
    states = random(2, 5, 512, seed=1).bfloat16()
    exact = states.double() @ weight.T
    before = linear.weight.data_ptr(), linear.weight.nbytes
    pack(linear, torch.bfloat16, CPU)
    assert linear.compute is (int8_product if bits == 8 else int4_product)
    assert (linear.weight.data_ptr(), linear.weight.nbytes) == before
    with torch.no_grad():
        found = linear.product(states)
        assert torch.equal(linear(states), found + linear.bias)
    assert found.dtype == torch.bfloat16 and not found[..., 7].any()
    error, magnitude = (found.double() - exact).abs(), states.double().abs() @ weight.abs().T
    assert (error <= magnitude * (2**-8 + 2**-11 + 512 * 2**-24) + exact.abs() * 2**-8).all()
    pack(linear, torch.bfloat16, CPU)  # once more changes nothing
    with torch.no_grad():
        assert torch.equal(linear.product(states), found)


@pytest.mark.parametrize("bits, groups", KERNELS)
def test_a_row_of_states_has_the_same_result_in_any_batch(bits: int, groups: int) -> None:
    linear = filled(256, 80, bits, groups, torch.bfloat16)
    pack(linear, torch.bfloat16, CPU)
    states = random(70, 256).bfloat16()
    with torch.no_grad():
        alone = torch.cat([linear(row[None]) for row in states])
        for count in (*range(2, 20), 32, 33, 70):
            assert torch.equal(linear(states[:count]), alone[:count])
            assert torch.equal(linear(states[-count:]), alone[-count:])


@pytest.mark.parametrize(
    "columns, rows, bits, groups, dtype, device",
    [
        (64, 64, 8, 2, torch.bfloat16, "cpu"),  # the kernel has one scale a row
        (64, 17, 8, 1, torch.bfloat16, "cpu"),
        (48, 64, 8, 1, torch.bfloat16, "cpu"),
        (64, 40, 4, 1, torch.bfloat16, "cpu"),
        (64, 64, 4, 4, torch.bfloat16, "cpu"),  # groups of 16
        (64, 64, 4, 4, torch.float32, "cpu"),
        (64, 64, 8, 1, torch.float16, "cpu"),
        (64, 64, 4, 1, torch.bfloat16, "cuda"),
    ],
)
def test_what_the_kernels_can_not_do_is_exact(
    columns: int, rows: int, bits: int, groups: int, dtype: torch.dtype, device: str
) -> None:
    linear = filled(columns, rows, bits, groups, dtype)
    assert best_product(linear, dtype, torch.device(device)) is exact_product
    if device == "cpu":
        pack(linear, dtype, CPU)
        states = random(4, columns, seed=1).to(dtype)
        weight = dequantize_weight(linear.weight, linear.weight_scale, bits).to(dtype)
        with torch.no_grad():
            torch.testing.assert_close(linear.product(states), F.linear(states, weight))


# Models


def test_a_quantised_model_has_its_bits_in_memory(plain: Path) -> None:
    for kind, dtype, most in (
        ("int8", torch.float32, 1.02),
        ("int4", torch.float32, 1.04),
        ("int8", torch.bfloat16, 1.02),
        ("int4", torch.bfloat16, 1.07),
        ("int4-g32", torch.float32, 1.13),
        ("int4-g32", torch.bfloat16, 1.26),
    ):
        model = checkpoint.load(plain, dtype=dtype, quantize=kind)
        matrices = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
        assert len(matrices) == 4 * CONFIG.layers
        found = sum(matrix.weight.nbytes + matrix.weight_scale.nbytes for matrix in matrices)
        least = sum(matrix.rows * matrix.columns for matrix in matrices) * int(kind[3]) // 8
        assert least < found < most * least, (kind, dtype, found / least)


def test_biases_stay(plain: Path) -> None:
    stored = load_file(plain / "model.safetensors")
    for name, tensor in checkpoint.load(plain, quantize="int4").state_dict().items():
        if name.endswith("bias"):
            assert tensor.any() and torch.equal(tensor, stored[name])


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_logits_are_near_those_of_the_plain_weights(plain: Path, kind: str) -> None:
    exact = logits(checkpoint.load(plain))
    for dtype in (torch.float32, torch.bfloat16):
        error = logits(checkpoint.load(plain, dtype=dtype, quantize=kind)) - exact
        assert error.norm() < {8: 0.03, 4: 0.25}[int(kind[3])] * exact.norm(), dtype


@pytest.mark.parametrize("place", ["disk", "host"])
@pytest.mark.parametrize("kind", ["int8", "int4", "int4-g32", "int8-g32"])
def test_streamed_layers_compute_as_loaded_ones(plain: Path, tmp_path: Path, place: str, kind: str) -> None:
    """In bf16, so by the kernels, from the plain folder and from one that is quantised already."""
    stored = quantize_folder(plain, tmp_path / "stored", kind).folder
    loaded = checkpoint.load(plain, dtype=torch.bfloat16, quantize=kind)
    expected = logits(loaded)
    for folder, quantize in ((plain, kind), (stored, None)):
        model = offload.load(folder, dtype=torch.bfloat16, quantize=quantize, place=place, cache=tmp_path / "prepared")
        try:
            assert model.pinned == 0 and torch.equal(logits(model), expected)
            for layer, same in zip(model.ready_layers(0, None), loaded.layers, strict=True):
                assert layer.mlp.dense_h_to_4h.compute is same.mlp.dense_h_to_4h.compute
        finally:
            model.close()
    used = {module.compute for module in loaded.modules() if isinstance(module, QuantizedLinear)}
    assert used == {{"int8": int8_product, "int8-g32": exact_product}.get(kind, int4_product)}


def test_prepared_layers_of_other_types_are_others(plain: Path, tmp_path: Path) -> None:
    """Nibbles for fp32 must not be taken for the kernel's layout."""
    for dtype in (torch.bfloat16, torch.float32, torch.bfloat16):
        model = offload.load(plain, dtype=dtype, quantize="int4", cache=tmp_path)
        try:
            assert torch.equal(logits(model), logits(checkpoint.load(plain, dtype=dtype, quantize="int4")))
        finally:
            model.close()
    assert len(list(tmp_path.iterdir())) == 2


def test_random_layers_are_packed_too(tmp_path: Path) -> None:
    config = CONFIG.quantized("int4")
    model = offload.OffloadedGLM(config, dtype=torch.bfloat16)
    paths = [path for path, _ in random_layers(tmp_path, config, model.form, CONFIG.layers)]
    random_ends(model)
    model.settle(FileSource(prepared_layers(paths), model.form), None)
    try:
        assert all(layer.attention.dense.compute is int4_product for layer in model.ready_layers(0, None))
        assert torch.isfinite(logits(model)).all()
    finally:
        model.close()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e6])
def test_a_number_that_can_not_be_quantised_is_named(plain: Path, tmp_path: Path, number: float) -> None:
    tensors = load_file(plain / "model.safetensors")
    name = "layers.1.mlp.dense_4h_to_h.weight"
    tensors[name][3, 5] = number
    (tmp_path / "model").mkdir()
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    CONFIG.save(tmp_path / "model")
    for kind in ("int8", "int4-g64"):
        for task in (
            lambda kind=kind: checkpoint.load(tmp_path / "model", quantize=kind),
            lambda kind=kind: quantize_folder(tmp_path / "model", tmp_path / kind, kind),
        ):
            with pytest.raises(GLMError, match=f"{name} is not finite") as caught:
                task()
            assert caught.value.kind == "bad_model"
        assert not (tmp_path / kind / "config.json").exists()


# Ranks


def rank_logits(ranks: Ranks, cases: list[tuple[Path, str | None, str]]) -> list[tuple[list, set[str]]]:
    """Logits of each case, and how the matrices computed."""
    found = []
    for folder, kind, dtype in cases:
        model = checkpoint.load(folder, ranks=ranks, quantize=kind, dtype=getattr(torch, dtype))
        used = {module.compute.__name__ for module in model.modules() if isinstance(module, QuantizedLinear)}
        found.append((logits(model).tolist(), used))
    return found


def test_two_ranks(plain: Path, tmp_path: Path) -> None:
    """Each quantises its own part; a folder that was quantised for two says the same, in one rank and in two."""
    kinds = [("int8", "float32"), ("int4", "float32"), ("int4", "bfloat16"), ("int4-g32", "bfloat16")]
    folders = {kind: quantize_folder(plain, tmp_path / kind, kind, tensor_parallel=2).folder for kind in dict(kinds)}
    stored = [(folders[kind], None, dtype) for kind, dtype in kinds]
    first, second = run_ranks(2, rank_logits, [*((plain, *kind) for kind in kinds), *stored])
    assert first == second and first[:4] == first[4:]
    for (_, dtype), (found, used), (expected, _) in zip(kinds, first, rank_logits(SINGLE, stored), strict=False):
        plain_product = "native_product" if native.has_products(CPU) else "exact_product"
        assert used == {plain_product if dtype == "float32" else "int4_product"}
        bound = 1e-4 if dtype == "float32" else 0.02 * torch.tensor(expected).abs().max()
        assert (torch.tensor(found) - torch.tensor(expected)).abs().max() < bound


# The recorded models


def recorded(request: pytest.FixtureRequest, name: str) -> Path:
    reference = Path(request.config.getoption("--reference"))
    if not (reference / "checkpoints" / name).is_dir():
        pytest.skip(f"{reference} has no checkpoint {name}")
    return reference


def recorded_logits(reference: Path, key: str, model: GLM) -> int:
    """Compares with every case that has logits of that name; returns how many."""
    count = 0
    for path in sorted((reference / "logits").glob("*.safetensors")):
        data = load_file(path)
        if key in data:
            with torch.inference_mode():
                found = model(data["tokens"], data["position_ids"], visible=~data["attention_mask"])
            assert (found - data[key]).abs().max() < TOLERANCE, path.stem
            count += 1
    return count


def recorded_folder(reference: Path, name: str, out: Path) -> Path:
    return sat.convert(reference / "checkpoints" / name, out, tokenizer=None, name="recorded").folder


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_originals_quantised_checkpoints(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, size: int
) -> None:
    """What the original wrote computes what it computed; we make the same numbers from the plain weights, stored or loading."""
    reference = recorded(request, f"tiny-{kind}-mp{size}")
    theirs = recorded_folder(reference, f"tiny-{kind}-mp{size}", tmp_path / "theirs")
    assert recorded_logits(reference, f"logits_{kind}_mp{size}", checkpoint.load(theirs))
    plain = recorded_folder(recorded(request, "tiny-mp1"), "tiny-mp1", tmp_path / "plain")
    ours = quantize_folder(plain, tmp_path / "ours", kind, tensor_parallel=size)
    assert ours.config == Config.load(theirs)
    assert ours.sha256 == weights_hash(theirs)
    for rank in range(size):
        expected = checkpoint.load(theirs, ranks=Ranks(rank, size)).state_dict()
        found = checkpoint.load(plain, ranks=Ranks(rank, size), quantize=kind).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


# The command


@pytest.mark.parametrize(
    "kind, shard_size", [("int8", "4GB"), ("int4", "1KB"), ("int8-g64", "4GB"), ("int4-g32", "1KB")]
)
def test_the_command(plain: Path, tmp_path: Path, kind: str, shard_size: str) -> None:
    ran = run(
        "engine", "quantize", "--model", plain, "--to", kind, "--out", tmp_path / "out", "--shard-size", shard_size
    )
    assert ran.returncode == 0, ran.stderr
    assert weights_hash(tmp_path / "out") in ran.stdout
    files = 1 if shard_size == "4GB" else CONFIG.layers + 2
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert len(names) == files + 2 and {"config.json", "tokenizer.model"} < names
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == (plain / "tokenizer.model").read_bytes()
    assert Config.load(tmp_path / "out") == replace(CONFIG, quantization=Quantization.parse(kind))
    found = checkpoint.load(tmp_path / "out").state_dict()
    expected = checkpoint.load(plain, quantize=kind).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_mistakes_in_the_commands_arguments(plain: Path, tmp_path: Path) -> None:
    quantised = quantize_folder(plain, tmp_path / "quantised", "int8").folder
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    new = tmp_path / "new"
    for arguments, words in (
        (["--model", quantised, "--to", "int4", "--out", new], "is quantised already, as int8"),
        (["--model", quantised, "--to", "int8", "--out", new], "is quantised already, as int8"),
        (["--model", tmp_path / "none", "--to", "int8", "--out", new], "There is no model in"),
        (["--model", plain, "--to", "int8", "--out", plain], "is the model itself"),
        (["--model", plain, "--to", "int8", "--out", quantised], "holds a model already"),
        (["--model", plain, "--to", "int8", "--out", tmp_path / "notes"], "isn't empty"),
        (["--model", plain, "--to", "int8", "--out", plain / "config.json"], "is a file"),
        (["--model", plain, "--to", "int8", "--out", new, "--tensor-parallel", "0"], "at least 1"),
        (["--model", plain, "--to", "int8", "--out", new, "--tensor-parallel", "3"], "can't be split over 3 ranks"),
        (["--model", plain, "--to", "int8", "--out", new, "--shard-size", "many"], "is not a size"),
    ):
        ran = call("engine", "quantize", *arguments)
        assert ran.returncode == 2 and not ran.stdout, ran.stderr
        assert ran.stderr.startswith("error: ") and words in ran.stderr and ran.stderr.count("\n") == 1
    for arguments, words in (
        (["--model", plain, "--to", "int5", "--out", new], "invalid choice: 'int5'"),
        (["--model", plain, "--to", "int4"], "--out"),
        (["--model", plain, "--out", new], "--to"),
    ):
        ran = call("engine", "quantize", *arguments)
        assert ran.returncode == 2 and words in ran.stderr and "Traceback" not in ran.stderr
    assert not new.exists()


def test_groups_must_divide_the_columns(tiny_model_folder: Path, tmp_path: Path) -> None:
    ran = call("engine", "quantize", "--model", tiny_model_folder, "--to", "int4-g128", "--out", tmp_path / "new")
    assert ran.returncode == 2 and ran.stderr == "error: 64 columns can't be quantised in groups of 128.\n"
    assert not (tmp_path / "new").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from engine.glm.quantize_folder import quantize_folder

def report(what, done, total):
    if what == "writes model-00003-of-00005.safetensors":
        os.kill(os.getpid(), signal.SIGKILL)

quantize_folder(Path(sys.argv[1]), Path(sys.argv[2]), "int4", shard_size=1000, report=report)
"""


def test_a_killed_run_is_gone_on_with(plain: Path, tmp_path: Path) -> None:
    out, straight = tmp_path / "out", tmp_path / "straight"
    assert subprocess.run([sys.executable, "-c", KILLED, plain, out], cwd=ROOT, timeout=120).returncode < 0
    with pytest.raises(GLMError, match="not a model folder"):
        Config.load(out)
    ran = run("engine", "quantize", "--model", plain, "--to", "int4", "--out", out, "--shard-size", "1KB")
    assert ran.returncode == 0 and "2 of 5 files are finished" in ran.stderr
    quantize_folder(plain, straight, "int4", shard_size=1000)
    assert {path.name for path in out.iterdir()} == {path.name for path in straight.iterdir()}
    for path in straight.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_another_kind_starts_over(plain: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, plain, tmp_path / "out"], cwd=ROOT, timeout=120)
    told: list[str] = []
    quantize_folder(plain, tmp_path / "out", "int8", tell=told.append)
    assert "starts over" in told[0]
    expected = quantize_folder(plain, tmp_path / "straight", "int8")
    assert weights_hash(tmp_path / "out") == expected.sha256


def test_a_tensor_is_quantised_some_rows_at_a_time(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = quantize_folder(plain, tmp_path / "whole", "int4-g32").sha256
    monkeypatch.setattr("engine.glm.quantize_folder.BLOCK", 1000)
    assert quantize_folder(plain, tmp_path / "parts", "int4-g32").sha256 == whole
