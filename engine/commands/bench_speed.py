"""The part of `python -m engine bench` for models in memory: each precision in a process of its own, then a table."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING

from engine.errors import GLMError
from engine.glm.allocator import with_large_pages
from engine.glm.config import PRESETS, SERVED_QUANTIZATIONS, Config, resolve_model
from engine.glm.size import format_size
from engine.serving.protocol import PRECISIONS

if TYPE_CHECKING:
    from engine.glm.machine import Machine
    from engine.serving.speed import Speed

PRECISION_NAMES = (*PRECISIONS, *SERVED_QUANTIZATIONS)


def run(options: argparse.Namespace) -> str:
    """What is to be printed. GLMError: those of speed.load; overloaded."""
    names = (options.precision or "fp32").split(",")
    if unknown := [name for name in names if name not in PRECISION_NAMES]:
        message = f"--precision takes {', '.join(PRECISION_NAMES)}, with commas, not {unknown[0]!r}."
        raise GLMError("bad_request", message, field="precision")
    config = PRESETS[options.preset] if options.preset else Config.load(resolve_model(options.model))
    room = max(options.prompt + options.new, options.long_prompt if options.mixed else 0) + 2
    if room > config.positions:
        message = f"{room} tokens are more than the {config.positions} positions of {config.name}."
        raise GLMError("bad_request", message, field="prompt", limit=config.positions)

    import torch

    from engine.glm.machine import measure_machine
    from engine.serving.speed import measure
    from engine.serving.worker import choose_device

    threads = options.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    machine = measure_machine(choose_device(0, 1))
    found = []
    os.environ.update(with_large_pages(os.environ))  # for the processes to come, as a worker has it
    for name in names:
        sys.stderr.write(f"measuring {name}\n")
        mixed = (max(options.batch), options.long_prompt, options.gap_seconds) if options.mixed else None
        arguments = (
            options.preset,
            options.model,
            name,
            options.prompt,
            options.new,
            options.batch,
            threads,
            machine,
            mixed,
        )
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            found.append(process.submit(measure, *arguments).result())
    if options.json:
        report = {"model": config.name, "parameters": config.parameters(), "prompt": options.prompt, "new": options.new}
        return json.dumps(report | {"machine": asdict(machine), "precisions": [asdict(one) for one in found]}) + "\n"
    return _table(config, options, machine, found)


def _table(config: Config, options: argparse.Namespace, machine: Machine, found: list[Speed]) -> str:
    kind = "random weights" if options.random_weights else options.model
    head = ["precision", "weights", "load", f"prefill of {options.prompt}", "of peak", "first token"]
    for batch in options.batch:
        head += [f"tokens/s, batch {batch}", "of bandwidth"]
    lines = [
        f"{config.name}, {config.parameters():,} parameters, {kind}; {machine.threads} threads, matmul peak "
        f"{machine.flops / 1e9:.0f} GFLOP/s (fp32), memory read at {machine.bandwidth / 1e9:.1f} GB/s",
        "",
        f"| {' | '.join([*head, 'peak memory'])} |",
        f"|---|{'---:|' * len(head)}",
    ]
    for one in found:
        row = [one.precision, format_size(one.weight_bytes), f"{one.load_seconds:.1f} s"]
        row += [f"{1000 * one.prefill_seconds:.0f} ms", f"{one.peak_share:.0%}"]
        row += [f"{1000 * one.first_token_seconds:.0f} ms"]
        for decode in one.decode:
            row += [f"{decode.tokens_per_second:.1f}", f"{decode.bandwidth_share:.0%}"]
        lines.append(f"| {' | '.join([*row, format_size(one.peak_memory)])} |")
    lines += [f"\n{_mixed(one, max(options.batch))}" for one in found if one.mixed is not None]
    return "\n".join(lines) + "\n"


def _mixed(one: Speed, batch: int) -> str:
    mixed = one.mixed
    assert mixed is not None
    gaps = [round(1000 * gap) for gap in (mixed.median_gap, mixed.p95_gap, mixed.longest_gap)]
    return (
        f"{one.precision}, {batch} requests of all kinds at a time: {mixed.mixed_tokens_per_second:.1f} tokens/s, "
        f"{mixed.share:.0%} of decoding alone ({mixed.steady_tokens_per_second:.1f}). While a prompt of {mixed.long_prompt} "
        f"tokens is read, in {mixed.long_seconds:.2f} s (alone {mixed.long_alone_seconds:.2f} s), the others wait {gaps[0]} ms "
        f"for a token (median; 95%: {gaps[1]} ms, longest: {gaps[2]} ms)."
    )
