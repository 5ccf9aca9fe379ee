"""Whether a model fits a machine: the plan's figures against the real modules, a real process, and the server's refusal."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.commands import plan as command
from engine.glm import plan as planning
from engine.glm.config import PRESETS, Config
from engine.glm.memory import free_memory
from engine.glm.model import Layer
from engine.glm.parallel import Ranks
from engine.glm.plan import Machine, Wish

GIB = 1 << 30
GLM = PRESETS["glm-130b"]


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit status and report of the command."""
    status = command.main([*arguments, "--json"])
    shown = capsys.readouterr()
    assert shown.err == ""
    return status, json.loads(shown.out)


def gpus(number: int, size: int, *more: str) -> tuple[str, ...]:
    return ("--gpus", str(number), "--gpu-memory", f"{size}GiB", *more)


PROMISED = [  # what GLM-130B's own README says, and what it says doesn't
    (gpus(8, 40), True),
    (gpus(8, 32), False),
    (gpus(8, 32, "--offload", "host"), True),
    (gpus(8, 32, "--quantize", "int8"), True),
    (gpus(8, 24, "--quantize", "int8"), True),
    (gpus(4, 24, "--quantize", "int8"), False),
    (gpus(4, 24, "--quantize", "int4"), True),
    (gpus(8, 11, "--quantize", "int4"), True),
]


@pytest.mark.parametrize(("arguments", "fits"), PROMISED)
def test_what_the_original_promises(capsys, arguments: tuple[str, ...], fits: bool) -> None:
    status, report = ask(capsys, *arguments)
    assert (status, report["fits"]) == ((0, True) if fits else (1, False))
    assert report["precision"] == "fp16" and report["parameters"] == 128_697_794_560
    memory = report["memory_per_rank"]
    kinds = ("embedding", "layers", "cache", "pass", "process")
    assert sum(memory[kind] for kind in kinds) == memory["needed"]
    assert all(memory[kind] > 0 for kind in kinds)
    if not fits:
        assert memory["needed"] > memory["available"]
        assert report["choices"] and report["kv_tokens"] == report["requests"] == 0
        return
    assert memory["needed"] <= memory["available"] and report["choices"] == []
    assert report["requests"] >= 1 and report["requests"] <= report["kv_tokens"] // 2048
    rates = report["tokens_per_second"]
    assert 0 < rates["one_request"] <= rates["all_requests"]
