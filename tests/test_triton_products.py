"""Triton's products with quantised weights against the weights that are stood for: run by Triton's interpreter, or on a GPU where
there is one; and compiled for GPUs that are not here."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from engine.glm.packed import best_product, has_triton
from engine.glm.quantize import QuantizedLinear, dequantize_weight, exact_product, quantize_weight

triton = pytest.importorskip("triton", reason="Triton isn't installed: its products are not tested")
_GPU = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
DEVICE = _GPU if _GPU is not None and has_triton(_GPU) else torch.device("cpu")

with pytest.MonkeyPatch.context() as patch:
    if DEVICE.type == "cpu":
        patch.setenv("TRITON_INTERPRET", "1")  # it is looked at when kernels are defined
    from engine.glm import triton_products
    from engine.glm.triton_products import FEW, triton_product

# What is not finite is wanted; the interpreter's numpy warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
# Of a number, when it is rounded to a type. The interpreter doesn't round to bf16, it cuts off.
ERROR = {torch.float16: 2**-11, torch.bfloat16: 2**-8 if DEVICE.type != "cpu" else 2**-7, torch.float32: 2**-24}
# Rows of the weight, columns, bits, groups: edges in all directions; groups of whole blocks, of parts of them, and of odd sizes.
FORMS = [
    (20, 96, 8, 1),
    (150, 160, 8, 1),
    (17, 320, 8, 5),  # of 64
    (16, 96, 8, 3),  # of 32
    (20, 1408, 8, 4),  # of 352
    (16, 130, 8, 13),  # of 10
    (9, 45, 8, 15),  # of 3
    (20, 160, 4, 1),
    (16, 2816, 4, 1),
    (17, 640, 4, 5),  # of 64 bytes
    (16, 192, 4, 6),  # of 16 bytes
    (16, 160, 4, 2),  # of 40 bytes
    (9, 6, 4, 3),  # of 1 byte
]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(rows: int, columns: int, bits: int, groups: int, dtype: torch.dtype = torch.float16) -> QuantizedLinear:
    linear = QuantizedLinear(columns, rows, bits, groups, dtype=dtype, device=DEVICE)
    numbers, scale = quantize_weight(random(rows, columns), bits, groups)
    with torch.no_grad():
        linear.weight.copy_(numbers)
        linear.weight_scale.copy_(scale)
        linear.bias.copy_(random(rows, seed=2))
    linear.compute = triton_product
    return linear


def stood_for(linear: QuantizedLinear, dtype: torch.dtype) -> torch.Tensor:
    weight = dequantize_weight(linear.weight, linear.weight_scale, linear.bits)
    if dtype == torch.bfloat16 and DEVICE.type == "cpu":
        return (weight.float().view(torch.int32) & -(1 << 16)).view(torch.float32).double()
    return weight.to(dtype).double()


def allowed(states: torch.Tensor, weight: torch.Tensor, exact: torch.Tensor, *addends: torch.Tensor) -> torch.Tensor:
    """The error of a sum in fp32, in any order, that is rounded once. Tensor cores cut off where they add."""
    magnitude = states.double().abs() @ weight.abs().T + sum(addend.double().abs() for addend in addends)
    return magnitude * (states.shape[-1] + 2) * 2**-23 + exact.abs() * ERROR[states.dtype] + 1e-7


# Numbers


def check(linear: QuantizedLinear, count: int) -> None:
    dtype = linear.bias.dtype
    weight, bias = stood_for(linear, dtype), linear.bias
    states = random(count, linear.columns, seed=1).to(DEVICE, dtype)
    residual = random(count, linear.rows, seed=3).to(DEVICE, dtype)
    exact = states.double() @ weight.T + bias.double() + residual.double()
    with torch.inference_mode():
        found = linear.plus(states, residual)
        rounded_often = exact_product(states, linear.weight, linear.weight_scale) + bias + residual
    assert found.dtype == dtype and found.shape == (count, linear.rows)
    error = allowed(states, weight, exact, bias, residual)
    assert ((found.double() - exact).abs() <= error).all()
    # The exact product is rounded by itself, and the sum with the bias is.
    magnitude = error / 2**-24 if dtype == torch.float32 else states.double().abs() @ weight.abs().T + residual.abs()
    assert ((found - rounded_often).double().abs() <= error + 3 * ERROR[dtype] * magnitude).all()


@pytest.mark.parametrize("rows, columns, bits, groups", FORMS)
def test_forms_of_weights(rows: int, columns: int, bits: int, groups: int) -> None:
    for count in (3, FEW + 6):
        check(filled(rows, columns, bits, groups), count)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits, groups", [(8, 1), (4, 2), (4, 16)])
def test_types_of_states(bits: int, groups: int, dtype: torch.dtype) -> None:
    for count in (3, FEW + 6):
        check(filled(16, 320, bits, groups, dtype), count)


@pytest.mark.parametrize("count", [1, 16, 17, 40, 150])
@pytest.mark.parametrize("bits, groups", [(8, 1), (4, 2)])
def test_numbers_of_rows(bits: int, groups: int, count: int) -> None:
    check(filled(16, 128, bits, groups), count)


def test_more_rows_than_are_kept_together() -> None:
    dtype = torch.float32
    count = triton_products._TOGETHER * triton_products._blocks(FEW + 1, 8, 0, dtype)[1]["TOKENS"] + 1
    check(filled(9, 45, 8, 15, dtype), count)


@pytest.mark.parametrize("count", [3, FEW + 6])
def test_without_addends(count: int) -> None:
    linear = filled(16, 128, 8, 1)
    states = random(count, 128, seed=1).to(DEVICE, torch.float16)
    weight = stood_for(linear, torch.float16)
    exact = states.double() @ weight.T
    with torch.inference_mode():
        for found, addends in ((linear.product(states), ()), (linear(states), (linear.bias,))):
            expected = sum(addends, exact)
            assert ((found.double() - expected).abs() <= allowed(states, weight, expected, *addends)).all()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("more", [0, FEW])
def test_every_byte_is_what_it_stands_for(bits: int, more: int) -> None:
    """To the bit, with scales that round, and with ones so small or large that the weight is subnormal or infinite in fp16."""
    every = torch.arange(-128, 128).to(torch.int8).view(16, 16).to(DEVICE)
    for scale in (1.0, 0.3, 6e-8, 3e-6, 6e4):
        scales = torch.full((16, 1), scale, dtype=torch.float16, device=DEVICE)
        expected = dequantize_weight(every, scales, bits)
        columns = expected.shape[1]
        if scale < 1000:
            states = F.pad(torch.eye(columns, dtype=torch.float16, device=DEVICE), (0, 0, 0, more))
            assert torch.equal(triton_product(states, every, scales)[:columns].T, expected)
        else:  # zero times infinity is no number: a row of states has the signs of a row of the weight
            assert expected.isinf().any(dim=1).all()
            found = triton_product(F.pad(expected.sign(), (0, 0, 0, more)), every, scales)
            assert (found.diag() == torch.inf).all()


@pytest.mark.parametrize("bits, groups, dtype", [(8, 1, torch.float16), (4, 4, torch.bfloat16)])
def test_a_row_has_the_same_result_beside_any_others(bits: int, groups: int, dtype: torch.dtype) -> None:
    """To the bit, in each of the kernels; whatever is in other rows stays there."""
    linear = filled(16, 320, bits, groups, dtype)
    states = random(3 * FEW, 320).to(DEVICE, dtype)
    with torch.inference_mode():
        few, many = linear(states[:FEW]), linear(states)
        for row in (0, FEW - 1):
            assert torch.equal(linear(states[row : row + 1]), few[row : row + 1])
        for count in (3, 17):
            assert torch.equal(linear(states[:count]), few[:count])
            assert torch.equal(linear(states[FEW - count : FEW]), few[FEW - count :])
        for count in (FEW + 1, 2 * FEW + 5):
            assert torch.equal(linear(states[:count]), many[:count])
            assert torch.equal(linear(states[-count:]), many[-count:])
        for count, expected in ((16, few), (40, few), (3 * FEW, many)):
            spoilt = states[:count].clone()
            spoilt[1], spoilt[2, 7] = torch.nan, torch.inf
            found = linear(spoilt)
            assert not found[1:3].isfinite().any()
            rest = [0, *range(3, count)]
            assert torch.equal(found[rest], expected[rest])


@pytest.mark.parametrize("count", [2, FEW + 1])
@pytest.mark.parametrize("bits, groups", [(8, 1), (4, 4)])
def test_scales_that_are_not_finite_show(bits: int, groups: int, count: int) -> None:
    linear = filled(20, 320, bits, groups)
    states = random(count, 320).to(DEVICE, torch.float16)
    with torch.inference_mode():
        before = linear(states)
        linear.weight_scale[3, -1], linear.weight_scale[19, 0] = torch.inf, torch.nan
        found = linear(states)
    assert not found[:, [3, 19]].isfinite().any()
    rest = [row for row in range(20) if row not in (3, 19)]
    assert torch.equal(found[:, rest], before[:, rest])


def test_shapes_of_states() -> None:
    """Any number of dimensions, with gaps, or with no rows at all."""
    linear = filled(33, 96, 8, 3)
    states = random(2, 96, 3, seed=1).to(DEVICE, torch.float16).transpose(1, 2)
    residual = random(33, 2, 3, seed=2).to(DEVICE, torch.float16).permute(1, 2, 0)
    with torch.inference_mode():
        found = linear.plus(states, residual)
        flat = linear.plus(states.reshape(6, 96), residual.reshape(6, 33))
        assert found.shape == (2, 3, 33) and torch.equal(found.view(6, 33), flat)
        assert linear(states[:0]).shape == (0, 3, 33)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gated(dtype: torch.dtype) -> None:
    """The product with its bias, then what other layers do: where native.gated serves, its error function is exact to 1.5e-7."""
    linear = filled(32, 96, 8, 1, dtype)
    states = random(3, 96, seed=1).to(DEVICE, dtype)
    with torch.inference_mode():
        value, gate = linear(states).chunk(2, dim=-1)
        found, expected = linear.gated(states), value * F.gelu(gate.contiguous())
    assert ((found - expected).abs() <= 4e-7 * (value * gate).abs()).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_gradients_are_the_exact_products(bits: int) -> None:
    linear, exact = filled(40, 96, bits, 1, torch.float32), filled(40, 96, bits, 1, torch.float32)
    exact.compute = exact_product
    found = []
    for layer in (linear, exact):
        states = random(3, 96, seed=1).to(DEVICE).requires_grad_()
        residual = random(3, 40, seed=2).to(DEVICE).requires_grad_()
        result = layer(states) + layer.plus(states, residual) + layer.product(states)
        result.square().sum().backward()
        found.append((result, states.grad, residual.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


# Where they serve


def test_trying_out() -> None:
    assert triton_products._computes(4, 40, torch.bfloat16, DEVICE)


def test_what_is_chosen(caplog: pytest.LogCaptureFixture) -> None:
    """A CPU isn't Triton's, and one that is asked all the same gets no product, and says so once."""
    linear = filled(40, 96, 8, 3)
    if DEVICE.type != "cpu":
        assert best_product(linear, torch.float16, DEVICE) is triton_product
        return
    assert not has_triton(DEVICE) and best_product(linear, torch.float16, DEVICE) is exact_product
    with caplog.at_level(logging.WARNING, triton_products.__name__):
        for _ in range(2):
            assert not triton_products.can_multiply(linear, torch.float16, DEVICE)
    assert len(caplog.records) == 1 and "slower ones serve" in caplog.text


# Compiled for GPUs


@pytest.fixture(scope="module")
def compiled() -> ModuleType:
    """The products as they are without the interpreter."""
    spec = importlib.util.spec_from_file_location("compiled_triton_products", triton_products.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("backend, architecture, shared", [("cuda", 80, 99), ("cuda", 90, 99), ("hip", "gfx942", 64)])
@pytest.mark.parametrize("count, bits, group", [(FEW, 4, 128), (FEW + 1, 8, 0), (FEW + 1, 4, 32)])
def test_kernels_compile(
    compiled: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    architecture: int | str,
    shared: int,
    count: int,
    bits: int,
    group: int,
) -> None:
    """For GPUs that aren't here: on tensor cores, and within the shared memory, in KiB, of those that have the least of it."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel, blocks = compiled._blocks(count, bits, group * bits // 8, torch.float16)
    options = {"num_warps": blocks.pop("num_warps")}
    constants = {
        "BITS": bits,
        "GROUP": group * bits // 8,
        "OPERAND": triton.language.float16,
        "residual": None,
        **blocks,
    }
    kinds = {"weight": "*i8", "count": "i32", "rows": "i32", "width": "i32", **dict.fromkeys(constants, "constexpr")}
    signature = {name: kinds.get(name, "*fp16") for name in kernel.arg_names}
    places = {name: (place,) for place, name in enumerate(signature)}
    aligned = [name for name, kind in signature.items() if kind != "constexpr" and name != "count"]
    source = ASTSource(
        kernel,
        signature,
        {places[name]: value for name, value in constants.items()},
        {places[name]: [["tt.divisibility", 16]] for name in aligned},
    )
    made = triton.compile(source, GPUTarget(backend, architecture, 64 if backend == "hip" else 32), options)
    assert made.metadata.shared <= shared << 10
    assert ("v_mfma" in made.asm["amdgcn"]) if backend == "hip" else ("mma" in made.asm["ptx"])
