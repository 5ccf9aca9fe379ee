"""The network's own properties (against the original's numbers: test_reference.py)."""

from __future__ import annotations

import math

import pytest
import torch

from engine.errors import GLMError
from engine.glm import checkpoint
from engine.glm.attention import MaskedAttention, packed_visible, prefix_visible
from engine.glm.config import PRESETS, Config, resolve_model, weights_hash
from engine.glm.model import GLM, initialise


@pytest.fixture(scope="module")
def model(tiny_model_folder) -> GLM:
    return checkpoint.load(tiny_model_folder)


def random_ids(model: GLM, batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, model.config.vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_context_is_bidirectional_and_answer_is_causal(model: GLM) -> None:
    ids = random_ids(model, 1, 12)
    positions, context = torch.arange(12)[None], torch.tensor([6])
    with torch.no_grad():
        before = model(ids, positions, context)
        changed = ids.clone()
        changed[0, 5] = (ids[0, 5] + 1) % model.config.vocabulary
        assert not torch.allclose(
            model(changed, positions, context)[0, 0], before[0, 0]
        )  # the first row sees the context's last
        changed = ids.clone()
        changed[0, 9] = (ids[0, 9] + 1) % model.config.vocabulary
        after = model(changed, positions, context)
    assert torch.equal(after[0, :9], before[0, :9])  # nobody before it sees an answer token
    assert not torch.allclose(after[0, 9:], before[0, 9:])


def test_packed_samples_do_not_see_each_other(model: GLM) -> None:
    """Two samples in one row, with padding behind, give the logits that each gives alone."""
    first, second = random_ids(model, 1, 7, seed=1), random_ids(model, 1, 9, seed=2)
    packed = torch.cat([first, second, torch.zeros(1, 4, dtype=torch.long)], dim=1)
    positions = torch.cat([torch.arange(7), torch.arange(9), torch.zeros(4, dtype=torch.long)])[None]
    document = torch.tensor([[1] * 7 + [2] * 9 + [0] * 4])
    context = torch.tensor([[True] * 4 + [False] * 3 + [True] * 5 + [False] * 4 + [False] * 4])
    with torch.no_grad():
        together = model(packed, positions, visible=packed_visible(document, context))
        alone = [
            model(first, torch.arange(7)[None], torch.tensor([4])),
            model(second, torch.arange(9)[None], torch.tensor([5])),
        ]
    assert (together[:, :7] - alone[0]).abs().max() < 1e-4
    assert (together[:, 7:16] - alone[1]).abs().max() < 1e-4
    assert torch.isfinite(together).all()


def test_running_layers_in_parts_is_the_same(model: GLM) -> None:
    ids = random_ids(model, 2, 10)
    rotary = model.rotary(torch.arange(10)[None].expand(2, -1))
    attention = MaskedAttention(prefix_visible(10, torch.tensor([4, 8])))
    with torch.no_grad():
        whole = model.run(model.embed(ids), rotary, attention)
        part = model.run(model.embed(ids), rotary, attention, 0, 1)
        assert torch.equal(model.run(part, rotary, attention, 1), whole)


def test_parameters_are_counted_right(model: GLM) -> None:
    assert sum(parameter.numel() for parameter in model.parameters()) == model.config.parameters()
    assert 90e6 < PRESETS["glm-base"].parameters() < 130e6
    assert 10e6 <= PRESETS["glm-embedded"].parameters() <= 30e6


@torch.no_grad()
def test_fresh_weights_are_deepnorms() -> None:
    """Values, outputs and feed-forward are drawn with gain (2 * layers) ** -0.5, query and key with gain 1."""
    config = Config("x", 8, 128, 256, 4, 100, 64)
    model = GLM(config)
    initialise(model, torch.Generator().manual_seed(0))
    weight = model.layers[3].attention.query_key_value.weight.view(4, 3, 32, 128)
    xavier = math.sqrt(2 / (128 + 128))
    assert weight[:, 0].std() == pytest.approx(xavier, rel=0.05)
    assert weight[:, 2].std() == pytest.approx(xavier / 4, rel=0.05)
    assert model.layers[0].mlp.dense_4h_to_h.weight.std() == pytest.approx(math.sqrt(2 / (128 + 256)) / 4, rel=0.05)
    assert model.layers[0].attention.dense.bias.abs().max() == 0


def test_save_and_load(model: GLM, tiny_model_folder, tmp_path) -> None:
    tokenizer = tiny_model_folder / "tokenizer.model"
    checkpoint.save(model, tmp_path / "copy", tokenizer=tokenizer, dtype=torch.float32)
    again = checkpoint.load(tmp_path / "copy")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert again.config == model.config
    assert weights_hash(tmp_path / "copy") == weights_hash(tmp_path / "copy")
    checkpoint.save(model, tmp_path / "half", tokenizer=tokenizer, dtype=torch.float16)
    assert weights_hash(tmp_path / "half") != weights_hash(tmp_path / "copy")


def test_a_broken_folder_is_named(model: GLM, tiny_model_folder, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    def folder(name: str, change) -> str:
        target = tmp_path / name
        checkpoint.save(model, target, tokenizer=tiny_model_folder / "tokenizer.model")
        tensors = load_file(target / "model.safetensors")
        change(tensors)
        save_file(tensors, target / "model.safetensors")
        return target

    cases = {
        "missing": (lambda t: t.pop("final_layernorm.bias"), "final_layernorm.bias"),
        "extra": (lambda t: t.update(more=torch.zeros(1)), "more"),
        "shape": (lambda t: t.update({"final_layernorm.bias": torch.zeros(3)}), "final_layernorm.bias"),
    }
    for name, (change, word) in cases.items():
        with pytest.raises(GLMError, match=word) as caught:
            checkpoint.load(folder(name, change))
        assert caught.value.kind == "bad_model"
    cut = folder("cut", lambda t: None)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(GLMError, match="not a whole"):
        checkpoint.load(cut)
    with pytest.raises(GLMError) as caught:
        resolve_model(tmp_path / "nowhere")
    assert caught.value.kind == "model_not_found"


def test_weights_that_are_not_finite_are_not_saved(tiny_model_folder, tmp_path) -> None:
    model = checkpoint.load(tiny_model_folder)
    with torch.no_grad():
        model.final_layernorm.weight[0] = 1e30  # inf in fp16
    with pytest.raises(GLMError, match="final_layernorm.weight"):
        checkpoint.save(model, tmp_path / "bad", tokenizer=tiny_model_folder / "tokenizer.model")
    assert not (tmp_path / "bad").exists()
