"""`python -m engine plan`: does a model fit a machine, how many requests at a time, about how fast, and if not, what does.

    python -m engine plan --model glm-130b --gpus 8 --gpu-memory 40GiB --precision fp16
    python -m engine plan --model glm-130b --hardware        # a table of common machines

Memory is counted from the shapes; speed is an estimate from bandwidth, which `--bandwidth` and the two others set. Without
--gpus the plan is for this machine's CPU and memory. Exit status: 0 if it fits, 1 if not, 2 for a mistake in the arguments.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from engine.errors import GLMError
from engine.glm import plan as planning
from engine.glm.cache_precision import KV_CACHES
from engine.glm.config import PRESETS, SERVED_QUANTIZATIONS, Config, resolve_model
from engine.glm.memory import free_memory
from engine.glm.plan import GPU_USABLE, Machine, Plan, Wish, describe, flags, largest_split, rows_of
from engine.glm.size import format_size, parse_size

GIB = 1 << 30
SMALLEST = 1 << 20  # a smaller size is one without its unit
# Number, name, GiB, bytes a second (from the makers' data sheets), where layers wait. GLM-130B's own README has the first six.
HARDWARE = (
    (8, "A100 40 GB", 40, 1.555e12, "none"),
    (8, "V100 32 GB", 32, 0.9e12, "host"),
    (8, "V100 32 GB", 32, 0.9e12, "none"),
    (8, "RTX 3090 24 GB", 24, 0.936e12, "none"),
    (4, "RTX 3090 24 GB", 24, 0.936e12, "none"),
    (8, "RTX 2080 Ti 11 GB", 11, 0.616e12, "none"),
    (8, "A100 80 GB", 80, 2.039e12, "none"),
    (4, "H100 80 GB", 80, 3.35e12, "none"),
    (1, "H100 80 GB", 80, 3.35e12, "none"),
)
# What a card with so many GiB has at least, where --bandwidth isn't given.
_BANDWIDTHS = sorted({(size, rate) for _, _, size, rate, _ in HARDWARE})
_CPU_BANDWIDTH = 20e9


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        config = PRESETS[options.model] if options.model in PRESETS else Config.load(resolve_model(Path(options.model)))
        if options.hardware:
            _check_hardware(arguments)
            sys.stdout.write(hardware_table(config))
            return 0
        found = _plan(config, options)
        others = [] if found.fits else list(planning.choices(config, found.machine, found.wish))
    except GLMError as error:
        sys.stderr.write(f"{_with_flag(error, options)}\n")
        return 2
    if options.json:
        report = as_dict(found) | {"choices": [as_dict(other) for other in others]}
        sys.stdout.write(json.dumps(report, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(_text(found, others))
    return 0 if found.fits else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", default="glm-130b", help=f'{", ".join(PRESETS)}, "embedded" or a model folder (default: glm-130b)')
    add("--gpus", type=int, default=0, help="default: 0, the CPU computes")
    add("--gpu-memory", metavar="SIZE", help="of each GPU, as its maker says: 40GiB; 97%% of it are counted")
    add("--memory", metavar="SIZE", help="of the host, that is free (default: without --gpus what this machine has free, "
        "with them as much as it takes)")  # fmt: skip
    add("--precision", choices=sorted(planning.BYTES), help="default: fp16 on GPUs, fp32 without")
    add("--quantize", choices=SERVED_QUANTIZATIONS, help="default: as the weights are")
    add("--tensor-parallel", type=int, help="ranks (default: as many of the GPUs as the model can be split over)")
    add("--kv-cache", choices=KV_CACHES, default="auto", help="how keys and values are kept: full, as the arithmetic is; "
        "fp16; auto: fp16 with quantised weights in fp32")  # fmt: skip
    add("--offload", choices=("none", "host", "disk"), default="none", help="where layers wait that don't fit")
    add("--weights-budget", metavar="SIZE", help="memory of a rank for weights, with --offload (default: what is free)")
    add("--slots", type=int, help="requests at the same time that must fit (default: at least one)")
    add("--tokens", type=int, help="of each request, prompt and answer (default: 2048, or the model's positions)")
    add(
        "--bandwidth",
        metavar="SIZE",
        help="a second, of GPU memory, or of the host's without GPUs (default: by --gpu-memory; 20GB without GPUs)",
    )
    add("--link", metavar="SIZE", default="12GB", help="a second, between host and each GPU (default: 12GB)")
    add("--disk", metavar="SIZE", default="2GB", help="a second, of the disk (default: 2GB)")
    add("--hardware", action="store_true", help="a table of common machines instead; goes with --model alone")
    add("--json", action="store_true", help="one JSON object")
    return parser


def _check_hardware(arguments: list[str]) -> None:
    """GLMError bad_request for flags that the table would ignore."""
    given = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
    if ignored := sorted(given - {"--hardware", "--model"}):
        raise GLMError("bad_request", f"--hardware goes with --model alone, not with {ignored[0]}.", field="hardware")


def _with_flag(error: GLMError, options: argparse.Namespace) -> str:
    """The error's sentence with the flag that it is about in front, where it doesn't name that."""
    field = "quantize" if error.field == "group" and options.quantize else error.field
    flag = f"--{(field or '').replace('_', '-')}"
    return f"{flag}: {error}" if hasattr(options, field or "") and flag not in str(error) else str(error)


def _size(options: argparse.Namespace, name: str) -> int | None:
    """Bytes that a flag says; None if it isn't given. GLMError bad_request."""
    text = getattr(options, name)
    if text is None:
        return None
    try:
        size = parse_size(text)
    except GLMError as error:
        raise GLMError(error.kind, error.message, field=name) from error
    if size < SMALLEST:
        message = f"{text!r} is {size} bytes: write it with its unit, as 12GiB, 12GB or 800MiB."
        raise GLMError("bad_request", message, field=name, limit=SMALLEST)
    return size


def _plan(config: Config, options: argparse.Namespace) -> Plan:
    for name, least in (("gpus", 0), ("tensor_parallel", 1), ("slots", 1), ("tokens", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise GLMError("bad_request", f"must be at least {least}, not {value}.", field=name, limit=least)
    tokens = min(2048, config.positions) if options.tokens is None else options.tokens
    if tokens > config.positions:
        message = f"can't be above the {config.positions} positions of {config.name}."
        raise GLMError("bad_request", message, field="tokens", limit=config.positions)
    if options.weights_budget is not None and options.offload == "none":
        raise GLMError("bad_request", "--weights-budget needs --offload host or disk.", field="weights_budget")
    if bool(options.gpus) != (options.gpu_memory is not None):
        raise GLMError("bad_request", "--gpus and --gpu-memory belong together.", field="gpu_memory")
    sizes = ("memory", "gpu_memory", "weights_budget", "bandwidth", "link", "disk")
    host, memory, budget, bandwidth, link, disk = (_size(options, name) for name in sizes)
    assert link is not None and disk is not None
    if memory is not None:
        usable, rate = int(GPU_USABLE * memory), float(bandwidth or _bandwidth(memory))
        machine = Machine(options.gpus, usable, host, rate, link, disk, name=format_size(memory))
    else:
        machine = Machine(0, host or free_memory(), None, float(bandwidth or _CPU_BANDWIDTH), link, disk)
    wish = Wish(
        precision=options.precision or ("fp16" if options.gpus else "fp32"),
        quantize=options.quantize,
        tensor_parallel=options.tensor_parallel or largest_split(config, options.quantize, max(1, options.gpus)),
        offload=options.offload,
        weights_budget=budget,
        slots=options.slots,
        tokens=tokens,
        kv_cache=options.kv_cache,
    )
    return planning.plan(config, machine, wish)


def _bandwidth(memory: int) -> float:
    return next((rate for size, rate in _BANDWIDTHS if memory <= size * GIB), _BANDWIDTHS[-1][1])


def as_dict(found: Plan) -> dict[str, Any]:
    """What --json prints. Bytes; tokens a second. The kinds in memory_per_rank add up to `needed`."""
    return {
        "fits": found.fits,
        "how": describe(found),
        "model": found.config.name,
        "parameters": found.config.parameters(),
        "precision": found.wish.precision,
        "quantize": found.config.quantization.name if found.config.quantization else None,
        "gpus": found.machine.gpus,
        "tensor_parallel": found.wish.tensor_parallel,
        "offload": found.wish.offload,
        "weights_budget": found.weights_budget,
        "slots": found.wish.slots,
        "memory_per_rank": {
            "embedding": found.embedding,
            "layers": found.resident,
            "waiting": found.waiting,
            "cache": found.cache,
            "pass": found.workspace,
            "process": found.process,
            "needed": found.needed,
            "available": found.available,
        },
        "layers_in_memory": found.pinned,
        "host_memory": found.host,
        "disk": found.disk,
        "kv_bytes_per_token": found.cache_token,
        "kv_tokens": found.kv_tokens,
        "tokens_per_request": found.wish.tokens,
        "requests": found.requests,
        "tokens_per_second": {
            "one_request": found.tokens_per_second(1) if found.fits else 0.0,
            "all_requests": found.tokens_per_second(found.requests) if found.fits else 0.0,
        },
    }


def _text(found: Plan, others: list[Plan]) -> str:
    config, wish, machine = found.config, found.wish, found.machine
    lines = [
        f"{config.name}, {config.parameters():,} parameters: {describe(found)}",
        "it fits" if found.fits else "it does not fit",
        "",
        "of each rank:" if wish.tensor_parallel > 1 else "memory:",
        *(_line(name, size) for name, size in rows_of(found)),
    ]
    if found.host:
        known = f" of {format_size(machine.host)}" if machine.host is not None else ""
        lines.append(_line("host memory, for layers that wait", format_size(found.host)) + known)
    if found.disk:
        lines.append(_line("disk, for layers that wait", format_size(found.disk)))
    if found.fits:
        at_a_time = "1 request" if found.requests == 1 else f"{found.requests:,} requests"
        lines += ["", f"room for {found.kv_tokens:,} tokens at a time: {at_a_time} of {wish.tokens}"]
        speed = f"about {_speed(found, 1)}"
        if found.requests > 1:
            speed += f" for one request, {_speed(found, found.requests)} for all"
        lines.append(f"{speed} (an estimate from bandwidth)")
    else:
        lines += ["", "what would fit:" if others else "nothing near would fit"]
        lines += [f"  {_choice(other, found)}" for other in others]
    return "\n".join(lines) + "\n"


def _line(name: str, size: str) -> str:
    return f"  {name:<42}{size:>12}"


def _choice(other: Plan, found: Plan) -> str:
    """What to say instead, and what comes of it."""
    gpus = f"--gpus {other.machine.gpus} " if other.machine.gpus != found.machine.gpus else ""
    host = f", with {format_size(other.host)} of host memory" if other.host else ""
    return f"{gpus}{flags(other, found.wish)}: about {_speed(other, 1)}{host}"


def _speed(found: Plan, rows: int) -> str:
    rate = found.tokens_per_second(rows)
    return f"{_number(rate)} tokens/s" if rate >= 0.5 else f"{_number(1 / rate)} s a token"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def hardware_table(config: Config) -> str:
    """Common machines, in Markdown: the most exact weights that fit each, what that takes, and how fast it may be."""
    tokens = min(2048, config.positions)
    lines = [
        f"| machine | weights | layers wait in | memory of each GPU | requests of {tokens} tokens at a time "
        "| tokens/s of one, about | of all, about |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for gpus, name, size, bandwidth, offload in HARDWARE:
        machine = Machine(gpus, int(GPU_USABLE * size * GIB), None, bandwidth, name=name)
        for quantize in (None, "int8", "int4"):
            split = largest_split(config, quantize, gpus)
            wish = Wish("fp16", quantize, split, offload, tokens=tokens)
            found = planning.plan(config, machine, wish)
            if found.fits:
                lines.append(_row(found))
                break
        else:
            lines.append(f"| {gpus} x {name} | does not fit | | | | | |")
    return "\n".join(lines) + "\n"


def _row(found: Plan) -> str:
    quantization = found.config.quantization
    cells = (
        f"{found.machine.gpus} x {found.machine.name}",
        quantization.name if quantization is not None else found.wish.precision,
        f"host memory, {format_size(found.host)}" if found.host else "–",
        f"{format_size(found.needed)} of {format_size(found.available)}",
        f"{found.requests:,}",
        _number(found.tokens_per_second(1)),
        _number(found.tokens_per_second(found.requests)),
    )
    return f"| {' | '.join(cells)} |"
