"""From model folders to SwissArmyTransformer checkpoints of any number of ranks, bit for bit, and back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.commands import export as command
from engine.errors import GLMError
from engine.glm import sat_export
from engine.glm.config import Config, Quantization
from engine.glm.sat import convert
from engine.glm.sat_export import export
from tests import sat_files

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Config(
    "small",
    2,
    sat_files.HIDDEN,
    sat_files.INNER,
    sat_files.HEADS,
    sat_files.VOCABULARY,
    2048,
    rotary_precision="fp16",
)


@pytest.fixture(scope="module")
def whole() -> dict[str, torch.Tensor]:
    return sat_files.whole_tensors(seed=2)


@pytest.fixture(scope="module")
def folder(whole: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model") / "small", whole)


def model_folder(folder: Path, tensors: dict[str, torch.Tensor], config: Config = CONFIG) -> Path:
    folder.mkdir()
    save_file(
        {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}, folder / "model.safetensors"
    )
    config.save(folder)
    return folder


def assert_checkpoint(folder: Path, parts: list[dict[str, torch.Tensor]], iteration: str = "100") -> None:
    """The folder holds exactly these tensors, as torch reads them."""
    assert (folder / "latest").read_bytes() == iteration.encode()
    assert {path.name for path in folder.iterdir()} == {"latest", iteration}
    assert len(list((folder / iteration).iterdir())) == len(parts)
    for rank, expected in enumerate(parts):
        found = torch.load(sat_files.rank_file(folder, rank, iteration), weights_only=True, mmap=True)
        assert list(found) == ["module"]
        assert found["module"].keys() == expected.keys()
        for name, tensor in expected.items():
            same = found["module"][name]
            assert same.dtype == tensor.dtype and torch.equal(same, tensor), name
            assert same.is_contiguous() and same.data_ptr() % sat_export.ALIGNMENT == 0, name


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_plain_weights(folder: Path, whole: dict[str, torch.Tensor], ranks: int, tmp_path: Path) -> None:
    made = export(folder, tmp_path / "out", ranks)
    parts = sat_files.split(whole, ranks)
    assert_checkpoint(made.folder, parts)
    assert made.nbytes == sum(tensor.nbytes for part in parts for tensor in part.values())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (made.folder.stat().st_mode & 0o777) == 0o755


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_weights_are_quantised_after_the_split(
    folder: Path, whole: dict[str, torch.Tensor], ranks: int, bits: int, tmp_path: Path
) -> None:
    parts = sat_files.split(whole, ranks, bits)
    assert_checkpoint(export(folder, tmp_path / "out", ranks, f"int{bits}").folder, parts)
    # and back, and out again as it is stored
    back = convert(tmp_path / "out", tmp_path / "back", tokenizer=None)
    assert back.config.quantization == Quantization(bits, 0, shards=ranks)
    assert_checkpoint(export(back.folder, tmp_path / "again", ranks).folder, parts)
    assert_checkpoint(export(back.folder, tmp_path / "named", ranks, f"int{bits}").folder, parts)


@pytest.mark.parametrize("first, second", [(1, 4), (4, 2), (2, 1)])
def test_there_and_back(whole: dict[str, torch.Tensor], first: int, second: int, tmp_path: Path) -> None:
    """Through the model folder from one number of ranks to another."""
    source = sat_files.write(tmp_path / "source", sat_files.split(whole, first))
    made = convert(source, tmp_path / "model", tokenizer=None, shard_size=1)
    exported = export(made.folder, tmp_path / "out", second, iteration=49300)
    assert_checkpoint(exported.folder, sat_files.split(whole, second), "49300")
    once_more = convert(exported.folder, tmp_path / "more", tokenizer=None, name=made.config.name, shard_size=1)
    assert (once_more.sha256, once_more.config) == (made.sha256, made.config)


def test_equal_models_give_equal_files(folder: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        export(folder, tmp_path / name, 2)
    for rank in range(2):
        first, second = (sat_files.rank_file(tmp_path / name, rank).read_bytes() for name in ("first", "second"))
        assert first == second


def test_longer_numbers_are_rounded(whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    exact = {name: tensor.float() * 1.0001 for name, tensor in whole.items()}
    folder = model_folder(tmp_path / "model", exact)
    rounded = {name: tensor.half() for name, tensor in exact.items()}
    assert_checkpoint(export(folder, tmp_path / "out", 2).folder, sat_files.split(rounded, 2))


def test_quantised_whole_rows_can_be_split(folder: Path, tmp_path: Path) -> None:
    """Quantised in one part, every rank has the scale of the whole row: the numbers are the same."""
    export(folder, tmp_path / "one", 1, "int8")
    back = convert(tmp_path / "one", tmp_path / "model", tokenizer=None)
    made = export(back.folder, tmp_path / "two", 2)
    again = load_file(convert(made.folder, tmp_path / "again", tokenizer=None).folder / "model.safetensors")
    for name, tensor in load_file(back.folder / "model.safetensors").items():
        if tensor.shape == again[name].shape:
            assert torch.equal(again[name], tensor), name
        else:
            assert name.endswith(("attention.dense.weight_scale", "dense_4h_to_h.weight_scale"))
            assert torch.equal(again[name], tensor.expand(-1, 2))


def refused(folder: Path, out: Path, kind: str, *arguments) -> str:
    """The message; nothing may be left, not even half a checkpoint."""
    before = set(out.parent.iterdir())
    with pytest.raises(GLMError) as caught:
        export(folder, out, *arguments)
    assert caught.value.kind == kind, caught.value
    assert set(out.parent.iterdir()) == before
    return str(caught.value)


def test_what_the_format_can_not_express_is_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "heads = 4" in refused(folder, out, "unsupported", 8)
    assert "int8-g32" in refused(folder, out, "unsupported", 1, "int8-g32")
    export(folder, tmp_path / "four", 4, "int4")
    shards = convert(tmp_path / "four", tmp_path / "shards", tokenizer=None).folder
    assert "quantised in 4 parts" in refused(shards, out, "unsupported", 2)
    assert "stored as int4" in refused(shards, out, "unsupported", 4, "int8")
    grouped = shutil.copytree(folder, tmp_path / "grouped")
    replace(CONFIG, quantization=Quantization(4, 32)).save(grouped)
    assert "no groups of columns" in refused(grouped, out, "unsupported", 1)


def test_an_odd_number_of_columns_is_no_whole_number_of_bytes(tmp_path: Path) -> None:
    tensors = sat_files.whole_tensors(inner=6)
    folder = model_folder(tmp_path / "model", tensors, replace(CONFIG, inner=6))
    assert "odd number of columns" in refused(folder, tmp_path / "out", "unsupported", 2, "int4")
    export(folder, tmp_path / "out", 2, "int8")


@pytest.mark.parametrize(
    "name, tensor, words",
    [
        ("layers.1.mlp.dense_4h_to_h.bias", torch.full((64,), 1e6), "not finite"),
        ("layers.1.mlp.dense_4h_to_h.weight", torch.full((64, 96), float("nan")), "not finite"),
        ("layers.1.mlp.dense_4h_to_h.bias", torch.zeros(63), "as config.json asks for"),
        ("layers.1.mlp.dense_4h_to_h.bias", None, "lacks the tensor"),
        ("more", torch.zeros(1), "unexpected tensor more"),
    ],
)
def test_wrong_weights_are_named(
    folder: Path, name: str, tensor: torch.Tensor | None, words: str, tmp_path: Path
) -> None:
    tensors = load_file(folder / "model.safetensors")
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    wrong = model_folder(tmp_path / "model", tensors)
    for quantize in (None, "int8"):
        message = refused(wrong, tmp_path / "out", "bad_model", 2, quantize)
        assert words in message and name in message


def test_an_existing_folder_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    assert "is there already" in refused(folder, tmp_path / "out", "bad_request", 1)
    (tmp_path / "out" / "notes").unlink()
    export(folder, tmp_path / "out", 1)


KILLED = """
import os, signal, sys
from pathlib import Path
from engine.glm.sat_export import export

def report(what, done, total):
    if done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)

export(Path(sys.argv[1]), Path(sys.argv[2]), 2, report=report)
"""


def test_a_killed_export_leaves_no_checkpoint_and_is_done_anew(
    folder: Path, whole: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert subprocess.run([sys.executable, "-c", KILLED, folder, out], cwd=ROOT, timeout=120).returncode < 0
    assert not out.exists()
    export(folder, out, 2)
    assert_checkpoint(out, sat_files.split(whole, 2))
    assert os.listdir(tmp_path) == ["out"]


def test_too_little_room_is_said_before_writing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    assert "1000 B free" in refused(folder, tmp_path / "out", "bad_request", 1)


def test_the_command(
    folder: Path, whole: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(folder), "--out", str(tmp_path / "out"), "--tensor-parallel"]
    assert command.main([*arguments, "4", "--iteration", "7", "--quantize", "int4"]) == 0
    assert "4 files" in capsys.readouterr().out
    assert_checkpoint(tmp_path / "out", sat_files.split(whole, 4, 4), "7")
    for number, message in (("4", "is there already"), ("0", "at least 1"), ("3", "3 ranks")):
        assert (
            command.main([*arguments[:3], str(tmp_path / ("out" if number == "4" else "new")), arguments[4], number])
            == 2
        )
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and message in captured.err
    assert command.main(["--model", str(tmp_path / "none"), *arguments[2:], "1"]) == 2
    assert "There is no model in" in capsys.readouterr().err


def test_the_embedded_model(embedded: Path, tmp_path: Path) -> None:
    """What it knows of itself beyond GLM-130B's shape is lost, the weights are not."""
    export(embedded, tmp_path / "sat", 2)
    back = convert(tmp_path / "sat", tmp_path / "model", tokenizer=embedded / "tokenizer.model")
    expected = load_file(embedded / "model.safetensors")
    found = load_file(back.folder / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor.half()) for name, tensor in expected.items())
    original = Config.load(embedded)
    assert (back.config.heads, back.config.vocabulary) == (original.heads, original.vocabulary)
