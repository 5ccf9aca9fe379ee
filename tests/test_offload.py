"""Layers streamed from disk or host memory: the same numbers as a model that is loaded whole, within a budget."""

from __future__ import annotations

import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import GLMError
from engine.glm import checkpoint, offload
from engine.glm.config import Config
from engine.glm.direct_reader import ALIGNMENT, DirectFile, aligned_bytes
from engine.glm.layer_files import pieces, places, write
from engine.glm.model import GLM, initialise
from engine.glm.quantize import quantize_weight
from engine.serving.runner import Runner

LAYERS = 6
CONFIG = Config("tiny", LAYERS, 64, 128, 4, 256, 64)
MATRICES = ("query_key_value.weight", "dense.weight", "dense_h_to_4h.weight", "dense_4h_to_h.weight")


def make_folder(folder: Path, vocabulary_file: Path, kind: str) -> Path:
    """A random model: `fp32`, `fp16`, or quantised by the project's own functions."""
    model = GLM(CONFIG)
    initialise(model, torch.Generator().manual_seed(1))
    checkpoint.save(model, folder, tokenizer=vocabulary_file, dtype=torch.float32 if kind == "fp32" else torch.float16)
    if kind.startswith("int"):
        quantize_folder(folder, kind)
    return folder


def quantize_folder(folder: Path, kind: str) -> None:
    config = CONFIG.quantized(kind)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(MATRICES)]:
        groups = config.quantization.groups(tensors[name].shape[1], name.endswith(("n.dense.weight", "4h_to_h.weight")))
        tensors[name], tensors[f"{name}_scale"] = quantize_weight(tensors[name], config.quantization.bits, groups)
    save_file(tensors, folder / "model.safetensors")
    config.save(folder)


@pytest.fixture(scope="module", params=["fp32", "fp16", "int8", "int4", "int4-g32"])
def folder(request, tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> Path:
    return make_folder(tmp_path_factory.mktemp(request.param), vocabulary_file, request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> Path:
    return make_folder(tmp_path_factory.mktemp("plain"), vocabulary_file, "fp32")


@pytest.fixture
def opened():
    """offload.load, closed at the end."""
    models = []

    def load(*arguments, **options) -> offload.OffloadedGLM:
        models.append(offload.load(*arguments, **options))
        return models[-1]

    yield load
    for model in models:
        model.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("weights")]


def smallest(folder: Path, **options) -> int:
    """The smallest budget, from the error's own words."""
    with pytest.raises(GLMError) as caught:
        offload.load(folder, budget=1, **options)
    assert caught.value.kind == "bad_request" and caught.value.field == "weights_budget"
    assert str(caught.value.limit) in str(caught.value)
    return int(caught.value.limit)


def layer_bytes(model: offload.OffloadedGLM) -> int:
    return model._kept[0].size


def full(model: GLM, seed: int = 0) -> torch.Tensor:
    """Hidden states and logits of some random sequences."""
    ids = torch.randint(0, CONFIG.vocabulary, (3, 9), generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return model(ids, torch.arange(9).expand(3, 9), torch.tensor([4, 1, 8]))


@pytest.mark.parametrize("place", ["disk", "host"])
def test_streamed_is_loaded_bit_for_bit(folder: Path, place: str, opened) -> None:
    expected = full(checkpoint.load(folder))
    least = smallest(folder, place=place)
    size = layer_bytes(opened(folder, place=place))
    seen = []
    for extra in (0, size, 3 * size, LAYERS * size):
        model = opened(folder, place=place, budget=least + extra)
        for _ in range(3):
            assert torch.equal(full(model), expected)
        seen.append(model.pinned)
        assert model.weights_memory <= least + extra
    assert seen == [0, 1, 3, LAYERS]


def test_a_budget_is_kept(plain: Path, opened) -> None:
    """What is alive is what the budget says: counted from the tensors themselves, the model's and the buffers'."""
    least = smallest(plain)
    model = opened(plain, budget=least + 100)
    full(model)
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in [
            *(parameter for parameter in model.parameters() if not parameter.is_meta),
            *(tensor for buffer in model._kept for tensor in buffer.tensors.values()),
        ]
    }
    assert len(model._kept) >= 2 and sum(storages.values()) <= least + 100
    assert all(parameter.is_meta for parameter in model.layers.parameters())
    with pytest.raises(GLMError, match="needs"):
        opened(plain, budget=least - 1)


@pytest.mark.parametrize("place", ["disk", "host"])
def test_passes_that_take_turns_between_layers(folder: Path, place: str, opened) -> None:
    """Three decode steps in different slots, each somewhere else in the model, against whole passes."""
    steps = [([0, 1], [5, 6], [0, 0], [0, 0]), ([2], [7], [0], [3]), ([4, 5, 6], [9, 8, 7], [0, 0, 0], [1, 2, 3])]

    def whole(model: GLM) -> list[torch.Tensor]:
        runner = Runner(model, 8, 16)
        found = []
        for step in steps:
            state = runner.step(*step)
            runner.advance(state)
            found.append(runner.logits(state))
        return found

    expected = whole(checkpoint.load(folder))
    model = opened(folder, place=place, budget=smallest(folder, place=place) + layer_bytes(opened(folder)))
    assert model.pinned == 1
    runner = Runner(model, 8, 16)
    states = [runner.step(*step) for step in steps]
    done = [False] * 3
    for turn in range(3 * LAYERS):
        which = [0, 1, 2, 2, 0, 1, 1][turn % 7]
        done[which] = done[which] or runner.advance(states[which], 1 + turn % 2)
    for which in range(3):
        assert done[which] or runner.advance(states[which])
    for state, logits in zip(states, expected, strict=True):
        assert torch.equal(runner.logits(state), logits)
    for logits, again in zip(whole(model), expected, strict=True):
        assert torch.equal(logits, again)


def test_two_passes_hold_layers_at_the_same_time(plain: Path, opened) -> None:
    """Both of two buffers are in use, each has its own layer; a third user is a mistake of the caller's."""
    loaded, model = checkpoint.load(plain), opened(plain)
    assert model.pinned == 0
    for first, second in zip(model.ready_layers(0, 4), model.ready_layers(2, None), strict=True):
        assert first.attention.layer + 2 == second.attention.layer
        for layer in (first, second):
            expected = loaded.layers[layer.attention.layer].state_dict()
            assert all(torch.equal(tensor, expected[name]) for name, tensor in layer.state_dict().items())


def test_the_next_layer_is_read_while_one_computes(plain: Path, opened) -> None:
    """Each layer's attention waits until the next layer has come whole: it never would, if reads began only after it."""
    model = opened(plain)
    came = []

    def attention(layer, query, key, value):
        following = (layer + 1) % LAYERS
        for buffer in model._stream._buffers:
            if buffer.number == following:
                for future in buffer.coming:
                    future.result(timeout=60)
                came.append(following)
        return value

    with torch.inference_mode():
        ids = torch.arange(8)[None]
        for _ in range(2):
            model.run(model.embed(ids), model.rotary(ids), attention)
    assert came == [1, 2, 3, 4, 5, 0] * 2


def test_a_file_is_read_wherever_its_tensors_lie(tmp_path: Path) -> None:
    """safetensors files have their tensors at odd offsets, ours at aligned ones; either comes converted or as it is."""
    generator = torch.Generator().manual_seed(2)
    tensors = {
        "a": torch.randn(3, 7, generator=generator, dtype=torch.float32),
        "b": torch.randint(-128, 127, (5000,), generator=generator, dtype=torch.int8),
        "c": torch.randn(2, 3000, generator=generator, dtype=torch.float32).half(),
        "d": torch.randn(70_001, generator=generator, dtype=torch.float32).bfloat16(),
    }
    save_file(tensors, tmp_path / "theirs", metadata={"note": "odd length" + "x" * 5})
    write(tmp_path / "ours", tensors)
    for name in ("theirs", "ours"):
        file = DirectFile(tmp_path / name)
        found = places(file)
        for key, tensor in tensors.items():
            place = found[key]
            assert name == "theirs" or place.offset % ALIGNMENT == 0
            for dtype in {tensor.dtype, torch.float32} if tensor.is_floating_point() else {tensor.dtype}:
                room = aligned_bytes(tensor.numel() * dtype.itemsize)
                target = room[: tensor.numel() * dtype.itemsize].view(dtype).view(tensor.shape)
                staging = aligned_bytes(place.size + 2 * ALIGNMENT)
                for piece in pieces(place, target, room):
                    piece.bring(staging)
                assert torch.equal(target, tensor.to(dtype)), (name, key, dtype)
        file.close()


@pytest.mark.parametrize("name", ["theirs", "ours"])
def test_a_file_that_was_cut_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.safetensors"
    tensors = {"a": torch.zeros(3000), "b": torch.ones(3000)}
    save_file(tensors, path) if name == "theirs" else write(path, tensors)
    whole = path.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 50, 9, 3, 0):
        path.write_bytes(whole[:size])
        file = DirectFile(path)
        with pytest.raises(GLMError, match=path.name) as caught:
            places(file)
        assert caught.value.kind == "bad_model"
        file.close()


def test_a_layer_that_is_lost_while_it_is_streamed_is_an_error_of_the_pass(plain: Path, tmp_path: Path, opened) -> None:
    """And the model goes on when the file is whole again."""
    folder = tmp_path / "model"
    shutil.copytree(plain, folder)
    model = opened(folder)
    expected = full(model)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    os.truncate(path, len(whole) // 4)
    with pytest.raises(GLMError, match="cut short"):
        for _ in range(2):  # one layer may be in its buffer still
            full(model)
    with path.open("r+b") as file:
        file.write(whole)
    assert torch.equal(full(model), expected)


def test_prepared_layers_are_made_once_and_gone_on_with(plain: Path, tmp_path: Path, opened) -> None:
    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.weights")}

    first = opened(plain, quantize="int4", cache=tmp_path)
    expected = full(first)
    made = files()
    assert len(made) == LAYERS
    assert torch.equal(full(opened(plain, quantize="int4", cache=tmp_path)), expected) and files() == made
    lost = sorted(made)[2]
    lost.unlink()
    (lost.parent / f".{lost.name}.4711").write_bytes(b"half of it")  # what a process leaves that is killed as it writes
    assert torch.equal(full(opened(plain, quantize="int4", cache=tmp_path)), expected)
    again = files()
    assert {path for path in again if again[path] != made[path]} == {lost}
    assert not list(lost.parent.glob(".*.4711"))
    opened(plain, quantize="int8", cache=tmp_path)
    assert len(files()) == 2 * LAYERS  # another form is another folder


def test_weights_that_are_not_those_of_the_config_are_refused(plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(plain, folder)
    replace(CONFIG, layers=LAYERS + 1).save(folder)
    with pytest.raises(GLMError, match=rf"lacks layers\.{LAYERS}\.") as caught:
        offload.load(folder)
    assert caught.value.kind == "bad_model"
    replace(CONFIG, layers=LAYERS - 1).save(folder)
    with pytest.raises(GLMError, match="unexpected tensor"):
        offload.load(folder)
    replace(CONFIG, inner=64).save(folder)
    with pytest.raises(GLMError, match="shape"):
        offload.load(folder)
