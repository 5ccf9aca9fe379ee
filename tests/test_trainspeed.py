"""The benchmark of the trainer against a plain loop: its arguments, and (heavy) that it runs and its figures agree."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.test_training import ROOT

SMALL = ("--layers", "2", "--hidden", "64", "--inner", "96", "--vocabulary", "500", "--rows", "4", "--length", "64")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "engine", "trainspeed", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--layers", "0"), "--layers must be at least 1"),
        (("--length", "18"), "multiple of 4"),
        (("--hidden", "65"), "multiple of 4"),
        (("--rows", "x"), "invalid int"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], words: str) -> None:
    found = run(*arguments)
    assert found.returncode == 2 and words in found.stderr and "Traceback" not in found.stderr and not found.stdout


@pytest.mark.heavy
def test_it_compares_all_variants_in_one_run() -> None:
    found = run(*SMALL, "--steps", "2", "--rounds", "2", "--threads", "1", "--json")
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout)
    names = [variant["name"] for variant in report["variants"]]
    assert names == [
        "plain loop, all logits", "plain loop", "plain loop, compiled", "trainer", "trainer, compiled"
    ]  # fmt: skip
    assert all(0 < variant["peak_share"] < 1 and variant["tokens_per_second"] > 100 for variant in report["variants"])
