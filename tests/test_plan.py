"""Whether a model fits a machine: the plan's figures against real modules and a real process, its words, and the server's no."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine.commands import plan as command
from engine.errors import GLMError
from engine.glm import checkpoint
from engine.glm import plan as planning
from engine.glm.config import PRESETS, Config
from engine.glm.layer_sources import form_of
from engine.glm.layer_stream import layer_size
from engine.glm.memory import free_memory
from engine.glm.model import GLM, Layer, initialise
from engine.glm.packed import pack
from engine.glm.parallel import SINGLE, Ranks
from engine.glm.plan import Machine, Plan, Wish
from engine.serving.cache import KeyValueCache, kept_dtype
from engine.serving.protocol import Options

ROOT = Path(__file__).resolve().parent.parent
GIB = 1 << 30
LARGE = PRESETS["glm-130b"]
KINDS = ("embedding", "layers", "waiting", "cache", "pass", "process")


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit status and report of the command."""
    status = command.main([*arguments, "--json"])
    shown = capsys.readouterr()
    assert shown.err == ""
    return status, json.loads(shown.out)


def gpus(number: int, size: int, *more: str) -> tuple[str, ...]:
    return ("--gpus", str(number), "--gpu-memory", f"{size}GiB", *more)


# What fits

PROMISED = [  # what GLM-130B's own README says, and what follows from it
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
    assert set(memory) == {*KINDS, "needed", "available"}
    assert sum(memory[kind] for kind in KINDS) == memory["needed"]
    assert (memory["needed"] <= memory["available"]) is fits
    rates = report["tokens_per_second"]
    if fits:
        assert report["choices"] == []
        assert 1 <= report["requests"] <= report["kv_tokens"] // 2048
        assert 0 < rates["one_request"] <= rates["all_requests"]
    else:
        assert report["choices"]
        assert report["requests"] == report["kv_tokens"] == rates["one_request"] == rates["all_requests"] == 0


def test_tokens_and_requests_are_what_is_free(capsys) -> None:
    _, report = ask(capsys, *gpus(8, 40))
    memory, token = report["memory_per_rank"], report["kv_bytes_per_token"]
    assert token == 2 * 70 * 12288 // 8 * 2  # keys and values of 70 layers, an eighth of them, in fp16
    assert memory["cache"] == 2048 * token
    assert report["kv_tokens"] == (memory["available"] - memory["needed"] + memory["cache"]) // token
    assert ask(capsys, *gpus(8, 40, "--slots", str(report["requests"])))[0] == 0
    assert ask(capsys, *gpus(8, 40, "--slots", str(report["requests"] + 1)))[0] == 1


def test_layers_that_stay_take_what_is_free(capsys) -> None:
    """With layers that wait there is always room for one more of them, so none is left for more requests."""
    arguments = gpus(8, 32, "--offload", "host", "--slots", "3")
    _, report = ask(capsys, *arguments)
    assert report["requests"] == 3 and report["kv_tokens"] == 3 * 2048
    assert 60 < report["layers_in_memory"] < 70
    memory = report["memory_per_rank"]
    assert memory["embedding"] + memory["layers"] == report["weights_budget"]
    for budget, count in (("12GiB", 3), ("4GiB", 3 + 8 * GIB // (2048 * report["kv_bytes_per_token"]))):
        _, limited = ask(capsys, *arguments, "--weights-budget", budget)
        assert limited["requests"] >= count and limited["layers_in_memory"] < report["layers_in_memory"]
        assert limited["weights_budget"] <= int(budget.removesuffix("GiB")) * GIB


def test_host_memory_is_counted(capsys) -> None:
    arguments = gpus(8, 32, "--offload", "host")
    _, report = ask(capsys, *arguments)
    # The layers that don't stay wait there, each tensor in page-locked memory of a power of two.
    waiting = 70 - report["layers_in_memory"]
    assert 0 < waiting < 70
    sizes = planning.layer_tensors(LARGE, 8, 2)
    assert report["host_memory"] == waiting * 8 * sum(1 << (size - 1).bit_length() for size in sizes)
    assert report["host_memory"] > waiting * 8 * sum(sizes)
    assert ask(capsys, *arguments, "--memory", "24GiB")[0] == 0
    status, refused = ask(capsys, *arguments, "--memory", "20GiB")
    assert status == 1
    assert [(one["quantize"], one["offload"]) for one in refused["choices"]] == [(None, "disk"), ("int8", "none")]


# What would fit


@pytest.mark.parametrize(
    "arguments",
    [
        gpus(8, 32),
        gpus(8, 40, "--slots", "64"),
        gpus(4, 24, "--quantize", "int8", "--memory", "200GiB"),
        gpus(8, 10, "--quantize", "int4", "--precision", "bf16"),
        gpus(1, 80, "--slots", "4"),
        gpus(7, 24, "--tensor-parallel", "4", "--quantize", "int8-g128"),
        ("--memory", "24GiB"),
        ("--memory", "100GiB", "--slots", "16"),
        ("--memory", "100GiB", "--quantize", "int8"),
        ("--memory", "64GiB", "--quantize", "int4", "--offload", "host", "--precision", "bf16"),
        ("--memory", "24GiB", "--offload", "disk", "--weights-budget", "64GiB", "--precision", "bf16"),
        ("--memory", "1GiB", "--model", "glm-330m", "--slots", "1000"),
    ],
)
def test_every_choice_fits_when_it_is_asked_for(capsys, arguments: tuple[str, ...]) -> None:
    status, report = ask(capsys, *arguments)
    assert status == 1 and report["choices"]
    kept = [part for part in ("--gpu-memory", "--memory", "--model") if part in arguments]
    fixed = [word for flag in kept for word in (flag, arguments[arguments.index(flag) + 1])]
    for choice in report["choices"]:
        asked = dict.fromkeys(("gpus", "precision", "quantize", "offload", "slots", "tensor_parallel"))
        said = [(f"--{name.replace('_', '-')}", choice[name]) for name in asked if choice[name] is not None]
        status, found = ask(capsys, *fixed, *(str(word) for pair in said for word in pair))
        assert status == 0
        assert found == choice | {"choices": []}
    command.main(list(arguments))
    lines = capsys.readouterr().out.split("what would fit:\n")[1].splitlines()
    assert len(lines) == len(report["choices"])
    assert len(set(lines)) == len(lines) and all(" --" in line.partition(":")[0] for line in lines)


def test_what_a_choice_takes_is_named(capsys) -> None:
    command.main([*gpus(2, 24, "--quantize", "int4")])
    host, more = capsys.readouterr().out.split("what would fit:\n")[1].splitlines()
    assert host.startswith("  --offload host: about ") and host.endswith(" GiB of host memory")
    assert more.startswith("  --gpus 4 --tensor-parallel 4: about ") and more.endswith(" tokens/s")


def test_the_error_of_the_server_says_how() -> None:
    machine, wish = Machine(0, 24 * GIB), Wish("fp32", slots=16)
    with pytest.raises(GLMError) as caught:
        planning.require(LARGE, machine, wish)
    assert caught.value.kind == "overloaded" and caught.value.limit == 24 * GIB
    lines = str(caught.value).splitlines()
    assert lines[0] == "glm-130b does not fit: a CPU with 24 GiB, fp32, 16 slots. It needs:"
    assert "  70 layers: 472.5 GiB" in lines and "  available: 24 GiB" in lines
    assert lines[lines.index("What would:") + 1].startswith("  --precision bf16 --offload disk --slots ")
    assert planning.require(PRESETS["glm-330m"], machine, wish).fits


# Counted as they are

SHAPES = [
    Config("square", 3, 64, 64, 4, 256, 64),
    Config("wide", 2, 128, 512, 2, 96, 64),
    Config("odd", 5, 96, 160, 6, 34, 128),
]
WEIGHTS = [None, "int8", "int4", "int8-g32", "int4-g32"]


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("quantize", WEIGHTS)
@pytest.mark.parametrize("config", SHAPES, ids=lambda config: config.name)
def test_weights_are_counted_as_they_are(config: Config, quantize: str | None, size: int) -> None:
    if quantize is not None and "-g" in quantize and (config.inner // 32) % size:
        with pytest.raises(GLMError, match="column groups"):
            planning.plan(config, Machine(0, GIB), Wish("fp16", quantize, size))
        return
    ranks = SINGLE if size == 1 else Ranks(1, size)
    quantized = config.quantized(quantize, size)
    for precision, dtype in (("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)):
        layer = Layer(quantized, 0, ranks, device="meta", dtype=dtype)
        pack(layer, dtype, torch.device("cpu"))
        form = form_of(layer.state_dict())
        found = planning.plan(config, Machine(0, GIB), Wish(precision, quantize, size, slots=3, tokens=20))
        assert found.layers == config.layers * sum(tensor.nbytes for tensor in layer.state_dict().values())
        whole = planning.plan(config, Machine(0, GIB), Wish(precision, quantize, size, "disk"))
        assert whole.resident == config.layers * layer_size(form), "each tensor at an aligned address"

        model = GLM(quantized, ranks=ranks, device="meta", dtype=dtype)
        ends = (*model.word_embeddings.parameters(), *model.final_layernorm.parameters())
        packed_copy = model.word_embeddings.weight.nbytes if precision == "fp32" else 0
        assert found.embedding == sum(tensor.nbytes for tensor in ends) + packed_copy
        heads, device = config.heads // size, torch.device("meta")
        cache = KeyValueCache(config.layers, 3, heads, 20, config.head_dim, kept_dtype(model, "auto"), device)
        assert found.cache == cache.keys.nbytes + cache.values.nbytes


def test_on_gpus_quantised_weights_are_as_they_are_stored() -> None:
    config = SHAPES[1].quantized("int4")
    layer = Layer(config, 0, SINGLE, device="meta", dtype=torch.bfloat16)
    stored = sum(tensor.nbytes for tensor in layer.state_dict().values())
    assert planning.plan(SHAPES[1], Machine(1, GIB), Wish("bf16", "int4")).layers == config.layers * stored


# More is more


@pytest.mark.parametrize("offload", ["none", "host", "disk"])
@pytest.mark.parametrize("quantize", [None, "int8", "int4", "int4-g128"])
@pytest.mark.parametrize("number", [0, 1, 8])
def test_more_memory_is_never_worse(number: int, quantize: str | None, offload: str) -> None:
    wish = Wish("fp16", quantize, number or 1, offload, slots=2)
    found = [planning.plan(LARGE, Machine(number, size * GIB), wish) for size in range(1, 700, 3)]
    fits = [one.fits for one in found]
    assert fits == sorted(fits) and fits[-1] and not fits[0]
    for less, more in zip(found, found[1:], strict=False):
        assert less.pinned <= more.pinned
        if less.fits:
            assert less.kv_tokens <= more.kv_tokens and less.requests <= more.requests
        assert less.needed <= less.available or not less.fits


def needed(wish: Wish, config: Config = LARGE, number: int = 0) -> int:
    return planning.plan(config, Machine(number, 4096 * GIB), wish).needed


@pytest.mark.parametrize("number", [0, 4])
@pytest.mark.parametrize("config", [LARGE, PRESETS["glm-330m"]], ids=lambda config: config.name)
def test_fewer_bits_shorter_texts_and_fewer_requests_need_less(config: Config, number: int) -> None:
    wish = Wish("fp32", tensor_parallel=number or 1)
    shorter = [replace(wish, quantize=kind) for kind in (None, "int8", "int4")]
    wishes = [replace(one, precision=precision) for one in shorter for precision in ("fp32", "fp16")]
    sizes = [needed(one, config, number) for one in wishes]
    assert sizes[0::2] == sorted(sizes[0::2], reverse=True) and sizes[1::2] == sorted(sizes[1::2], reverse=True)
    assert all(half < full for full, half in zip(sizes[0::2], sizes[1::2], strict=True))
    lengths = [needed(replace(wish, tokens=tokens), config, number) for tokens in (1, 2, 511, 512, 513, 1024)]
    assert lengths == sorted(set(lengths))
    requests = [needed(replace(wish, slots=slots), config, number) for slots in (None, 2, 3, 50)]
    assert requests == sorted(set(requests)) and requests[0] == needed(replace(wish, slots=1), config, number)


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--gpus", "8"), ("--gpus", "--gpu-memory")),
        (("--gpu-memory", "40GiB"), ("--gpus", "--gpu-memory")),
        (gpus(8, 40, "--tensor-parallel", "3"), ("--tensor-parallel", "3 ranks")),
        (gpus(8, 40, "--tensor-parallel", "16"), ("--tensor-parallel", "there are 8")),
        (gpus(8, 40, "--tensor-parallel", "0"), ("--tensor-parallel", "at least 1")),
        (("--tokens", "4096"), ("--tokens", "2048 positions")),
        (("--tokens", "0"), ("--tokens", "at least 1")),
        (("--slots", "0"), ("--slots", "at least 1")),
        (("--weights-budget", "4GiB"), ("--weights-budget", "--offload")),
        (("--offload", "disk", "--weights-budget", "4GiB"), ("--weights-budget", "two layers")),
        (("--gpus", "8", "--gpu-memory", "40XB"), ("--gpu-memory", "'40XB'", "12GiB")),
        (("--gpus", "8", "--gpu-memory", "40"), ("--gpu-memory", "40 bytes", "12GiB")),
        (("--gpus", "8", "--gpu-memory", "0"), ("--gpu-memory", "0 bytes")),
        (("--memory", "much"), ("--memory", "'much'")),
        (("--memory", "0"), ("--memory", "0 bytes")),
        (("--bandwidth", "fast"), ("--bandwidth", "'fast'")),
        (("--bandwidth", "0"), ("--bandwidth", "0 bytes")),
        (gpus(8, 32, "--offload", "host", "--link", "0"), ("--link", "0 bytes")),
        (("--offload", "disk", "--disk", "0"), ("--disk", "0 bytes")),
        (("--offload", "disk", "--weights-budget=-1GiB"), ("--weights-budget", "'-1GiB'")),
        (("--model", "/nowhere"), ("--model", "/nowhere")),
        (("--gpus", "-1"), ("--gpus", "at least 0")),
        (("--model", "glm-tiny", "--quantize", "int4-g128"), ("--quantize", "64 columns")),
        (("--hardware", "--gpus", "8"), ("--hardware", "--gpus")),
        (("--hardware", "--json"), ("--hardware", "--json")),
        (("--gpus", "eight"), ("--gpus", "'eight'")),
        (("--quantize", "int3"), ("--quantize", "'int3'")),
        (("--gpu", "8"), ("--gpu",)),
    ],
)
def test_mistakes(capsys, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    try:
        status = command.main(list(arguments))
    except SystemExit as error:  # argparse's own, after the usage
        status = error.code
    shown = capsys.readouterr()
    assert status == 2 and shown.out == ""
    usage, _, last = shown.err.removesuffix("\n").rpartition("\n")
    assert not usage or usage.startswith("usage: ")
    assert all(word in last for word in words), last


def test_a_model_that_is_quantised_already(capsys, tmp_path: Path) -> None:
    LARGE.quantized("int4-g128").save(tmp_path)
    status, report = ask(capsys, "--model", str(tmp_path), *gpus(8, 11, "--slots", "2"))
    assert status == 1 and report["quantize"] == "int4-g128"
    assert {choice["quantize"] for choice in report["choices"]} == {"int4-g128"}
    assert command.main(["--model", str(tmp_path), "--quantize", "int8"]) == 2
    assert capsys.readouterr().err == "--quantize: The weights are stored as int4-g128: they can't be made int8.\n"


def test_a_great_many_gpus_take_no_time(capsys) -> None:
    _, report = ask(capsys, "--gpus", "1000000000000", "--gpu-memory", "40GiB")
    assert report["tensor_parallel"] == 32  # 96 heads, 32768 inner columns, 150528 words


# The table


def test_the_table_of_common_machines(capsys) -> None:
    assert command.main(["--hardware"]) == 0
    table = capsys.readouterr().out
    assert table == command.hardware_table(LARGE)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert len({len(row) for row in rows}) == 1 and set("".join(rows[1])) <= set("-:")
    body = {(row[0], row[1]): row for row in rows[2:]}
    assert len(body) == len(rows) - 2
    for number, name, weights in (
        (8, "A100 40 GB", "fp16"),
        (8, "V100 32 GB", "fp16"),
        (8, "V100 32 GB", "int8"),
        (8, "RTX 3090 24 GB", "int8"),
        (4, "RTX 3090 24 GB", "int4"),
        (8, "RTX 2080 Ti 11 GB", "int4"),
    ):
        row = body[f"{number} x {name}", weights]
        more = [] if weights == "fp16" else ["--quantize", weights]
        more += ["--offload", "host"] if (name, weights) == ("V100 32 GB", "fp16") else []
        assert command.main([*gpus(number, int(name.split()[-2]), *more)]) == 0
        shown = capsys.readouterr().out
        needs, usable = row[3].split(" of ")
        assert needs in shown and usable in shown
        assert f"about {row[5]} tokens/s" in shown
        assert f" {row[4]} request" in shown
        assert ("host memory" in row[2]) is ("--offload" in more)


def test_the_table_of_another_model() -> None:
    table = command.hardware_table(PRESETS["glm-330m"])
    assert table.count("fp16") == len(command.HARDWARE)
    assert "does not fit" in command.hardware_table(replace(LARGE, layers=700))


# This machine's memory

MEMINFO = "MemTotal:       16000 kB\nMemFree:         1000 kB\nMemAvailable:    8000 kB\nHugePages_Total:       0\n"


def test_free_memory(tmp_path: Path) -> None:
    meminfo, groups, own = tmp_path / "meminfo", tmp_path / "groups", tmp_path / "own"
    meminfo.write_text(MEMINFO)

    def free() -> int:
        return free_memory(meminfo, groups, own)

    def limit(folder: Path, most: str, used: int, droppable: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {droppable}\nactive_file 7\n")

    everything = 8000 * 1024
    assert free() == everything, "no control groups at all"
    limit(groups, "max", 3000, 0)
    assert free() == everything, "one without a limit"
    limit(groups, "1000000", 300_000, 50_000)
    assert free() == 750_000, "a container sees its own group at the top"
    own.write_text("0::/jobs/one\n")
    assert free() == 750_000, "a path that is the host's"
    limit(groups / "jobs", "900000", 700_000, 0)
    assert free() == 200_000, "the group around this process's own"
    limit(groups / "jobs" / "one", "100000", 250_000, 0)
    assert free() == 0, "more than is allowed"
    limit(groups / "jobs" / "two", "1", 0, 0)
    limit(groups / "jobs" / "one", "100000000000", 0, 0)
    assert free() == 200_000, "another's doesn't matter, and a limit above all memory doesn't either"


def test_free_memory_within_version_1_groups(tmp_path: Path) -> None:
    meminfo, own = tmp_path / "meminfo", tmp_path / "own"
    meminfo.write_text(MEMINFO)
    own.write_text("9:name=systemd:/\n4:cpu,memory:/docker/abc\n0::/\n")
    for folder, most in ((tmp_path / "memory", 2**63 - 4096), (tmp_path / "memory" / "docker" / "abc", 600_000)):
        folder.mkdir(parents=True)
        (folder / "memory.limit_in_bytes").write_text(f"{most}\n")
        (folder / "memory.usage_in_bytes").write_text("500000\n")
        (folder / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 20000\n")
    assert free_memory(meminfo, tmp_path, own) == 120_000


def test_free_memory_where_the_system_does_not_say(tmp_path: Path) -> None:
    assert free_memory(tmp_path / "none", tmp_path, tmp_path / "none") >= free_memory() > 0


# The figures against a real process

CONFIG = Config("random", 6, 512, 1408, 8, 8192, 1024)
SLOTS = 4

PROCESS = """
import json, logging, pickle, sys
from pathlib import Path
from engine.glm.blanks import Prompt
from engine.serving import worker
from engine.serving.sampling import Sampler
from engine.serving.job import Ask
from engine.serving.work import Reading, Work

import torch

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)["VmHWM"].split()[0]) * 1024

options = pickle.loads(bytes.fromhex(sys.argv[1]))
before = peak()
runner, model = worker.load_runner(options)
config, slots = model.config, range(options.slots)
sampler = Sampler(config.vocabulary, [0], 1, model.device)
ask = Ask(0.9, 0, 0.9, 1.2, {5, 6}, [7], 0.3, 5)
length = config.positions - 8
ids = [number * 7919 % config.vocabulary for number in range(length)]
prompt = Prompt(tuple(ids), tuple(range(length)), length - 1, length - 1, 0)
for slot in slots:
    sampler(runner.follow(Work(readings=(Reading(prompt, slot),))), [ask])
for column in range(length, length + 4):
    places = tuple(column - slot % 2 for slot in slots)
    step = Work(slots=tuple(slots), tokens=tuple(slots), columns=places, positions=places)
    sampler(runner.follow(step), [ask] * options.slots)
print(json.dumps({"before": before, "peak": peak(), "pinned": getattr(model, "pinned", config.layers)}))
"""


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> Path:
    """90 MiB of weights in fp32, stored in fp16."""
    model = GLM(CONFIG)
    initialise(model, torch.Generator().manual_seed(1))
    folder = tmp_path_factory.mktemp("random")
    checkpoint.save(model, folder, tokenizer=vocabulary_file)
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize(
    ("precision", "quantize", "offload"),
    [("fp32", None, "none"), ("bf16", "int4", "none"), ("fp32", None, "disk"), ("fp32", None, "host")],
)
def test_a_real_process_needs_no_more(random_model: Path, precision: str, quantize: str | None, offload: str) -> None:
    """The peak of a process with all slots full is between 2/3 of what the plan says and all of it; the process itself, most
    of it here, is rounded up by half for large vocabularies and for ranks. (getrusage's figure would begin with that of
    the process that starts this one.)"""
    machine, wish = Machine(0, 1024 << 20), Wish(precision, quantize, 1, offload, None, SLOTS, CONFIG.positions)
    found: Plan = planning.plan(CONFIG, machine, wish)
    if offload != "none":  # less than there is room for: most layers wait
        wish = replace(wish, weights_budget=60 << 20)
        found = planning.plan(CONFIG, machine, wish)
        assert 0 < found.pinned < CONFIG.layers
    options = Options(
        str(random_model), precision, SLOTS, 1, None, 512, 0.1, logging.WARNING,
        quantize=quantize, offload=offload, weights_budget=found.weights_budget,
    )  # fmt: skip
    shown = subprocess.run(
        [sys.executable, "-c", PROCESS, pickle.dumps(options).hex()],
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    report = json.loads(shown.stdout)
    assert report["peak"] <= found.needed <= 1.6 * report["peak"]
    assert report["pinned"] == found.pinned
    # What torch touches of its own libraries only when it computes is the process's; how much depends on the processor.
    grown = report["peak"] - report["before"] - (48 << 20)
    assert 0.5 * (found.needed - found.process) <= grown <= found.needed - found.process


# The server


@pytest.fixture(scope="module")
def too_large(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> Path:
    """A folder that says it is GLM-130B; there is no need to read its weights to see that they are too large."""
    folder = tmp_path_factory.mktemp("large")
    LARGE.save(folder)
    shutil.copy(vocabulary_file, folder / "tokenizer.model")
    save_file({"word_embeddings.weight": torch.zeros(1)}, folder / "model.safetensors")
    return folder


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    # So many requests at a time that no machine has room for them.
    command = [sys.executable, "-m", *arguments, "--device", "cpu", "--slots", "4096"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def is_refusal(text: str) -> bool:
    assert "Traceback" not in text
    assert "glm-130b does not fit: a CPU with " in text
    assert text.count("  70 layers: 472.5 GiB\n") == text.count("  available: ") == 1
    return "What would:\n  --precision bf16 --" in text or "Nothing near would." in text


def test_the_server_refuses_a_model_without_room(too_large: Path, tmp_path: Path) -> None:
    shown = run("app", "--port", "0", "--model", str(too_large), "--database", str(tmp_path / "glm.db"))
    assert shown.returncode == 2 and is_refusal(shown.stderr), shown.stderr


def test_generate_refuses_a_model_without_room(too_large: Path) -> None:
    shown = run("engine", "generate", "--model", str(too_large), "--input-source", "It is a [MASK].")
    assert shown.returncode == 1 and shown.stdout == "" and is_refusal(shown.stderr), shown.stderr
