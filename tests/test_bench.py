"""`python -m engine bench`: what it prints is counted, nothing is left behind, and mistakes have names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.glm import native
from tests.command_line import call


def bench(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "engine", "bench", "--prompt", "3", "--new", "2", *arguments]
    if "--offload" in arguments and "--model" not in arguments:
        command += ["--folder", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("quantize", [None, "int8", "int4", "int4-g64"])
def test_streamed_random_layers(tmp_path: Path, quantize: str | None) -> None:
    kind = [] if quantize is None else ["--quantize", quantize]
    shown = bench(
        *("--preset", "glm-base", "--random-weights", "--offload", "disk", "--layers", "3", "--json", *kind),
        folder=tmp_path / "layers",
    )
    assert shown.returncode == 0, shown.stderr
    report = json.loads(shown.stdout)
    assert report["layers"] == report["distinct_layers"] == 3 and report["pinned_layers"] == 0
    assert report["quantize"] == quantize and report["precision"] == ("fp32" if quantize is None else "bf16")
    parameters = 4 * 768 * 768 + 3 * 768 * 2048  # of a layer's matrices
    stored = parameters * {None: 2, "int8": 1, "int4": 0.5, "int4-g64": 0.5}[quantize]
    assert [row["rows"] for row in report["rows"]] == [1, 16]
    for row in report["rows"]:
        assert row["seconds_a_step"] == pytest.approx(row["seconds_a_token"] * row["rows"])
        # Every layer once a step, whatever the number of rows; scales, biases and what lies around them beside it. Two
        # layers may have been on their way when the two steps began, or when they ended.
        assert 2 * stored <= row["read_bytes_a_step"] <= 4.6 * stored
    assert all(rate > 0 for rate in report["disk_bytes_per_second"])
    assert report["peak_memory"] > report["weights_memory"]
    assert not (tmp_path / "layers").exists()


def test_repeated_layers_are_said_to_be(tmp_path: Path) -> None:
    arguments = ("--preset", "glm-tiny", "--random-weights", "--offload", "disk", "--layers", "1", "--repeat-layers")
    shown = bench(*arguments, "--keep", "--batch", "2", folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "repeated: only 1 distinct layers" in shown.stdout
    kept = list(tmp_path.glob("*.weights"))
    assert len(kept) == 1
    made = kept[0].stat().st_mtime_ns
    assert bench(*arguments, "--keep", "--batch", "2", folder=tmp_path).returncode == 0
    assert kept[0].stat().st_mtime_ns == made


def test_a_model_folder_streamed(tmp_path: Path) -> None:
    for offload in ("host", "disk"):
        shown = bench("--model", "embedded", "--offload", offload, "--batch", "1", "--json", folder=tmp_path)
        assert shown.returncode == 0, shown.stderr
        report = json.loads(shown.stdout)
        assert report["weights"] == "stored"
        assert report["pinned_layers"] == 0


@pytest.mark.parametrize(
    ("what", "precisions"),
    [
        (("--model", "embedded"), ("fp32", "int4")),
        pytest.param(
            ("--preset", "glm-embedded", "--random-weights"), ("fp32", "int8", "int4"), marks=pytest.mark.heavy
        ),
    ],
)
def test_a_model_in_memory(tmp_path: Path, what: tuple[str, ...], precisions: tuple[str, ...]) -> None:
    mixed = ("--mixed", "--long-prompt", "200", "--gap-seconds", "0.001")
    shown = bench(*what, "--precision", ",".join(precisions), "--batch", "1,3", *mixed, "--json", folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    report = json.loads(shown.stdout)
    assert report["machine"]["flops"] > 1e9 and report["machine"]["bandwidth"] > 1e8
    assert [one["precision"] for one in report["precisions"]] == list(precisions)
    bytes_of = [one["weight_bytes"] for one in report["precisions"]]
    # The embedding of a checkpoint stays in its 16 bits where there are products of our own.
    embedding = 10048 * 320 if "--model" in what and native.has_products(torch.device("cpu")) else 0
    assert bytes_of == sorted(set(bytes_of), reverse=True)
    assert bytes_of[0] == 4 * report["parameters"] - 2 * embedding
    for one in report["precisions"]:
        assert [decode["batch"] for decode in one["decode"]] == [1, 3]
        for decode in one["decode"]:
            step = decode["batch"] / decode["tokens_per_second"]
            share = one["weight_bytes"] / step / report["machine"]["bandwidth"]
            assert decode["bandwidth_share"] == pytest.approx(share)
        load = one["mixed"]
        assert load["long_prompt"] == 200 and 0 < load["median_gap"] <= load["p95_gap"] <= load["longest_gap"]
        assert one["first_token_seconds"] >= one["prefill_seconds"] > 0 and one["peak_memory"] > one["weight_bytes"]


def test_a_table_for_people(tmp_path: Path) -> None:
    shown = bench("--model", "embedded", "--batch", "1,2", folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "matmul peak" in shown.stdout and "| tokens/s, batch 2 |" in shown.stdout
    head, line, row = shown.stdout.splitlines()[-3:]
    assert head.count("|") == line.count("|") == row.count("|")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "--model or --preset"),
        (("--model", "embedded", "--preset", "glm-tiny"), "--model or --preset"),
        (("--preset", "glm-tiny"), "--random-weights"),
        (("--model", "embedded", "--layers", "2"), "--layers"),
        (("--preset", "glm-tiny", "--random-weights", "--repeat-layers"), "--layers"),
        (("--preset", "glm-tiny", "--random-weights", "--layers", "3"), "from 1 to 2"),
        (("--preset", "glm-tiny", "--random-weights", "--layers", "1"), "--precision names them all"),
        (("--model", "embedded", "--quantize", "int4"), "--precision names them all"),
        (("--model", "embedded", "--precision", "fp32,int5"), "'int5'"),
        (("--model", "embedded", "--offload", "disk", "--precision", "int4"), "fp32, bf16, fp16"),
        (("--model", "embedded", "--prompt", "600"), "512 positions"),
        (("--model", "embedded", "--mixed"), "512 positions"),
        (("--model", "embedded", "--mixed", "--long-prompt", "0"), "--long-prompt must be"),
        (("--model", "embedded", "--gap-seconds", "-1"), "--gap-seconds"),
        (("--model", "embedded", "--offload", "disk", "--mixed"), "in memory"),
        (
            ("--preset", "glm-tiny", "--random-weights", "--mixed", "--long-prompt", "9"),
            "2048 tokens for the vocabulary",
        ),
        (("--model", "embedded", "--weights-budget", "1GiB"), "--offload"),
        (("--model", "embedded", "--offload", "disk", "--weights-budget", "much"), "12GiB"),
        (("--model", "embedded", "--offload", "disk", "--weights-budget", "1MiB"), "too small"),
        (("--model", "embedded", "--batch", "1,x"), "--batch"),
        (("--model", "embedded", "--batch", "0"), "--batch"),
        (("--model", "embedded", "--threads", "0"), "--threads"),
        (("--model", "/nowhere"), "no model"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: tuple[str, ...], word: str) -> None:
    place = ("--folder", tmp_path) if "--offload" in arguments and "--model" not in arguments else ()
    shown = call("engine", "bench", "--prompt", 3, "--new", 2, *arguments, *place)
    assert shown.returncode == 2 and word in shown.stderr and "Traceback" not in shown.stderr
    assert shown.stdout == ""
