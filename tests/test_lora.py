"""Adapters: what they compute over plain and quantised bases and in ranks, training, their folders, merging, serving."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from engine.errors import GLMError
from engine.glm import blanks, checkpoint, lora, offload, parallel
from engine.glm.adapter import TARGETS, Lora, read_adapter
from engine.glm.config import CHAT, Config, base_folder, weights_hash, weights_size
from engine.glm.merge_folder import merge_folder
from engine.glm.model import GLM, initialise
from engine.glm.packed import pack
from engine.glm.parallel import SINGLE, Ranks
from engine.glm.quantize import ROWS, dequantize_weight, exact_product, quantize_weight
from engine.glm.quantize_folder import quantize_folder
from engine.glm.tokenizer import Tokenizer
from engine.serving.options import loading_seconds, plan_replicas
from engine.serving.pool import Pool
from engine.serving.protocol import Finished, Request, Sampling
from engine.serving.worker import check_memory
from tests.command_line import call, run
from tests.lively import make_lively_model
from tests.ranks import run_ranks

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Config("small", 3, 64, 96, 4, 128, 64, chat=CHAT)
SETTINGS = Lora(4, 8)
SHAPES = {  # rows, columns
    "attention.query_key_value": (192, 64),
    "attention.dense": (64, 64),
    "mlp.dense_h_to_4h": (192, 64),
    "mlp.dense_4h_to_h": (64, 96),
}


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_base(folder: Path, vocabulary_file: Path, dtype: torch.dtype, seed: int = 1) -> Path:
    model = GLM(CONFIG)
    initialise(model, generator(seed))
    with torch.no_grad():
        model.word_embeddings.weight.normal_(0.0, 0.5, generator=generator(seed))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.1, generator=generator(len(name)))
    checkpoint.save(model, folder, tokenizer=vocabulary_file, dtype=dtype)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> Path:
    return make_base(tmp_path_factory.mktemp("plain") / "base", vocabulary_file, torch.float32)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> Path:
    """A base that is stored in fp16."""
    return make_base(tmp_path_factory.mktemp("half") / "base", vocabulary_file, torch.float16)


def adapted(base: Path, settings: Lora = SETTINGS, **how) -> GLM:
    """With an adapter that changes something, in evaluation mode."""
    model = checkpoint.load(base, training=True, **how)
    lora.add(model, settings, generator())
    disturb(model)
    return model.eval()


def disturb(model: GLM) -> None:
    with torch.no_grad():
        for name, matrix in lora.named_parameters(model).items():
            if name.endswith("lora_b"):
                matrix.normal_(0.0, 0.1, generator=generator(len(name) + ord(name[7])))


@pytest.fixture(scope="module")
def folder(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter's folder."""
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    lora.save(adapted(base), folder, base=base, name="ours")
    return folder


def logits(model: GLM) -> torch.Tensor:
    """(3, 9, vocabulary)."""
    with torch.no_grad():
        return full(model).float()


def full(model: GLM) -> torch.Tensor:
    ids = torch.randint(0, CONFIG.vocabulary, (3, 9), generator=generator(0))
    return model(ids, torch.arange(9).expand(3, 9), torch.tensor([4, 1, 8]))


# Settings


@pytest.mark.parametrize(
    "values, field, limit",
    [
        ({"rank": 0}, "rank", 1),
        ({"rank": 2.0}, "rank", 1),
        ({"rank": True}, "rank", 1),
        ({"alpha": 0}, "alpha", 0),
        ({"alpha": math.nan}, "alpha", 0),
        ({"alpha": math.inf}, "alpha", 0),
        ({"alpha": 10**400}, "alpha", 0),
        ({"alpha": "8"}, "alpha", 0),
        ({"dropout": 1.0}, "dropout", 1),
        ({"dropout": -0.1}, "dropout", 1),
        ({"targets": []}, "targets", ", ".join(TARGETS)),
        ({"targets": "dense"}, "targets", ", ".join(TARGETS)),
        ({"targets": ["dense", "dense"]}, "targets", ", ".join(TARGETS)),
        ({"targets": ["dense", "word_embeddings"]}, "targets", ", ".join(TARGETS)),
        ({"targets": [["dense"]]}, "targets", ", ".join(TARGETS)),
        ({"targets": None}, "targets", ", ".join(TARGETS)),
    ],
)
def test_settings_that_can_not_be(values: dict, field: str, limit: object) -> None:
    with pytest.raises(GLMError, match=field) as caught:
        Lora(**({"rank": 4, "alpha": 8} | values))
    assert (caught.value.kind, caught.value.field, caught.value.limit) == ("bad_request", field, limit)


def test_settings_are_equal_however_they_are_written() -> None:
    assert Lora(4, 8, ["dense_h_to_4h", "dense"]) == Lora(4, 8.0, ("dense", "dense_h_to_4h"), 0)
    assert Lora(4, 8).targets == TARGETS and Lora(4, 8).scale == 2


@pytest.mark.parametrize("targets, limit", [(TARGETS, 64), (["dense_4h_to_h"], 64)])
def test_a_rank_above_the_matrices(base: Path, targets: tuple[str, ...], limit: int) -> None:
    model = checkpoint.load(base)
    with pytest.raises(GLMError, match="at most, not 65") as caught:
        lora.add(model, Lora(65, 8, targets), generator())
    assert (caught.value.kind, caught.value.field, caught.value.limit) == ("bad_request", "rank", limit)
    assert lora.adapter_settings(model) is None and not lora.parameters(model)
    lora.add(model, Lora(64, 8, targets), generator())


# What an adapted model computes


@pytest.mark.parametrize(
    "quantize, dtype",
    [
        (None, torch.float32),
        (None, torch.bfloat16),
        ("int8", torch.float32),
        ("int4", torch.float32),
        ("int8", torch.bfloat16),
        ("int4-g32", torch.bfloat16),
    ],
)
def test_a_new_adapter_changes_nothing(base: Path, quantize: str | None, dtype: torch.dtype) -> None:
    """To the bit, with torch's kernels for few bits, too; one with B disturbed changes much."""
    model = checkpoint.load(base, quantize=quantize, dtype=dtype)
    names, expected = list(model.state_dict()), logits(model)
    lora.add(model, SETTINGS, generator())
    assert torch.equal(logits(model), expected)
    assert [name for name in model.state_dict() if "lora" not in name] == names
    disturb(model)
    assert (logits(model) - expected).abs().max() > 0.3


def test_names_shapes_and_the_seed(base: Path) -> None:
    models = [checkpoint.load(base) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        lora.add(model, SETTINGS, generator(seed))
    first, again, other = map(lora.named_parameters, models)
    expected = {}
    for layer in range(CONFIG.layers):
        for name, (rows, columns) in SHAPES.items():
            expected[f"layers.{layer}.{name}.lora_a"] = (4, columns)
            expected[f"layers.{layer}.{name}.lora_b"] = (rows, 4)
    assert {name: tuple(matrix.shape) for name, matrix in first.items()} == expected
    assert all(
        matrix is parameter for matrix, parameter in zip(first.values(), lora.parameters(models[0]), strict=True)
    )
    for name, matrix in first.items():
        assert torch.equal(matrix, again[name])
        if name.endswith("lora_a"):
            assert not torch.equal(matrix, other[name])
            assert 0.85 < matrix.std() * math.sqrt(matrix.shape[1]) < 1.15
        else:
            assert not matrix.any()
    assert lora.adapter_settings(models[0]) == SETTINGS
    with pytest.raises(GLMError, match="has an adapter already") as caught:
        lora.add(models[0], SETTINGS, generator())
    assert caught.value.kind == "unsupported"


@pytest.mark.parametrize("targets", [*[(name,) for name in TARGETS], TARGETS])
def test_against_changed_weights(base: Path, targets: tuple[str, ...]) -> None:
    """W + (alpha / rank) B A of the targets alone, written down here, in a plain model."""
    model, plain = adapted(base, Lora(3, 5, targets)), checkpoint.load(base)
    matrices = lora.named_parameters(model)
    assert {name.split(".")[-2] for name in matrices} == set(targets)
    before = logits(plain)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            a = matrices.get(name.replace("weight", "lora_a"))
            if a is not None:
                parameter += (5 / 3 * matrices[name.replace("weight", "lora_b")].double() @ a.double()).float()
    assert (logits(plain) - before).abs().max() > 0.1
    assert (logits(model) - logits(plain)).abs().max() < 1e-4


def test_dropout_is_of_training_alone(base: Path) -> None:
    model = adapted(base, replace(SETTINGS, dropout=0.5))
    still = logits(model)
    assert torch.equal(still, logits(adapted(base)))
    model.train()
    torch.manual_seed(1)
    first, second = logits(model), logits(model)
    torch.manual_seed(1)
    assert not torch.equal(first, second) and torch.equal(first, logits(model))
    assert torch.equal(still, logits(model.eval()))


# Ranks


def rank_logits(ranks: Ranks, folder: Path, kinds: list[str | None]) -> list:
    return [logits(checkpoint.load(folder, ranks=ranks, quantize=kind)).tolist() for kind in kinds]


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_compute_what_one_does(folder: Path, size: int) -> None:
    kinds = [None, "int8"]
    found = run_ranks(size, rank_logits, folder, kinds)
    assert all(other == found[0] for other in found[1:])
    [one] = rank_logits(SINGLE, folder, [None])
    assert (torch.tensor(found[0][0]) - torch.tensor(one)).abs().max() < 1e-4
    # Each rank quantises its own part: what a folder says that was quantised for as many.
    stored = quantize_folder(base_folder(folder), folder.parent / f"base-int8-{size}", "int8", tensor_parallel=size)
    model = checkpoint.load(stored.folder)
    lora.attach(model, SETTINGS)
    checkpoint.fill_adapter(model, checkpoint.adapter_weights(folder))
    assert (torch.tensor(found[0][1]) - logits(model)).abs().max() < 1e-4


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_draw_the_parts_of_the_same_matrices(base: Path, size: int) -> None:
    whole = checkpoint.load(base)
    lora.add(whole, SETTINGS, generator())
    disturb(whole)
    parts = []
    for rank in range(size):
        part = GLM(CONFIG, ranks=Ranks(rank, size))
        lora.add(part, SETTINGS, generator())
        parts.append(lora.named_parameters(part))
    for name, matrix in lora.named_parameters(whole).items():
        own = parts[0][name]
        cut = ("dense.lora_a", "4h_to_h.lora_a", "value.lora_b", "h_to_4h.lora_b")
        assert own.numel() * (size if name.endswith(cut) else 1) == matrix.numel(), name
        if name.endswith("lora_a"):
            joined = parallel.join(parallel.partition(name), [part[name] for part in parts])
            assert torch.equal(joined, matrix), name


# Training


def targets_loss(model: GLM) -> torch.Tensor:
    wanted = torch.randint(0, CONFIG.vocabulary, (27,), generator=generator(5))
    return F.cross_entropy(full(model).flatten(0, 1).float(), wanted)


@pytest.mark.parametrize(
    "quantize, dtype",
    [(None, torch.float32), ("int8", torch.float32), ("int4", torch.float32), ("int4-g32", torch.bfloat16)],
)
def test_training_reaches_the_adapter_alone(base: Path, quantize: str | None, dtype: torch.dtype) -> None:
    model = checkpoint.load(base, quantize=quantize, dtype=dtype, training=True)
    lora.add(model, replace(SETTINGS, dropout=0.05), generator())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert {name for name, one in model.named_parameters() if one.requires_grad} == set(lora.named_parameters(model))
    optimizer = torch.optim.AdamW(lora.parameters(model), lr=0.01)
    torch.manual_seed(1)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = targets_loss(model)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) != ("lora" in name), name
    assert all(one.grad is None for name, one in model.named_parameters() if "lora" not in name)
    assert all(one.dtype == torch.float32 for one in lora.parameters(model))


@pytest.mark.parametrize("kind, targets", [("int8", TARGETS), ("int4", ("query_key_value",)), ("int4-g32", ("dense",))])
def test_gradients_over_a_quantised_base(base: Path, kind: str, targets: tuple[str, ...]) -> None:
    """Those over the plain weights that the quantised ones stand for."""
    model, plain = adapted(base, replace(SETTINGS, targets=targets), quantize=kind), checkpoint.load(base)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            module = model.get_submodule(name.rpartition(".")[0])
            if hasattr(module, "weight_scale") and name.endswith("weight"):
                parameter.copy_(dequantize_weight(module.weight, module.weight_scale, module.bits))
    lora.add(plain, replace(SETTINGS, targets=targets), generator())
    disturb(plain)
    for one in (model, plain):
        targets_loss(one).backward()
    found, expected = lora.named_parameters(model), lora.named_parameters(plain)
    largest = max(float(one.grad.abs().max()) for one in expected.values())
    assert largest > 1e-3
    for name, one in expected.items():
        assert (found[name].grad - one.grad).abs().max() < 1e-4 * largest, name


def test_what_is_written_out_of_quantised_weights_is_not_kept_for_gradients() -> None:
    numbers, scale = quantize_weight(torch.randn(2 * ROWS + 3, 64, generator=generator()), 4)
    states = torch.randn(2, 64, requires_grad=True, generator=generator())
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        product = exact_product(states, numbers, scale)
    assert sum(tensor.nbytes for tensor in kept) == numbers.nbytes + scale.nbytes
    product.sum().backward()
    assert torch.allclose(states.grad, dequantize_weight(numbers, scale, 4).float().sum(0).expand(2, 64), atol=1e-3)
    assert torch.equal(product.detach(), exact_product(states.detach(), numbers, scale))


def test_weights_that_were_packed_for_serving_say_that_they_can_not_be_trained_over(base: Path) -> None:
    model = checkpoint.load(base, quantize="int4-g32", dtype=torch.bfloat16)
    lora.add(model, SETTINGS, generator())
    with pytest.raises(RuntimeError, match="derivative for aten::_weight_int4pack_mm_for_cpu is not implemented"):
        targets_loss(model).backward()


# Folders


@pytest.mark.parametrize("quantize, dtype", [(None, torch.float32), ("int8", torch.float32), (None, torch.bfloat16)])
def test_saved_and_loaded_is_the_same_to_the_bit(
    base: Path, tmp_path: Path, quantize: str | None, dtype: torch.dtype
) -> None:
    model = adapted(base, quantize=quantize, dtype=dtype)
    lora.save(model, tmp_path / "adapter", base=base, name="ours", about={"steps": 3})
    again = checkpoint.load(tmp_path / "adapter", quantize=quantize, dtype=dtype)
    pack(model, dtype, torch.device("cpu"))  # what is trained computes by products through which gradients pass
    assert torch.equal(logits(again), logits(model)) and not again.training
    assert all(matrix.dtype == dtype for matrix in lora.parameters(again))
    trained = checkpoint.load(tmp_path / "adapter", quantize=quantize, dtype=dtype, training=True)
    assert trained.training and not any(
        one.requires_grad for name, one in trained.named_parameters() if "lora" not in name
    )
    for name, matrix in lora.named_parameters(trained).items():
        assert matrix.requires_grad and torch.equal(matrix, lora.named_parameters(model)[name])


def test_what_is_in_the_folder(base: Path, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "adapter.json",
        "adapter.safetensors",
        "config.json",
        "tokenizer.model",
    }
    assert Config.load(folder) == replace(CONFIG, name="ours")
    assert (folder / "tokenizer.model").read_bytes() == (base / "tokenizer.model").read_bytes()
    assert json.loads((folder / "adapter.json").read_text()) == {
        "format": "glm-lora-1",
        "base": str(base),
        "base_sha256": weights_hash(base),
        "rank": 4,
        "alpha": 8.0,
        "targets": list(TARGETS),
        "dropout": 0.0,
    }
    assert base_folder(folder) == base and base_folder(base) == base
    size = sum(path.stat().st_size for path in (base / "model.safetensors", folder / "adapter.safetensors"))
    assert weights_size(folder) == size and loading_seconds(folder) == loading_seconds(base) == 600


def test_a_base_that_is_given_relatively_moves_with_its_adapter(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(base, tmp_path / "here" / "base")
    monkeypatch.chdir(tmp_path / "here")
    lora.save(adapted(Path("base")), Path("runs/1/adapter"), base="base", name="ours")
    monkeypatch.chdir(tmp_path)
    expected = logits(checkpoint.load(Path("here/runs/1/adapter")))
    (tmp_path / "here").rename(tmp_path / "there")
    assert read_adapter(Path("there/runs/1/adapter")).base == "../../../base"
    assert torch.equal(logits(checkpoint.load(Path("there/runs/1/adapter"))), expected)


def test_over_the_embedded_model(embedded: Path, tmp_path: Path) -> None:
    model = checkpoint.load(embedded, training=True)
    lora.add(model, Lora(2, 4, ["query_key_value"]), generator())
    lora.save(model, tmp_path / "adapter", base="embedded", name="ours")
    assert read_adapter(tmp_path / "adapter").base == "embedded"
    assert base_folder(tmp_path / "adapter") == embedded
    assert lora.adapter_settings(checkpoint.load(tmp_path / "adapter")) == Lora(2, 4, ["query_key_value"])


def test_training_goes_on_from_an_adapter(base: Path, folder: Path, tmp_path: Path) -> None:
    model = checkpoint.load(folder, training=True)
    optimizer = torch.optim.SGD(lora.parameters(model), lr=0.1)
    targets_loss(model).backward()
    optimizer.step()
    lora.save(model, tmp_path / "further", base=folder, name="further")
    assert base_folder(tmp_path / "further") == base
    assert torch.equal(logits(checkpoint.load(tmp_path / "further")), logits(model.eval()))
    assert not torch.equal(logits(model), logits(checkpoint.load(folder)))


def test_an_identity_of_base_and_adapter(base: Path, folder: Path, tmp_path: Path) -> None:
    known = weights_hash(folder)
    assert known != weights_hash(base) and known == weights_hash(folder)

    def changed(name: str, **values: object) -> str:
        other = copied(folder, tmp_path / name)
        description = json.loads((other / "adapter.json").read_text()) | values
        (other / "adapter.json").write_text(json.dumps(description))
        return weights_hash(other)

    assert changed("same") == changed("moved", base="../elsewhere") == changed("dropout", dropout=0.5) == known
    hashes = [changed("alpha", alpha=9), changed("base", base_sha256="0" * 64)]
    lora.save(adapted(base, Lora(4, 8, ["dense"])), tmp_path / "dense", base=base, name="ours")
    model = checkpoint.load(folder)
    with torch.no_grad():
        lora.parameters(model)[5][0, 0] += 1e-6
    lora.save(model, tmp_path / "nudged", base=base, name="ours")
    hashes += [known, weights_hash(tmp_path / "dense"), weights_hash(tmp_path / "nudged")]
    assert len(set(hashes)) == 5


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def described(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter.json"
        known = json.loads(path.read_text()) | values
        path.write_text(json.dumps({name: value for name, value in known.items() if value is not ...}))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        found = load_file(folder / "adapter.safetensors")
        change(found)
        save_file(found, folder / "adapter.safetensors")

    return rewrite


NAME = "layers.1.mlp.dense_4h_to_h.lora_b"
BROKEN: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "unreadable": (lambda folder: (folder / "adapter.json").write_text("{"), "bad_model", "not readable JSON"),
    "list": (lambda folder: (folder / "adapter.json").write_text("[]"), "bad_model", "not of the format glm-lora-1"),
    "format": (described(format="glm-lora-2"), "bad_model", "not of the format glm-lora-1"),
    "no base": (described(base=...), "bad_model", "must name its base"),
    "no hash": (described(base_sha256=5), "bad_model", "must name its base and base_sha256"),
    "no rank": (described(rank=...), "bad_model", "rank"),
    "more": (described(kind="x"), "bad_model", "kind"),
    "rank": (described(rank=0), "bad_model", "rank must be"),
    "other rank": (described(rank=3), "bad_model", r"\(4, 64\), the config asks for \(3, 64\)"),
    "other targets": (described(targets=["dense"]), "bad_model", "has an unexpected tensor layers.0"),
    "missing": (tensors(lambda found: found.pop(NAME)), "bad_model", f"lacks the tensor {NAME}"),
    "extra": (
        tensors(lambda found: found.update(x=found[NAME][:1].clone())),
        "bad_model",
        "has an unexpected tensor x",
    ),
    "no weights": (lambda folder: (folder / "adapter.safetensors").unlink(), "bad_model", "no adapter.safetensors"),
    "cut": (
        lambda folder: (folder / "adapter.safetensors").write_bytes((folder / "adapter.safetensors").read_bytes()[:-9]),
        "bad_model",
        "adapter.safetensors is not a whole",
    ),
    "both": (lambda folder: save_file({}, folder / "model.safetensors"), "bad_model", "both a model and an adapter"),
    "base gone": (described(base="/nowhere/base"), "model_not_found", "broken needs its base, .* in /nowhere/base"),
    "hash": (
        described(base_sha256="0" * 64),
        "bad_model",
        "broken was trained over .* hash 000000000000, and those in .*base",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_named(folder: Path, tmp_path: Path, case: str) -> None:
    change, kind, words = BROKEN[case]
    change(copied(folder, tmp_path / "broken"))
    for task in (checkpoint.load, lambda folder: merge_folder(folder, tmp_path / "out")):
        with pytest.raises(GLMError, match=words) as caught:
            task(tmp_path / "broken")
        assert caught.value.kind == kind
    assert not (tmp_path / "out").exists()


def test_a_base_with_other_weights(folder: Path, base: Path, tmp_path: Path, vocabulary_file: Path) -> None:
    """Of the same shape: nothing else would notice."""
    other = make_base(tmp_path / "base", vocabulary_file, torch.float32, seed=2)
    broken = copied(folder, tmp_path / "broken")
    described(base="../base")(broken)
    with pytest.raises(
        GLMError, match=f"{weights_hash(base)[:12]}, and those in {other} have {weights_hash(other)[:12]}"
    ):
        checkpoint.load(broken)


def test_an_adapter_is_no_base(folder: Path, tmp_path: Path) -> None:
    second = copied(folder, tmp_path / "second")
    described(base=str(folder))(second)
    with pytest.raises(GLMError, match="has another adapter as its base") as caught:
        checkpoint.load(second)
    assert caught.value.kind == "unsupported"


def test_what_needs_weights_of_its_own_says_so(folder: Path, tmp_path: Path) -> None:
    for task in (
        lambda: offload.load(folder),
        lambda: quantize_folder(folder, tmp_path / "out", "int8"),
    ):
        with pytest.raises(GLMError, match="is an adapter over .*engine merge") as caught:
            task()
        assert caught.value.kind == "unsupported"
    with pytest.raises(GLMError, match="merge it with its base first") as caught:
        Pool(folder, offload="disk")
    assert (caught.value.kind, caught.value.field) == ("unsupported", "offload")


def test_saving_is_whole_or_not_at_all(base: Path, folder: Path, tmp_path: Path) -> None:
    mine = copied(folder, tmp_path / "mine")
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    model = adapted(base)
    with torch.no_grad():
        lora.parameters(model)[3][1, 2] = math.nan
    with pytest.raises(GLMError, match=r"layers\.0\.attention\.dense\.lora_b is not finite") as caught:
        lora.save(model, mine, base=base, name="ours")
    assert caught.value.kind == "bad_model"
    with pytest.raises(FileNotFoundError):
        lora.save(adapted(base), mine, base=base, name="ours", tokenizer=tmp_path / "none")
    assert {path.name: path.read_bytes() for path in mine.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    lora.save(adapted(base, Lora(2, 2)), mine, base=base, name="second")
    assert lora.adapter_settings(checkpoint.load(mine)) == Lora(2, 2) and Config.load(mine).name == "second"
    (mine / "adapter.json").unlink()
    (mine / "adapter.json").mkdir()  # so that it can't be replaced, when some of the files are
    with pytest.raises(IsADirectoryError):
        lora.save(adapted(base), mine, base=base, name="third")
    assert not (mine / "config.json").exists()  # no model, rather than the files of two
    with pytest.raises(GLMError, match="holds a model") as caught:
        lora.save(adapted(base), copied(base, tmp_path / "model"), base=base, name="ours")
    assert caught.value.kind == "bad_request" and checkpoint.load(tmp_path / "model")


# Merging


def test_merged_computes_what_the_adapter_does(base: Path, folder: Path, tmp_path: Path) -> None:
    made = merge_folder(folder, tmp_path / "merged")
    assert made.sha256 == weights_hash(made.folder) and read_adapter(made.folder) is None
    assert Config.load(made.folder) == replace(CONFIG, name="ours")
    expected = logits(checkpoint.load(folder))
    assert (logits(checkpoint.load(made.folder)) - expected).abs().max() < 1e-4
    assert (logits(checkpoint.load(base)) - expected).abs().max() > 0.3


def test_merged_in_fp16(half: Path, tmp_path: Path) -> None:
    """Each weight is rounded once, so it is at most half a unit of its last place away, and the logits not further than all of
    these together can move them, by their gradients."""
    model = adapted(half)
    lora.save(model, tmp_path / "adapter", base=half, name="ours")
    merged = load_file(merge_folder(tmp_path / "adapter", tmp_path / "merged").folder / "model.safetensors")
    before, matrices = load_file(half / "model.safetensors"), lora.named_parameters(model)
    exact = checkpoint.load(half)
    for name, parameter in exact.named_parameters():
        assert merged[name].dtype == torch.float16
        if name.replace("weight", "lora_a") in matrices:
            a, b = (matrices[name.replace("weight", kind)].detach().double() for kind in ("lora_a", "lora_b"))
            whole = before[name].double() + 2 * b @ a
            sums = before[name].double().abs() + 2 * b.abs() @ a.abs()  # of five terms, in fp32
            assert ((merged[name].double() - whole).abs() <= unit(whole) / 2 + 6 * 2**-24 * sums).all()
            parameter.data.copy_(whole)
        else:
            assert torch.equal(merged[name], before[name])
    output = full(exact)
    error = (logits(checkpoint.load(tmp_path / "merged")) - logits(model)).abs()
    assert (output.detach() - logits(model)).abs().max() < 1e-4 < error.max()
    for index in range(0, output.numel(), output.numel() // 7):
        gradients = torch.autograd.grad(output.flatten()[index], list(exact.parameters()), retain_graph=True)
        pairs = zip(gradients, exact.parameters(), strict=True)
        bound = sum(float((gradient.abs() * unit(parameter.double()) / 2).sum()) for gradient, parameter in pairs)
        assert error.flatten()[index] < bound + 1e-4


def unit(values: torch.Tensor) -> torch.Tensor:
    """Of the last place of fp16, double."""
    return torch.exp2(values.detach().abs().clamp_min(2.0**-14).log2().floor() - 10)


def test_rows_and_files_do_not_matter(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_file(merge_folder(folder, tmp_path / "whole").folder / "model.safetensors")
    monkeypatch.setattr("engine.glm.merge_folder.BLOCK", 1000)
    heard: list[tuple[int, int]] = []
    made = merge_folder(
        folder, tmp_path / "parts", shard_size=1000, report=lambda what, done, total: heard.append((done, total))
    )
    paths = checkpoint.weight_files(made.folder)
    assert len(paths) == CONFIG.layers + 2 and heard[-1][0] == heard[-1][1]
    parts = {name: tensor for path in paths for name, tensor in load_file(path).items()}
    assert parts.keys() == whole.keys()
    # Products of fewer rows may be summed in another order.
    assert all(torch.allclose(parts[name], tensor, rtol=0, atol=1e-6) for name, tensor in whole.items())


def test_the_command(folder: Path, tmp_path: Path) -> None:
    ran = run("engine", "merge", "--model", folder, "--out", tmp_path / "out")
    assert ran.returncode == 0, ran.stderr
    assert f"{tmp_path / 'out'}: ours, 3 layers" in ran.stdout and weights_hash(tmp_path / "out") in ran.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.model",
    }
    assert (logits(checkpoint.load(tmp_path / "out")) - logits(checkpoint.load(folder))).abs().max() < 1e-4


def test_mistakes_in_the_commands_arguments(base: Path, half: Path, folder: Path, tmp_path: Path) -> None:
    new, quantised = tmp_path / "new", quantize_folder(base, tmp_path / "quantised", "int8").folder
    lora.save(adapted(quantised), tmp_path / "over-int8", base=quantised, name="ours")
    large = adapted(half)
    with torch.no_grad():
        for matrix in lora.parameters(large):
            matrix.fill_(1e3)
    lora.save(large, tmp_path / "large", base=half, name="ours")
    lost = copied(folder, tmp_path / "lost")
    described(base="../gone")(lost)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    for arguments, words in (
        (["--model", base, "--out", new], "is no adapter: there is nothing to merge"),
        (["--model", tmp_path / "none", "--out", new], "There is no model in"),
        (["--model", tmp_path / "over-int8", "--out", new], "is quantised, as int8"),
        (["--model", lost, "--out", new], f"needs its base, and there is no model in {tmp_path / 'gone'}"),
        (["--model", tmp_path / "large", "--out", tmp_path / "inf"], "query_key_value.weight is not finite in F16"),
        (["--model", folder, "--out", folder], "holds a model already"),
        (["--model", folder, "--out", base], "holds a model already"),
        (["--model", folder, "--out", tmp_path / "notes"], "isn't empty"),
        (["--model", folder, "--out", folder / "config.json"], "is a file"),
        (["--model", folder, "--out", new, "--shard-size", "many"], "is not a size"),
    ):
        ran = call("engine", "merge", *arguments)
        assert ran.returncode == 2 and not ran.stdout, ran.stderr
        assert ran.stderr.startswith("error: ") and words in ran.stderr and ran.stderr.count("\n") == 1, ran.stderr
    for arguments, words in ((["--model", folder], "--out"), (["--out", new], "--model")):
        ran = call("engine", "merge", *arguments)
        assert ran.returncode == 2 and words in ran.stderr and "Traceback" not in ran.stderr
    assert not new.exists() and not (tmp_path / "inf" / "config.json").exists()


# Serving


async def answer(folder: Path, **how) -> tuple[tuple[int, ...], str]:
    """Greedy tokens of a few prompts, one after the other, and the fingerprint's hash."""
    tokenizer = Tokenizer.load(folder)
    ids: tuple[int, ...] = ()
    async with asyncio.timeout(120), Pool(folder, threads=1, slots=2, **how) as pool:
        for number, text in enumerate(("Once upon a time [gMASK]", "The [MASK] sat on the mat.")):
            document = blanks.parse(text, tokenizer)
            prompt = blanks.prompt(document.ids, document.masks[-1].index, tokenizer)
            sampling = Sampling(temperature=0.0, seed=1, max_new_tokens=12, min_new_tokens=12)
            async for event in pool.stream(Request(str(number), prompt, sampling)):
                if isinstance(event, Finished):
                    ids += event.results[0].ids
        return ids, pool.limits.fingerprint()["weights_hash"]


async def test_a_pool_serves_an_adapter(tmp_path: Path, vocabulary_file: Path) -> None:
    base = make_lively_model(tmp_path / "base", vocabulary_file)
    lora.save(adapted(base), tmp_path / "adapter", base=base, name="ours")
    merged = merge_folder(tmp_path / "adapter", tmp_path / "merged").folder
    (plain, base_hash), (found, found_hash), (expected, _), (parallel_found, parallel_hash) = [
        await answer(folder, **how)
        for folder, how in (
            (base, {}),
            (tmp_path / "adapter", {}),
            (merged, {}),
            (tmp_path / "adapter", {"tensor_parallel": 2}),
        )
    ]
    assert len(found) == 24 and found == expected == parallel_found and found != plain
    assert found_hash == parallel_hash == weights_hash(tmp_path / "adapter") != base_hash == weights_hash(base)


async def test_a_pool_says_why_an_adapter_can_not_be_served(folder: Path, tmp_path: Path) -> None:
    broken = copied(folder, tmp_path / "broken")
    described(base_sha256="0" * 64)(broken)
    pool = Pool(broken, threads=1)
    with pytest.raises(GLMError, match="was trained over weights with the hash") as caught:
        await pool.start()
    assert caught.value.kind == "bad_model"
    described(base="../gone")(broken)
    with pytest.raises(GLMError, match="there is no model in") as caught:
        Pool(broken)  # before any process is started
    assert caught.value.kind == "model_not_found"


def test_an_adapters_memory_is_counted(folder: Path, tmp_path: Path) -> None:
    """By its file's size: that of one that no machine has room for. It is never read."""
    large = copied(folder, tmp_path / "large")
    for adapter in (folder, large):
        [options] = plan_replicas(
            adapter, replicas=1, tensor_parallel=1, slots=1, threads=1, precision="fp32", quantize=None, offload="none",
            weights_budget=None, device="cpu", prefill_tokens=64, gap_seconds=0.1, batch_invariant=False,
            kv_cache="auto", eager=False,
        )  # fmt: skip
        if adapter == folder:
            assert check_memory(options, torch.device("cpu")) is None
            with (large / "adapter.safetensors").open("r+b") as file:
                file.truncate(1 << 43)
    with pytest.raises(GLMError, match="ours does not fit") as caught:
        check_memory(options, torch.device("cpu"))
    assert caught.value.kind == "overloaded"
