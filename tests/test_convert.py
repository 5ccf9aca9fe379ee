"""From SwissArmyTransformer checkpoints, whole or in chunks, to model folders: every tensor, every mistake, and half-done work."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from engine.commands import convert as command
from engine.commands.progress import Progress
from engine.errors import GLMError
from engine.glm import checkpoint, config, sat
from engine.glm.config import CHAT, Config, Quantization, weights_hash
from engine.glm.folder_writer import Written
from engine.glm.sat import convert
from tests import sat_files

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def whole() -> dict[str, torch.Tensor]:
    return sat_files.whole_tensors()


@pytest.fixture(scope="module")
def two_ranks(whole: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint for reading only."""
    return sat_files.write(tmp_path_factory.mktemp("sat") / "small", sat_files.split(whole, 2))


@pytest.fixture
def damaged(two_ranks: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return shutil.copytree(two_ranks, tmp_path / "damaged")


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("model*.safetensors"))
    assert files
    return {name: tensor for path in files for name, tensor in load_file(path).items()}


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def ours(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def refused(source: Path, out: Path, kind: str = "bad_model", **options: int) -> str:
    """The message; nothing may be left that looks like a model."""
    with pytest.raises(GLMError) as caught:
        convert(source, out, tokenizer=None, **options)
    assert caught.value.kind == kind, caught.value
    assert not (out / "config.json").exists()
    return str(caught.value)


# Every tensor


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_plain_weights(whole: dict[str, torch.Tensor], ranks: int, tmp_path: Path) -> None:
    source = sat_files.write(tmp_path / "source", sat_files.split(whole, ranks))
    made = convert(source, tmp_path / "out", tokenizer=None)
    assert_equal(tensors_of(made.folder), ours(whole))
    assert made.config == Config(
        "source",
        2,
        sat_files.HIDDEN,
        sat_files.INNER,
        sat_files.HEADS,
        sat_files.VOCABULARY,
        2048,
        rotary_precision="fp16",
        chat=CHAT,
    )
    assert Config.load(made.folder) == made.config
    assert made.sha256 == weights_hash(made.folder)
    assert {path.name for path in made.folder.iterdir()} == {"config.json", "model.safetensors"}
    model = checkpoint.load(made.folder)
    assert torch.equal(
        model.layers[1].mlp.dense_4h_to_h.weight.half(), ours(whole)["layers.1.mlp.dense_4h_to_h.weight"]
    )


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_quantised_weights(whole: dict[str, torch.Tensor], ranks: int, bits: int, tmp_path: Path) -> None:
    parts = sat_files.split(whole, ranks, bits)
    made = convert(sat_files.write(tmp_path / "source", parts), tmp_path / "out", tokenizer=None)
    assert made.config.quantization == Quantization(bits, 0, shards=ranks)
    found = tensors_of(made.folder)
    for name, scales in found.items():
        if name.endswith("weight_scale"):
            by_columns = name.endswith(("attention.dense.weight_scale", "dense_4h_to_h.weight_scale"))
            key = f"transformer.{name}"
            for rank, part in enumerate(parts):
                expected = part[key][:, None]
                if by_columns:
                    assert scales.shape == (sat_files.HIDDEN, ranks)
                    assert torch.equal(scales[:, rank : rank + 1], expected)
                else:
                    assert torch.equal(sat_files.piece(name, scales, rank, ranks), expected)
                weight = name.removesuffix("_scale")
                expected = part[f"transformer.{weight}"]
                assert torch.equal(sat_files.piece(weight, found[weight], rank, ranks), expected)
    kept = {name: tensor for name, tensor in ours(whole).items() if not name.endswith(sat_files.MATRICES)}
    assert_equal({name: found[name] for name in kept}, kept)
    checkpoint.load(made.folder)


def test_without_rotary_frequencies_the_heads_must_be_given(whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    source = sat_files.write(tmp_path / "source", sat_files.split(whole, 2, heads=None))
    assert "--heads" in refused(source, tmp_path / "out", "bad_request")
    assert "--heads 5" in refused(source, tmp_path / "out", "bad_request", heads=5)
    assert convert(source, tmp_path / "out", tokenizer=None, heads=8).config.heads == 8


def test_given_heads_may_not_contradict_the_checkpoint(two_ranks: Path, tmp_path: Path) -> None:
    assert "--heads is 8, but the checkpoint has 4" in refused(two_ranks, tmp_path / "out", "bad_request", heads=8)


def test_heads_of_a_known_shape(tmp_path: Path) -> None:
    tiny = config.PRESETS["glm-tiny"]
    tensors = sat_files.whole_tensors(tiny.layers, tiny.hidden, tiny.inner, tiny.vocabulary)
    source = sat_files.write(tmp_path / "source", sat_files.split(tensors, 1, heads=None))
    made = convert(source, tmp_path / "out", tokenizer=None)
    assert (made.config.heads, made.config.name) == (tiny.heads, "glm-tiny")


def test_one_file_a_layer(two_ranks: Path, whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    made = convert(two_ranks, tmp_path / "out", tokenizer=None, shard_size=1000)
    files = sorted(path.name for path in made.folder.glob("*.safetensors"))
    assert files == [f"model-{number:05}-of-00004.safetensors" for number in range(1, 5)]
    assert list(load_file(made.folder / files[0])) == ["word_embeddings.weight"]
    assert all(name.startswith("layers.0.") for name in load_file(made.folder / files[1]))
    assert_equal(tensors_of(made.folder), ours(whole))
    assert made.sha256 == weights_hash(made.folder)


def test_the_iterations_folder_will_do(two_ranks: Path, whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    made = convert(two_ranks / "100", tmp_path / "out", tokenizer=None)
    assert made.config.name == "small"
    assert_equal(tensors_of(made.folder), ours(whole))


def test_tensors_that_are_views_of_one_storage(whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """torch.save stores a view's whole storage, once for all its views; a transposed one has other strides."""
    tensors = sat_files.split(whole, 1)[0]
    kinds = ("input_layernorm.weight", "input_layernorm.bias", "post_attention_layernorm.weight")
    names = [f"transformer.layers.0.{kind}" for kind in kinds]
    storage = torch.cat([tensors[name] for name in names])
    for number, name in enumerate(names):
        tensors[name] = storage[number * sat_files.HIDDEN : (number + 1) * sat_files.HIDDEN]
    dense = "transformer.layers.1.attention.dense.weight"
    tensors[dense] = tensors[dense].t().contiguous().t()
    assert not tensors[dense].is_contiguous()
    made = convert(sat_files.write(tmp_path / "source", [tensors]), tmp_path / "out", tokenizer=None)
    assert_equal(tensors_of(made.folder), ours(whole))


def test_what_a_trainer_stores_beside_the_weights_is_passed_over(
    whole: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    import argparse
    import random
    from collections import OrderedDict

    import numpy as np

    source = sat_files.write(tmp_path / "source", [{}])
    module = OrderedDict((name, torch.nn.Parameter(tensor)) for name, tensor in sat_files.split(whole, 1)[0].items())
    content = {
        "iteration": 100,
        "args": argparse.Namespace(heads=4),
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "optimizer": None,
        "module": module,
    }
    torch.save(content, sat_files.rank_file(source, 0))
    assert_equal(tensors_of(convert(source, tmp_path / "out", tokenizer=None).folder), ours(whole))


# Chunks

LETTERS = [f".part_{first}{second}" for first in "abc" for second in "abcdefghijklmnopqrstuvwxyz"]
DIGITS = [f".part_{number:02}" for number in range(78)]


@pytest.fixture(scope="module")
def chunks(two_ranks: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The checkpoint's archive in chunks that end anywhere, within headers and within tensors."""
    found = sat_files.cut(two_ranks, tmp_path_factory.mktemp("chunks") / "small-sat.tar", 9_973, LETTERS)
    assert len(found) > 26
    return found


@pytest.mark.parametrize("how", ["folder", "beginning", "pattern", "one", "all", "archive"])
def test_chunks_are_read_as_they_are(
    chunks: list[Path], whole: dict[str, torch.Tensor], how: str, tmp_path: Path
) -> None:
    folder = chunks[0].parent
    source: Path | list[Path] = {
        "folder": folder,
        "beginning": folder / "small-sat.tar.part_",
        "pattern": folder / "small-sat.tar.part_*",
        "one": chunks[3],
        "all": list(reversed(chunks)),
        "archive": tmp_path / "one.tar",
    }[how]
    if how == "archive":
        (tmp_path / "one.tar").write_bytes(b"".join(path.read_bytes() for path in chunks))
    made = convert(source, tmp_path / "out", tokenizer=None)
    assert made.config.name == "small"
    assert_equal(tensors_of(made.folder), ours(whole))
    assert sorted(folder.iterdir()) == sorted(chunks)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_numbered_chunks_with_long_names(whole: dict[str, torch.Tensor], format: int, tmp_path: Path) -> None:
    source = sat_files.write(tmp_path / ("long-" * 30), sat_files.split(whole, 4), iteration="49300")
    (tmp_path / "chunks").mkdir()
    chunks = sat_files.cut(source, tmp_path / "chunks" / "glm-130b-sat.tar", 100_000, DIGITS, format)
    assert len(chunks) > 2
    made = convert(tmp_path / "chunks", tmp_path / "out", tokenizer=None, name="mine")
    assert made.config.name == "mine"
    assert_equal(tensors_of(made.folder), ours(whole))


@pytest.mark.parametrize("missing", [0, 1, 7])
def test_a_missing_chunk_is_named(chunks: list[Path], missing: int, tmp_path: Path) -> None:
    folder = shutil.copytree(chunks[0].parent, tmp_path / "chunks")
    (folder / chunks[missing].name).unlink()
    message = refused(folder, tmp_path / "out")
    assert chunks[missing].name in message and "missing" in message


def test_a_missing_first_chunk_of_numbered_ones_is_named(two_ranks: Path, tmp_path: Path) -> None:
    (tmp_path / "chunks").mkdir()
    chunks = sat_files.cut(two_ranks, tmp_path / "chunks" / "a.tar", 100_000, DIGITS)
    chunks[0].unlink()
    assert "a.tar.part_00 is missing" in refused(tmp_path / "chunks", tmp_path / "out")


def test_a_missing_last_chunk_is_noticed(chunks: list[Path], tmp_path: Path) -> None:
    folder = shutil.copytree(chunks[0].parent, tmp_path / "chunks")
    (folder / chunks[-1].name).unlink()
    (folder / chunks[-2].name).unlink()
    message = refused(folder, tmp_path / "out")
    assert "ends in the middle of small/100/mp_rank_0" in message and chunks[-3].name in message


def test_a_chunk_that_was_cut_short_is_named(chunks: list[Path], tmp_path: Path) -> None:
    folder = shutil.copytree(chunks[0].parent, tmp_path / "chunks")
    short = folder / chunks[2].name
    short.write_bytes(short.read_bytes()[:-700])
    message = refused(folder, tmp_path / "out")
    assert short.name in message and "cut short" in message


def test_chunks_of_two_archives_are_refused(chunks: list[Path], tmp_path: Path) -> None:
    folder = shutil.copytree(chunks[0].parent, tmp_path / "chunks")
    shutil.copy(chunks[0], folder / "other.tar.part_aa")
    assert "several archives" in refused(folder, tmp_path / "out")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"\x1f\x8b\x08" + bytes(1000))
    assert "gzip" in refused(tmp_path / "a.tar", tmp_path / "out")


# Mistakes in the checkpoint


def edit(folder: Path, rank: int, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = sat_files.rank_file(folder, rank)
    tensors = torch.load(path, weights_only=True)["module"]
    change(tensors)
    torch.save({"module": tensors}, path)


QKV = "transformer.layers.1.attention.query_key_value.weight"
BIAS = "transformer.layers.1.attention.dense.bias"


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda tensors: tensors.pop(QKV), ("lacks", QKV)),
        (lambda tensors: tensors.update({"transformer.more.weight": torch.zeros(1)}), ("transformer.more.weight",)),
        (lambda tensors: tensors.update({QKV: tensors[QKV][:-1]}), (QKV, "(95, 64)", "(96, 64)")),
        (lambda tensors: tensors.update({QKV: tensors[QKV].float()}), (QKV, "F32", "F16")),
        (lambda tensors: tensors.update({BIAS: tensors[BIAS] + 1}), (BIAS, "isn't the same")),
        (lambda tensors: tensors.update({BIAS: [1.0]}), (BIAS,)),
    ],
)
def test_a_wrong_tensor_is_named_with_its_file(
    damaged: Path, change: Callable[[dict], object], words: tuple[str, ...], tmp_path: Path
) -> None:
    edit(damaged, 1, change)
    message = refused(damaged, tmp_path / "out")
    assert all(word in message for word in ("mp_rank_01_model_states.pt", *words)), message


def test_a_missing_rank_is_named(whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    for rank in (1, 3):
        source = sat_files.write(tmp_path / str(rank), sat_files.split(whole, 4))
        sat_files.rank_file(source, rank).unlink()
        assert f"lacks mp_rank_0{rank}_model_states.pt" in refused(source, tmp_path / "out")


def test_a_wrong_latest_is_named(damaged: Path, tmp_path: Path) -> None:
    (damaged / "latest").write_text("200\n")
    message = refused(damaged, tmp_path / "out")
    assert "200" in message and "there are 100" in message
    (damaged / "latest").write_text("../elsewhere")
    assert "latest" in refused(damaged, tmp_path / "out")


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.999])
def test_a_file_that_was_cut_short(damaged: Path, keep: float, tmp_path: Path) -> None:
    path = sat_files.rank_file(damaged, 1)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    assert "mp_rank_01" in refused(damaged, tmp_path / "out")


def test_a_tensor_that_is_shorter_than_described(damaged: Path, tmp_path: Path) -> None:
    path = sat_files.rank_file(damaged, 1)
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(name for name in records if name.endswith("/data/3"))
    records[name] = records[name][:-2]
    with zipfile.ZipFile(path, "w") as archive:
        for record, data in records.items():
            archive.writestr(record, data)
    message = refused(damaged, tmp_path / "out")
    assert "mp_rank_01" in message and "query_key_value.weight" in message and "bytes" in message


def test_a_flipped_bit_is_noticed(damaged: Path, tmp_path: Path) -> None:
    path = sat_files.rank_file(damaged, 0)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    data[largest.header_offset + 5000] ^= 1
    path.write_bytes(data)
    message = refused(damaged, tmp_path / "out")
    assert "checksum" in message and "word_embeddings.weight" in message


def test_torchs_old_format_is_named(damaged: Path, tmp_path: Path) -> None:
    torch.save({"module": {}}, sat_files.rank_file(damaged, 0), _use_new_zipfile_serialization=False)
    assert "1.6" in refused(damaged, tmp_path / "out")


def test_things_that_are_no_checkpoint(two_ranks: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no checkpoint" in refused(tmp_path / "empty", tmp_path / "out", "model_not_found")
    assert "nothing at" in refused(tmp_path / "absent", tmp_path / "out", "model_not_found")
    (tmp_path / "text").write_text("hello")
    assert "no tar archive" in refused(tmp_path / "text", tmp_path / "out")
    assert str(two_ranks) in refused(two_ranks.parent, tmp_path / "out", "model_not_found")
    assert "give its folder" in refused(sat_files.rank_file(two_ranks, 0), tmp_path / "out")
    (tmp_path / "100").mkdir()
    (tmp_path / "100" / "mp_rank_00_model_states.pt").write_text("hello")
    assert "no file of torch.save" in refused(tmp_path / "100", tmp_path / "out")


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["module", "beside"])
def test_no_pickle_is_ever_run(damaged: Path, protocol: int, place: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = sat_files.rank_file(damaged, 0)
    content: dict = {"module": {}}
    (content["module"] if place == "module" else content)["attack"] = Attack(marker)
    torch.save(content, path, pickle_protocol=protocol)
    message = refused(damaged, tmp_path / "out")
    assert "mp_rank_00" in message and ".system" in message
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # it would have worked


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"\x80\x02}",
        b"\x80\x02}q\x00",
        b"\x80\x02cbuiltins\neval\n.",
        b"\x80\x02ctorch\nHalfStorage\n)R.",
        b"\x80\x02(dp0\n.",
        b"\x80\x02]]\x85.",
        b"\x80\x02}]K\x01s.",
        b"\x80\x02h\x07.",
        b"\x80\x02t.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02X\xff\xff\xff\xffab.",
        b"\xff\xff",
        pickle.dumps({"module": {"a": 1}}),
    ],
)
def test_broken_programs_are_refused(damaged: Path, program: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(sat_files.rank_file(damaged, 0), "w") as archive:
        archive.writestr("archive/data.pkl", program)
    assert "mp_rank_00" in refused(damaged, tmp_path / "out")


@pytest.mark.parametrize("seed", range(4))
def test_damage_anywhere_is_a_named_error_or_harmless(seed: int, tmp_path: Path) -> None:
    """Bytes changed, lost and added at random, most of them where a file describes itself."""
    random = Random(seed)
    tensors = sat_files.whole_tensors(1, 16, 8, 64)
    source = sat_files.write(tmp_path / "source", sat_files.split(tensors, 2))
    path = sat_files.rank_file(source, 1)
    original = path.read_bytes()
    directory = original.index(b"PK\x01\x02")
    refusals = 0
    for _ in range(50):
        data = bytearray(original)
        for _ in range(random.randrange(1, 4)):
            where = random.choice((random.randrange(2000), random.randrange(directory, len(original) - 20)))
            kind = random.choice(("change", "lose", "add"))
            if kind == "change":
                data[where] = random.randrange(256)
            elif kind == "lose":
                del data[where : where + random.randrange(1, 20)]
            else:
                data[where:where] = random.randbytes(random.randrange(1, 8))
        path.write_bytes(data)
        out = tmp_path / "out"
        try:
            assert_equal(tensors_of(convert(source, out, tokenizer=None).folder), ours(tensors))
        except GLMError as error:
            assert error.kind == "bad_model"
            refusals += 1
        shutil.rmtree(out, ignore_errors=True)
    assert refusals > 25


# Other models


@pytest.mark.parametrize(
    "values, name",
    [
        ({"model_type": "chatglm", "architectures": ["ChatGLMModel"], "inner_hidden_size": 16384}, "ChatGLM-6B"),
        ({"model_type": "chatglm", "_name_or_path": "THUDM/chatglm2-6b", "ffn_hidden_size": 13696}, "ChatGLM2-6B"),
        ({"model_type": "chatglm", "_name_or_path": "THUDM/chatglm3-6b", "ffn_hidden_size": 13696}, "ChatGLM3-6B"),
        ({"model_type": "chatglm", "ffn_hidden_size": 13696, "padded_vocab_size": 151552}, "GLM-4 (glm-4-9b)"),
        ({"model_type": "glm", "architectures": ["GlmForCausalLM"]}, "GLM-4 (glm-4-9b-hf)"),
        ({"model_type": "glm", "architectures": ["GLMModel"], "hidden_size": 4096}, "GLM-10B"),
        ({"model_type": "glm4", "architectures": ["Glm4ForCausalLM"]}, "GLM-4"),
        ({"model_type": "glm4_moe", "architectures": ["Glm4MoeForCausalLM"]}, "GLM-4.5"),
        ({"model_type": "codegeex"}, "CodeGeeX"),
        ({"architectures": ["CogVLMForCausalLM"]}, "CogVLM"),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "LLaMA"),
        ({"model_type": "falcon", "architectures": ["FalconForCausalLM"]}, "'falcon'"),
    ],
)
def test_hugging_face_folders_are_refused_by_name(values: dict, name: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps(values))
    message = refused(tmp_path / "other", tmp_path / "out", "unsupported")
    assert f"is {name}" in message or name in message.partition(":")[0]


@pytest.mark.parametrize(
    "key, name",
    [
        ("transformer.position_embeddings.weight", "GLM-10B"),
        ("mixins.block_position_embedding.block_position_embeddings.weight", "GLM-10B"),
        ("mixins.chatglm-final.lm_head.weight", "ChatGLM-6B"),
        ("mixins.lm.lm_head.weight", "CogVLM"),
        ("mixins.adapter.weight", "mixin 'adapter'"),
        ("lm_head.weight", "ChatGLM-6B"),
        ("language_model.transformer.layers.0.weight", "CodeGeeX"),
    ],
)
def test_other_checkpoints_are_refused_by_their_tensors(damaged: Path, key: str, name: str, tmp_path: Path) -> None:
    edit(damaged, 0, lambda tensors: tensors.update({key: torch.zeros(8, 4).half()}))
    assert name in refused(damaged, tmp_path / "out", "unsupported")


def test_another_model_is_recognised_whatever_else_its_file_holds(tmp_path: Path) -> None:
    """Megatron's nested dictionaries, classes of a trainer, a checkpoint without "module"."""
    source = sat_files.write(tmp_path / "source", [{}])
    nested = {"language_model": {"embedding": {"word_embeddings": {"weight": torch.zeros(8, 4)}}}}
    for content in ({"module": nested}, nested, {"module": nested, "optimizer": Attack(tmp_path / "marker")}):
        torch.save(content, sat_files.rank_file(source, 0))
        assert "CodeGeeX" in refused(source, tmp_path / "out", "unsupported")
    assert not (tmp_path / "marker").exists()
    torch.save({"optimizer": {"state": {}}}, sat_files.rank_file(source, 0))
    assert 'no "module"' in refused(source, tmp_path / "out")


def test_a_feed_forward_layer_without_a_gate_is_another_models(whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    tensors = sat_files.split(whole, 1)[0]
    for name in tensors:
        if "dense_h_to_4h" in name:
            tensors[name] = tensors[name][: sat_files.INNER].clone()
    source = sat_files.write(tmp_path / "source", [tensors])
    assert "GLM-10B" in refused(source, tmp_path / "out", "unsupported")


def test_a_sat_folder_says_what_model_it_is(damaged: Path, tmp_path: Path) -> None:
    path = damaged / "model_config.json"
    for kind, name in (("ChatGLMModel", "ChatGLM-6B"), ("CogVLMModel", "CogVLM"), ("GPT2Model", "GPT2Model")):
        path.write_text(json.dumps({"model_class": kind}))
        assert name in refused(damaged, tmp_path / "out", "unsupported")
        assert name in refused(damaged / "100", tmp_path / "out", "unsupported")
    path.write_text(json.dumps({"model_class": "GLM130B"}))
    convert(damaged, tmp_path / "out", tokenizer=None)


def test_a_model_folder_of_ours_needs_no_conversion(tiny_model_folder: Path, tmp_path: Path) -> None:
    assert "already" in refused(tiny_model_folder, tmp_path / "out", "bad_request")


# Going on with a conversion that was ended

KILLED = """
import os, signal, sys
from pathlib import Path
from engine.glm.sat import convert

def report(what, done, total):
    if what == "writes model-00003-of-00004.safetensors":
        os.kill(os.getpid(), signal.SIGKILL)

convert(Path(sys.argv[1]), Path(sys.argv[2]), tokenizer=None, shard_size=1000, report=report)
"""


def killed(source: Path, out: Path) -> None:
    """A conversion that ended in the middle of its third file of four."""
    ended = subprocess.run([sys.executable, "-c", KILLED, source, out], cwd=ROOT, timeout=120)
    assert ended.returncode == -signal.SIGKILL
    assert not (out / "config.json").exists() and not (out / "model-00003-of-00004.safetensors").exists()


def again(source: Path, out: Path, **options: int) -> tuple[Written, list[str], str]:
    """What the next run does, and what it tells."""
    steps: list[str] = []
    told: list[str] = []
    options = {"shard_size": 1000, **options}
    made = convert(source, out, tokenizer=None, report=lambda what, *_: steps.append(what), tell=told.append, **options)
    return made, list(dict.fromkeys(steps)), " ".join(told)


def test_a_killed_conversion_goes_on(two_ranks: Path, tmp_path: Path) -> None:
    killed(two_ranks, tmp_path / "out")
    made, steps, told = again(two_ranks, tmp_path / "out")
    assert "2 of 4" in told and made.resumed == 2
    assert [step.split()[0] for step in steps] == ["checks", "checks", "writes", "writes"]
    straight = convert(two_ranks, tmp_path / "straight", tokenizer=None, shard_size=1000)
    assert made.sha256 == straight.sha256 == weights_hash(made.folder)
    names = {path.name for path in straight.folder.iterdir()}
    assert {path.name for path in made.folder.iterdir()} == names
    for name in names:
        assert (made.folder / name).read_bytes() == (straight.folder / name).read_bytes()


def test_a_finished_file_that_changed_is_written_again(two_ranks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed(two_ranks, out)
    path = out / "model-00002-of-00004.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    made, steps, _ = again(two_ranks, out)
    assert "writes model-00002-of-00004.safetensors" in steps and made.resumed == 1
    assert made.sha256 == convert(two_ranks, tmp_path / "straight", tokenizer=None, shard_size=1000).sha256


def test_another_source_or_other_options_start_over(damaged: Path, whole: dict, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed(damaged, out)
    edit(damaged, 1, lambda tensors: tensors.update({QKV: tensors[QKV] + 1}))
    made, steps, told = again(damaged, out, shard_size=10**9)
    assert "starts over" in told and made.resumed == 0
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors"}
    assert not torch.equal(tensors_of(out)[QKV.removeprefix("transformer.")], whole[QKV])


def test_other_contents_of_the_folder_are_left_alone(two_ranks: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(GLMError, match="isn't empty"):
        convert(two_ranks, tmp_path, tokenizer=None)
    with pytest.raises(GLMError, match="holds a model already"):
        convert(two_ranks, tiny_model_folder, tokenizer=None)
    with pytest.raises(GLMError, match="is a file"):
        convert(two_ranks, tmp_path / "notes.txt", tokenizer=None)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_too_little_room_is_said_before_writing(
    two_ranks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    message = refused(two_ranks, tmp_path / "out", "bad_request")
    assert "needs 1" in message and "1000 B free" in message
    assert not list((tmp_path / "out").glob("*.safetensors"))


# Memory

MEASURED = """
import sys
from pathlib import Path
from engine.glm.sat import convert

convert(Path(sys.argv[1]), Path(sys.argv[2]), tokenizer=None, heads=16)
lines = Path("/proc/self/status").read_text().splitlines()
print(next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")))
"""


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """At most 1.2 times the largest tensor and 1 GB, the process and all; of 750 MB of weights in two ranks."""
    width, inner = 1024, 73_728
    source = tmp_path / "source"
    whole = sat_files.whole_tensors(1, 8, 4, 8)
    shapes = {
        "word_embeddings": (2 * inner, width),
        "dense_h_to_4h": (2 * inner, width),
        "dense_4h_to_h": (width, inner),
    }
    tensors = {}
    for name, tensor in whole.items():
        shape = next((shape for part, shape in shapes.items() if f"{part}.weight" in name), None)
        if shape is None:  # of 8 columns here: 2 * 4 rows of the first projection, else multiples of 8
            rows = 2 * inner if "dense_h_to_4h" in name else tensor.shape[0] // 8 * width
            shape = (rows, width)[: tensor.dim()]
        tensors[name] = torch.zeros(shape, dtype=torch.float16)
    largest = max(tensor.nbytes for tensor in tensors.values())
    assert largest > 300e6
    sat_files.write(source, sat_files.split(tensors, 2, heads=None))
    ran = subprocess.run(
        [sys.executable, "-c", MEASURED, source, tmp_path / "out"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 1.2 * largest + 1e9
    assert int(ran.stdout) < 0.6e9  # far below: blocks of rows, not tensors
    shutil.rmtree(tmp_path / "out")
    shutil.rmtree(source)


# The command


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    status = command.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without icetk's vocabulary."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home" / ".icetk_models"


def test_the_command(
    two_ranks: Path, vocabulary_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], nowhere: Path
) -> None:
    out = tmp_path / "out"
    status, printed, _ = run(capsys, "--input", two_ranks, "--out", out, "--tokenizer", vocabulary_file, "--name", "x")
    assert status == 0
    assert weights_hash(out) in printed and "2 layers" in printed
    assert (out / "tokenizer.model").read_bytes() == vocabulary_file.read_bytes()
    assert Config.load(out).num_image_tokens == 0 and Config.load(out).name == "x"
    status, _, error = run(capsys, "--input", two_ranks, "--out", out, "--tokenizer", vocabulary_file)
    assert status == 2 and error.startswith("error: ") and "holds a model already" in error


def test_the_vocabulary_is_needed_found_or_left_out(
    two_ranks: Path, vocabulary_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], nowhere: Path
) -> None:
    out = tmp_path / "out"
    status, _, error = run(capsys, "--input", two_ranks, "--out", out)
    assert status == 2 and all(word in error for word in ("--tokenizer", ".icetk_models", "--no-tokenizer"))
    status, _, error = run(capsys, "--input", tmp_path / "absent", "--out", out)
    assert status == 2 and "absent" in error  # rather than that the vocabulary is missing
    status, printed, _ = run(capsys, "--input", two_ranks, "--out", out, "--no-tokenizer")
    assert status == 0 and "tokenizer.model" in printed and not (out / "tokenizer.model").exists()
    nowhere.mkdir(parents=True)
    shutil.copy(vocabulary_file, nowhere / "ice_text.model")
    status, _, error = run(capsys, "--input", two_ranks, "--out", tmp_path / "second")
    assert status == 2 and "21908 tokens" in error and "1920 rows" in error  # 20000 image tokens come before the text
    status, _, error = run(capsys, "--input", two_ranks, "--out", out, "--tokenizer", tmp_path / "none.model")
    assert status == 2 and "none.model" in error


def test_icetks_vocabulary(
    vocabulary_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], nowhere: Path
) -> None:
    """Twenty thousand image tokens belong to it, wherever it is."""
    tensors = sat_files.whole_tensors(layers=1, vocabulary=22_016)
    source = sat_files.write(tmp_path / "source", sat_files.split(tensors, 1))
    nowhere.mkdir(parents=True)
    shutil.copy(vocabulary_file, nowhere / "ice_text.model")
    status, _, error = run(capsys, "--input", source, "--out", tmp_path / "out")
    assert status == 0, error
    assert Config.load(tmp_path / "out").num_image_tokens == 20_000


def test_mistakes_in_the_commands_arguments(
    two_ranks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, word in (
        (["--shard-size", "many"], "'many' is not a size"),
        (["--positions", "0"], "positions must be at least 1"),
        (["--heads", "3"], "--heads is 3"),
    ):
        status, _, error = run(capsys, "--input", two_ranks, "--out", tmp_path / "out", "--no-tokenizer", *arguments)
        assert status == 2 and word in error
    assert not (tmp_path / "out").exists()


def test_progress_has_a_rate_and_an_estimate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    progress = Progress()
    for now in range(101):
        progress("writes a", 1_000_000 + now * (1 << 20), 1_000_000 + 100 * (1 << 20))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3  # one in thirty seconds: this is no terminal
    assert "1 MiB/s, 1:10 left" in lines[0] and "31%" in lines[0]


def test_a_hash_that_is_known_is_not_computed_again(two_ranks: Path, tmp_path: Path) -> None:
    made = convert(two_ranks, tmp_path / "out", tokenizer=None)
    config.remember_hash(made.folder, "f" * 64, remember_from=1)
    assert weights_hash(made.folder, remember_from=1) == "f" * 64
    assert weights_hash(made.folder) == made.sha256
    config.remember_hash(made.folder, made.sha256)  # smaller than what is worth remembering
    assert weights_hash(made.folder, remember_from=1) == "f" * 64


def test_looking_through_writes_nothing(two_ranks: Path) -> None:
    before = sorted(two_ranks.rglob("*"))
    assert sat.check(two_ranks).heads == sat_files.HEADS
    assert sorted(two_ranks.rglob("*")) == before
