"""fp32 matrices packed for oneDNN, products with activations of 8 bits, and models that compute by them or by products of our own:
right, and the same for a row in any batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from engine.errors import GLMError
from engine.glm import checkpoint, lora, native
from engine.glm.adapter import Lora
from engine.glm.config import EMBEDDED, resolve_model
from engine.glm.eight_bit import OUTSIDE, EightBitProduct, adds_exactly, has_onednn
from engine.glm.model import Linear
from engine.glm.packed import pack
from engine.glm.prepacked import (
    Packed,
    PackedMatrix,
    can_pack,
    copies_embedding,
    keeps_rows_apart,
    prepack,
    weight_bytes,
)
from engine.glm.quantize import QuantizedLinear, dequantize_weight, quantize_weight

CPU = torch.device("cpu")
needs_packing = pytest.mark.skipif(not can_pack(torch.float32, CPU), reason="a CPU without packed products")
needs_products = pytest.mark.skipif(not has_onednn(CPU), reason="a CPU without products of 8-bit numbers")
SHAPES = [(96, 64), (5632, 1024), (1024, 2816), (30, 17), (1, 8)]


@pytest.fixture(params=["own", "oneDNN"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whose products a model computes by."""
    if request.param == "oneDNN":
        monkeypatch.setattr(native, "library", lambda: None)
    elif not native.has_eight_bit_products(CPU):
        pytest.skip("a CPU, or a machine without a compiler, for which there are no products of our own")
    return request.param


def numbers(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@needs_packing
@pytest.mark.parametrize("shape", SHAPES)
def test_products(shape: tuple[int, int]) -> None:
    rows, columns = shape
    weight, bias = numbers(rows, columns), numbers(rows, seed=2)
    matrix = PackedMatrix(weight)
    assert matrix.nbytes == weight.nbytes
    for lead in ((5,), (2, 3), (1, 1)):
        states, other = numbers(*lead, columns, seed=3), numbers(*lead, rows, seed=4)
        plain = F.linear(states, weight, bias)
        near = {"rtol": 1e-5, "atol": 1e-5 * columns**0.5}
        torch.testing.assert_close(matrix(states), F.linear(states, weight), **near)
        torch.testing.assert_close(matrix(states, bias), plain, **near)
        torch.testing.assert_close(matrix(states, bias, gelu=True), F.gelu(plain), **near)
        torch.testing.assert_close(matrix.combined("add", states, other, bias), plain + other, **near)
        torch.testing.assert_close(matrix.combined("mul", states, other, bias), plain * other, rtol=1e-4, atol=1e-3)


@needs_packing
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_is_the_same_in_any_batch(shape: tuple[int, int], threads: int) -> None:
    """To the bit, for every number of rows up to 40 and some more."""
    rows, columns = shape
    matrix, bias = PackedMatrix(numbers(rows, columns)), numbers(rows, seed=2)
    states, other = numbers(200, columns, seed=3), numbers(200, rows, seed=4)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for product in (
            lambda some, _: matrix(some, bias),
            lambda some, _: matrix(some, bias, gelu=True),
            lambda some, beside: matrix.combined("mul", some, beside, bias),
        ):
            whole = product(states, other)
            for count in (*range(1, 41), 64, 127, 128):
                assert torch.equal(product(states[:count].clone(), other[:count].clone()), whole[:count]), count
    finally:
        torch.set_num_threads(before)


@needs_packing
def test_a_packed_model(products: str) -> None:
    folder = resolve_model(EMBEDDED)
    plain, packed = checkpoint.load(folder), checkpoint.load(folder)
    assert not keeps_rows_apart(packed)
    prepack(packed)
    ids = torch.arange(300, 348).view(2, 24)
    positions, context = torch.arange(24).expand(2, -1), torch.tensor([20, 11])
    with torch.inference_mode():
        wanted = plain(ids, positions, context)
        found = packed(ids, positions, context)
        assert (found - wanted).abs().max() < 2e-4
        alone = packed(ids[:1], positions[:1], context[:1])
    assert torch.equal(alone[0, -1], found[0, -1]) or not torch.equal(wanted[0], alone[0])
    linears = [module for module in packed.modules() if isinstance(module, Linear)]
    assert len(linears) == 4 * packed.config.layers
    assert all(isinstance(linear.packed, Packed) and not hasattr(linear, "weight") for linear in linears)
    embedding = packed.word_embeddings.weight
    assert weight_bytes(plain) == 4 * plain.config.parameters()
    if products == "oneDNN":
        assert weight_bytes(packed) == weight_bytes(plain) + embedding.nbytes and copies_embedding(packed)
    else:  # what is stored in 16 bits stays so
        assert embedding.dtype == torch.float16 and not copies_embedding(packed)
        assert weight_bytes(packed) == weight_bytes(plain) - embedding.nbytes
    assert keeps_rows_apart(packed)
    prepack(packed)  # once more changes nothing
    with torch.inference_mode():
        assert torch.equal(packed(ids, positions, context), found)


def test_an_embedding_of_32_bits_stays_so(products: str) -> None:
    model = checkpoint.load(resolve_model(EMBEDDED))
    with torch.no_grad():
        model.word_embeddings.weight[7, 5] += 1e-6
    wanted = model.word_embeddings.weight.detach().clone()
    prepack(model)
    assert torch.equal(model.word_embeddings.weight, wanted)


def test_other_types_stay_plain() -> None:
    model = checkpoint.load(resolve_model(EMBEDDED), dtype=torch.bfloat16)
    prepack(model)
    assert model.head is None and not keeps_rows_apart(model)
    assert all(module.packed is None for module in model.modules() if isinstance(module, Linear))


@needs_packing
def test_an_adapter_over_packed_matrices(products: str) -> None:
    folder = resolve_model(EMBEDDED)
    models = [checkpoint.load(folder) for _ in range(2)]
    for model in models:
        lora.attach(model, Lora(rank=4, alpha=8))
        generator = torch.Generator().manual_seed(3)
        for matrix in lora.named_parameters(model).values():
            matrix.data.normal_(0, 0.1, generator=generator)
    prepack(models[1])
    ids, positions, context = torch.arange(300, 316)[None], torch.arange(16)[None], torch.tensor([12])
    with torch.inference_mode():
        plain, packed = (model(ids, positions, context) for model in models)
        without = checkpoint.load(folder)(ids, positions, context)
    assert (plain - without).abs().max() > 0.01
    assert (plain - packed).abs().max() < 2e-4
    assert not keeps_rows_apart(models[1])


def quantised(rows: int, columns: int) -> tuple[QuantizedLinear, torch.Tensor]:
    """A layer and the weight that is stood for."""
    linear = QuantizedLinear(columns, rows, 8, 1)
    linear.weight, linear.weight_scale = quantize_weight(numbers(rows, columns), 8)
    torch.nn.init.zeros_(linear.bias)
    return linear, dequantize_weight(linear.weight, linear.weight_scale, 8).float()


@needs_products
@pytest.mark.parametrize("exactly", [True, False])
def test_whole_numbers_are_summed_exactly(exactly: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest numbers there are, of both signs, as one number of 8 bits and as two of 4."""
    if exactly and not adds_exactly():
        pytest.skip("a CPU that adds 8-bit products in pairs of 16 bits")
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr("engine.glm.eight_bit.adds_exactly", lambda: exactly)
    linear, _ = quantised(64, 512)
    linear.weight.fill_(127)
    linear.weight[1::2] = -127
    linear.weight_scale.fill_(1)
    weight = linear.weight.long()
    product = EightBitProduct(linear)
    states = torch.full((3, 512), 127.0)
    states[1] = -127
    states[2, ::2] = -64
    wanted = states.long() @ weight.t()
    assert torch.equal(product(states, linear.weight, linear.weight_scale).long(), wanted)


@needs_products
@pytest.mark.parametrize("shape", [(96, 64), (2816, 1024), (40, 72)])
def test_w8a8_and_outliers(shape: tuple[int, int], products: str) -> None:
    """A token keeps its accuracy with numbers a thousand times as large as its others, and moves no other token."""
    rows, columns = shape
    linear, weight = quantised(rows, columns)
    pack(linear, torch.float32, CPU, eight_bit=True)
    assert isinstance(linear.compute, EightBitProduct) and linear.weight.numel() == 0
    states = numbers(9, columns, seed=5)
    usual = linear(states)
    with_outliers = states.clone()
    with_outliers[2, 5], with_outliers[6, [0, 3]] = 1000.0, torch.tensor([-300.0, 250.0])
    with_outliers[4] = 0
    found, wanted = linear(with_outliers), with_outliers @ weight.t()
    others = [0, 1, 3, 5, 7, 8]
    assert torch.equal(found[others], usual[others])
    assert torch.equal(found[4], torch.zeros(rows))
    # What the outliers don't bring is as near as without them.
    normal = with_outliers.clone()
    normal[2, 5] = normal[6, 0] = normal[6, 3] = 0
    error = (found - wanted).norm(dim=1) / (normal @ weight.t()).norm(dim=1).clamp_min(1e-9)
    assert error[others].max() < 0.015
    assert error[2] < 0.1 and error[6] < 0.05
    whole = with_outliers / (with_outliers.abs().amax(dim=1, keepdim=True) / 127).clamp_min(1e-9)
    plain = (whole.round() * (with_outliers.abs().amax(dim=1, keepdim=True) / 127)) @ weight.t()
    assert (plain - wanted)[2].norm() > 5 * (found - wanted)[2].norm()  # what one scale for all would do
    alone = torch.cat([linear(row[None]) for row in with_outliers])
    assert torch.equal(alone, found)
    assert (states.abs() > OUTSIDE * states.abs().mean(dim=1, keepdim=True)).sum() == 0


@needs_products
def test_w8a8_refuses_other_weights() -> None:
    for linear in (QuantizedLinear(64, 32, 4, 1), QuantizedLinear(64, 32, 8, 2)):
        with pytest.raises(GLMError) as caught:
            pack(linear, torch.float32, CPU, eight_bit=True)
        assert caught.value.kind == "unsupported" and caught.value.field == "quantize"


@needs_products
def test_a_model_in_w8a8(products: str) -> None:
    folder = resolve_model(EMBEDDED)
    plain, model = checkpoint.load(folder), checkpoint.load(folder, quantize="w8a8")
    prepack(model)
    ids, positions, context = torch.arange(300, 332)[None], torch.arange(32)[None], torch.tensor([28])
    with torch.inference_mode():
        wanted, found = plain(ids, positions, context), model(ids, positions, context)
    assert (wanted - found).abs().max() > 0
    assert torch.nn.functional.cosine_similarity(wanted, found, dim=-1).min() > 0.99
    embedding = model.config.vocabulary * model.config.hidden
    assert weight_bytes(model) < 8 * embedding + 1.1 * (model.config.parameters() - embedding)
    assert keeps_rows_apart(model)


def test_w8a8_over_a_folder_of_int8(tmp_path: Path) -> None:
    from engine.commands import quantize

    assert quantize.main(["--model", "embedded", "--to", "int8", "--out", str(tmp_path / "int8")]) == 0
    assert quantize.main(["--model", "embedded", "--to", "int4", "--out", str(tmp_path / "int4")]) == 0
    if has_onednn(CPU):
        model = checkpoint.load(tmp_path / "int8", quantize="w8a8")
        used = {type(module.compute) for module in model.modules() if isinstance(module, QuantizedLinear)}
        assert used == {EightBitProduct}
    with pytest.raises(GLMError) as caught:
        checkpoint.load(tmp_path / "int4", quantize="w8a8")
    assert caught.value.kind == "unsupported"
