"""Our network against fixtures recorded from GLM-130B's original code.

`pytest tests/test_reference.py --reference DIR` runs on any folder of such fixtures; without the option a small copy of
the logits, in tests/data/reference, is used where the full set is absent.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.glm.attention import MaskedAttention
from engine.glm.config import PRESETS
from engine.glm.model import GLM, rotary_table
from engine.training.data import Batch
from engine.training.loss import batch_loss, shrunk
from tests.reference import load_config, load_model

LOGITS_TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def reference(request: pytest.FixtureRequest) -> Path:
    return Path(request.config.getoption("--reference"))


@pytest.fixture(scope="module")
def model(reference: Path) -> GLM:
    return load_model(reference)


def cases(folder: Path) -> list[Path]:
    return sorted((folder / "logits").glob("*.safetensors"))


def test_there_are_cases(reference: Path) -> None:
    assert len(cases(reference)) >= 3


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", cases(Path(metafunc.config.getoption("--reference"))), ids=lambda path: path.stem)


def test_logits(case: Path, model: GLM) -> None:
    data = load_file(case)
    with torch.no_grad():
        logits = model(data["tokens"], data["position_ids"], visible=~data["attention_mask"])
    if "rows" in data:  # only some rows were stored
        logits = logits[:, data["rows"]]
    expected = data["logits"]
    assert logits.shape == expected.shape
    if "valid_rows" in data:  # the others are padding
        valid = data["valid_rows"].bool()
        logits, expected = logits[valid], expected[valid]
    assert (logits - expected).abs().max() < LOGITS_TOLERANCE


def test_prefix_mask_is_the_recorded_one(case: Path, model: GLM) -> None:
    """Our own mask, built from the context length alone, gives the same logits where the case is no padded batch."""
    data = load_file(case)
    if "valid_rows" in data or "rows" in data:
        return
    mask = ~data["attention_mask"][0, 0]
    context = int(mask[0].sum())  # what the first row sees is the context
    with torch.no_grad():
        logits = model(data["tokens"], data["position_ids"], context_length=torch.tensor([context]))
    assert (logits - data["logits"]).abs().max() < LOGITS_TOLERANCE


def test_rotary_tables(reference: Path) -> None:
    data = load_file(reference / "rotary_tables.safetensors")
    cos, sin = rotary_table(data["positions"], data["cos_fp16"].shape[-1], "fp16")
    assert torch.equal(cos, data["cos_fp16"])
    assert torch.equal(sin, data["sin_fp16"])


def test_hidden_states(reference: Path, model: GLM) -> None:
    """Every recorded sub-module output of the case, found by hooks on our modules of the same names."""
    expected = load_file(reference / "hidden_states_b_mask.safetensors")
    data = load_file(reference / "logits" / "b_mask.safetensors")
    found: dict[str, torch.Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_hook(lambda _, inputs, output, name=name: found.update({name: output})))

    class Recorder(MaskedAttention):
        def __call__(self, layer, query, key, value):
            context = super().__call__(layer, query, key, value)
            found[f"layers.{layer}.mem_kv"] = torch.cat((key.flatten(2), value.flatten(2)), dim=-1)
            found[f"layers.{layer}.attention.context"] = context.flatten(2)
            return context

    with torch.no_grad():
        hidden = model.run(
            model.embed(data["tokens"]), model.rotary(data["position_ids"]), Recorder(~data["attention_mask"])
        )
        model.logits(hidden)
    for handle in handles:
        handle.remove()
    for layer in range(model.config.layers):
        found[f"layers.{layer}.output"] = found[f"layers.{layer}"]
        value, gate = found[f"layers.{layer}.mlp.dense_h_to_4h"].chunk(2, dim=-1)
        found[f"layers.{layer}.mlp.activation"] = value * torch.nn.functional.gelu(gate)
    assert set(expected) <= set(found), sorted(set(expected) - set(found))
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() < LOGITS_TOLERANCE, name


def greedy(model: GLM, ids: list[int], gmask: bool, mask_position: int, total: int, end_tokens: list[int]) -> list[int]:
    """The reference's own loop without a cache: append the most likely token, stop behind an end token."""
    ids = list(ids)
    context = len(ids) - 1
    while len(ids) < total:
        generated = len(ids) - context
        tail = list(range(context, len(ids))) if gmask else [mask_position] * generated
        positions = torch.tensor([list(range(context)) + tail])
        with torch.no_grad():
            logits = model(torch.tensor([ids]), positions, context_length=torch.tensor([context]))
        ids.append(int(logits[0, -1].argmax()))
        if ids[-1] in end_tokens:
            break
    return ids


def test_greedy_generation(reference: Path, model: GLM) -> None:
    recorded = [case for case in json.loads((reference / "generation.json").read_text())["greedy"] if case["robust"]]
    assert recorded
    for case in recorded:
        found = greedy(
            model, case["input"], case["gmask"], case["mask_position"], case["max_total_length"], case["end_tokens"]
        )
        assert found == case["output"], case["context"]


def test_number_of_parameters(reference: Path, model: GLM) -> None:
    recorded = json.loads((reference / "config.json").read_text())["num_parameters"]
    assert sum(parameter.numel() for parameter in model.parameters()) == recorded
    assert load_config(reference).parameters() == recorded
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in GLM(PRESETS["glm-130b"]).parameters()) == 128_697_794_560
    assert PRESETS["glm-130b"].parameters() == 128_697_794_560


@pytest.mark.parametrize("variant", ["alpha1", "alpha0.1_input", "alpha0.1_input_and_logits"])
def test_gradients(reference: Path, model: GLM, variant: str) -> None:
    """The trainer's loss and its gradients: of every parameter the norm and the sum, of some all numbers."""
    if not (reference / "gradients.json").exists():
        pytest.skip("this set of fixtures has no gradients")
    recorded = json.loads((reference / "gradients.json").read_text())["variants"][variant]
    data = load_file(reference / "gradients.safetensors")
    visible = ~data["attention_mask"][:, 0]
    targets = data["targets"].masked_fill(data["loss_mask"] == 0, -1)
    real = visible.diagonal(dim1=1, dim2=2)
    context = visible[:, 0] & real
    batch = Batch(*(part.numpy() for part in (data["tokens"], data["position_ids"], targets, real.long(), context)))
    model.requires_grad_(True).zero_grad()
    if variant.endswith("logits"):  # shrinks the tied matrix of the logits too: an alternative reading of the paper
        loss, count = loss_with_shrunk_logits(model, batch)
    else:
        loss, count = batch_loss(model, batch, 1.0 if variant == "alpha1" else 0.1)
    (loss / count).backward()
    assert abs(loss.item() / count - recorded["loss"]) < 1e-4
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        norm = recorded["grad_norms"][f"transformer.{name}"]
        assert abs(float(parameter.grad.norm()) - norm) < 1e-4 * max(1.0, norm), name
    rows = model.word_embeddings.weight.grad[data["word_embedding_rows"]]
    assert (rows - data[f"{variant}/word_embeddings.weight.grad_rows"]).abs().max() < 1e-4
    gradients = dict(model.named_parameters())
    for name, expected in data.items():
        if name.startswith(f"{variant}/transformer."):
            found = gradients[name.removeprefix(f"{variant}/transformer.")].grad
            assert (found - expected).abs().max() < 1e-4, name
    model.requires_grad_(False)


def loss_with_shrunk_logits(model: GLM, batch: Batch) -> tuple[torch.Tensor, int]:
    """As `batch_loss` with a share of 0.1, on the output matrix too."""
    weight = model.word_embeddings.weight
    model.logits = lambda hidden: torch.nn.functional.linear(model.final_layernorm(hidden), shrunk(weight, 0.1))
    try:
        return batch_loss(model, batch, 0.1)
    finally:
        del model.logits
