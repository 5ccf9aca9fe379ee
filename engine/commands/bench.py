"""`python -m engine bench`: how fast a model reads prompts and decodes here, in memory or with its layers streamed.

    python -m engine bench --model embedded
    python -m engine bench --preset glm-330m --random-weights --batch 1,4,16 --precision fp32,bf16,int8,int4
    python -m engine bench --model FOLDER --offload disk --weights-budget 12GiB
    python -m engine bench --preset glm-130b --random-weights --quantize int4 --offload disk --layers 20 --repeat-layers

In memory: time to load and to read a prompt, tokens a second, and their shares of the memory's bandwidth and of the matmul
peak, both measured in the same run; each precision in a process of its own. Streamed: seconds a token and what is read for it;
the disk's own rate is measured on the same files in the same run. Random weights have a preset's real sizes. --layers N makes N
layers, each a file of its own; with --repeat-layers the model has all of its layers, and reads those N files over and over,
each time from the disk. Exit status: 0, 1 when the machine fails, 2 for a mistake in the arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.commands.ending import told
from engine.errors import GLMError
from engine.glm.config import PRESETS, QUANTIZATIONS, Config, resolve_model
from engine.glm.size import format_size, parse_size
from engine.serving.protocol import OFFLOADS, PRECISIONS

if TYPE_CHECKING:
    import torch

    from engine.glm.layer_stream import Form
    from engine.glm.offload import OffloadedGLM


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    options = _parser().parse_args(arguments)
    return told(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    _check(options)
    if options.offload == "none":
        from engine.commands import bench_speed

        sys.stdout.write(bench_speed.run(options))
        return 0
    with contextlib.ExitStack() as stack:
        report = _bench(options, stack)
    sys.stdout.write(json.dumps(report) + "\n" if options.json else _text(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", help='"embedded" or a model folder')
    add("--preset", choices=sorted(PRESETS), help="a model's shape, for --random-weights")
    add("--random-weights", action="store_true", help="layers of random numbers, written to --folder first")
    add("--layers", type=int, help="random layers to write (default: all of the preset)")
    add(
        "--repeat-layers",
        action="store_true",
        help="all layers of the preset, from the files of --layers over and over",
    )
    add("--folder", type=Path, help="where random or prepared layers are written (default: ./bench-layers, or the model's "
        "own folder)")  # fmt: skip
    add("--keep", action="store_true", help="leave random layers there, for the next run")
    add("--precision", metavar="NAMES", help="in memory: of fp32, bf16, fp16 and the kinds of --quantize, with commas (default: "
        "fp32); streamed: one of fp32, bf16, fp16, of the arithmetic (default: bf16 with --quantize, else fp32)")  # fmt: skip
    add("--quantize", choices=QUANTIZATIONS, help="of streamed layers (default: as the weights are)")
    add("--offload", choices=OFFLOADS, default="none", help="where layers beyond the budget wait (default: none do)")
    add("--weights-budget", metavar="SIZE", help="memory for weights, as 12GiB (default: the least that is possible)")
    add("--batch", default="1,16", help="batch sizes, with commas (default: 1,16)")
    add("--prompt", type=int, help="tokens of each row's prompt (default: 128 in memory, 8 streamed)")
    add("--new", type=int, help="timed steps for each batch size (default: 128 in memory, 4 streamed)")
    add("--mixed", action="store_true", help="in memory: requests of all kinds, and the gaps of running ones while a long prompt "
        "is read")  # fmt: skip
    add("--long-prompt", type=int, default=1500, help="tokens of that prompt (default: 1500)")
    add("--gap-seconds", type=float, default=0.1, help="as the server's option (default: 0.1)")
    add("--threads", type=int, help="CPU threads (default: all cores)")
    add("--json", action="store_true", help="one JSON object")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Mistakes that need no model to see. Makes numbers of --batch and --weights-budget."""
    if (options.model is None) == (options.preset is None):
        raise GLMError("bad_request", "Either --model or --preset must be given.", field="model")
    if options.random_weights != (options.preset is not None):
        message = "--random-weights needs a --preset, and a --preset has no other weights: give both or none."
        raise GLMError("bad_request", message, field="random_weights")
    if options.model is not None and (options.layers is not None or options.repeat_layers):
        raise GLMError("bad_request", "--layers and --repeat-layers are for --random-weights.", field="layers")
    if options.repeat_layers and options.layers is None:
        raise GLMError("bad_request", "--repeat-layers needs --layers, the number to repeat.", field="layers")
    most = PRESETS[options.preset].layers if options.preset else 1
    if options.layers is not None and not 1 <= options.layers <= most:
        raise GLMError("bad_request", f"--layers must be from 1 to {most}.", field="layers", limit=most)
    if options.weights_budget is not None and options.offload == "none":
        raise GLMError("bad_request", "--weights-budget needs --offload host or disk.", field="weights_budget")
    streamed = options.offload != "none"
    if streamed and options.precision not in (None, *PRECISIONS):
        raise GLMError(
            "bad_request", f"--precision of streamed layers is one of {', '.join(PRECISIONS)}.", field="precision"
        )
    if streamed and options.mixed:
        raise GLMError("bad_request", "--mixed is for models in memory.", field="mixed")
    if not 0 <= options.gap_seconds <= 3600:
        raise GLMError("bad_request", "--gap-seconds must be from 0 to 3600.", field="gap_seconds", limit=3600)
    if not streamed and (options.quantize or options.layers is not None or options.folder is not None):
        message = "--quantize, --layers and --folder are for streamed layers; in memory --precision names them all."
        raise GLMError("bad_request", message, field="offload")
    options.prompt = options.prompt if options.prompt is not None else 8 if streamed else 128
    options.new = options.new if options.new is not None else 4 if streamed else 128
    for name, least in (("prompt", 1), ("new", 1), ("threads", 1), ("long_prompt", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            flag = name.replace("_", "-")
            raise GLMError("bad_request", f"--{flag} must be at least {least}.", field=name, limit=least)
    if options.weights_budget is not None:
        options.weights_budget = parse_size(options.weights_budget)
    try:
        options.batch = [int(rows) for rows in options.batch.split(",")]
    except ValueError as error:
        raise GLMError("bad_request", "--batch takes numbers with commas, as 1,16.", field="batch") from error
    if min(options.batch) < 1:
        raise GLMError("bad_request", "--batch must be at least 1.", field="batch", limit=1)


def _bench(options: argparse.Namespace, stack: contextlib.ExitStack) -> dict[str, Any]:
    import torch

    from engine.glm.layer_stream import layer_size
    from engine.serving import bench

    if options.threads:
        torch.set_num_threads(options.threads)
    model, report = _random(options, stack) if options.random_weights else _stored(options)
    stack.callback(model.close)
    positions = options.prompt + options.new + 1
    if positions > model.config.positions:
        message = f"{positions} tokens are more than the {model.config.positions} positions of {model.config.name}."
        raise GLMError("bad_request", message, field="prompt", limit=model.config.positions)
    bench.check_memory(bench.cache_bytes(model, options.batch, options.prompt, options.new))
    report |= {
        "model": model.config.name,
        "quantize": model.config.quantization.name if model.config.quantization else None,
        "precision": options.precision,
        "offload": options.offload,
        "layers": len(model.layers),
        "pinned_layers": model.pinned,
        "layer_bytes": layer_size(model.form),
        "weights_memory": model.weights_memory,
        "threads": torch.get_num_threads(),
        "prompt": options.prompt,
        "steps": options.new,
    }
    rates = [bench.disk_rate(model.files)]
    _tell(f"{len(model.layers)} layers, {model.pinned} of them stay in memory")
    report["rows"] = []
    for rows in options.batch:
        found = bench.measure(model, rows, options.prompt, options.new)
        report["rows"].append({
            "rows": rows,
            "seconds_a_token": found.token_seconds,
            "seconds_a_step": found.step_seconds,
            "prompt_seconds": found.prompt_seconds,
            "read_bytes_a_step": found.read_bytes,
            "read_bytes_per_second": found.read_rate,
            "compute_share": found.compute_share,
        })  # fmt: skip
        _tell(f"{rows} rows: {found.token_seconds:.3g} s a token")
    rates.append(bench.disk_rate(model.files))
    return report | {"disk_bytes_per_second": rates, "peak_memory": bench.peak_memory()}


def _stored(options: argparse.Namespace) -> tuple[OffloadedGLM, dict[str, Any]]:
    from engine.glm import offload

    folder = resolve_model(options.model)
    model = offload.load(
        folder,
        dtype=_dtype(options),
        quantize=options.quantize,
        place=options.offload,
        budget=options.weights_budget,
        cache=options.folder,
    )
    return model, {"weights": "stored", "distinct_layers": len(model.layers)}


def _random(options: argparse.Namespace, stack: contextlib.ExitStack) -> tuple[OffloadedGLM, dict[str, Any]]:
    import torch

    from engine.glm import offload, random_layers
    from engine.glm.layer_sources import FileSource, HostSource, prepared_layers
    from engine.glm.layer_stream import layer_size
    from engine.serving import bench

    preset = PRESETS[options.preset]
    count = options.layers or preset.layers
    config = replace(preset, layers=preset.layers if options.repeat_layers else count).quantized(options.quantize)
    model = offload.OffloadedGLM(config, dtype=_dtype(options))
    size = layer_size(model.form)
    ends = 2 * config.vocabulary * config.hidden
    # Layers in host memory are there once, however often they are repeated.
    waiting = count * size if options.offload == "host" else 0
    loaded = offload.BUFFERS * size
    bench.check_memory(max(ends + loaded, min(options.weights_budget or 0, ends + config.layers * size)) + waiting)
    paths = _write(options, stack, config, model.form, count)
    random_layers.random_ends(model)
    layers = [number % count for number in range(config.layers)]
    files = FileSource(prepared_layers([paths[number] for number in layers]), model.form)
    if options.offload == "host":
        with contextlib.closing(files):
            tensors = [model.read_layer(files, number).tensors for number in range(count)]
        source = HostSource(lambda number: tensors[layers[number]], model.form, torch.device("cpu"))
        model.settle(source, options.weights_budget)
    else:
        model.settle(files, options.weights_budget)
    return model.eval(), {"weights": "random", "distinct_layers": count}


def _write(
    options: argparse.Namespace, stack: contextlib.ExitStack, config: Config, form: Form, count: int
) -> list[Path]:
    """The files of the random layers; without --keep they are removed when `stack` is left."""
    from engine.glm.random_layers import random_layers

    folder = options.folder or Path("bench-layers")
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if new and not options.keep:
        stack.callback(lambda: None if any(folder.iterdir()) else folder.rmdir())
    paths = []
    began, written = time.monotonic(), 0
    for path, now in random_layers(folder, config, form, count):
        paths.append(path)
        if not options.keep:
            stack.callback(path.unlink, missing_ok=True)
        if now:
            written += path.stat().st_size
            rate = written / (time.monotonic() - began)
            _tell(f"layer {len(paths)} of {count} written, {format_size(int(rate))}/s")
    return paths


def _dtype(options: argparse.Namespace) -> torch.dtype:
    from engine.glm.precision import DTYPES

    if options.precision is None:
        options.precision = "bf16" if options.quantize else "fp32"
    return DTYPES[options.precision]


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _text(report: dict[str, Any]) -> str:
    layers = (
        f"{report['layers']} layers of {format_size(report['layer_bytes'])}, {report['pinned_layers']} of them stay"
    )
    if report["distinct_layers"] < report["layers"]:
        layers += f"; repeated: only {report['distinct_layers']} distinct layers, read over and over"
    kind = report["quantize"] or "plain"
    lines = [
        f"{report['model']}, {report['weights']} weights, {kind}",
        f"computing in {report['precision']} on {report['threads']} threads",
        f"offload {report['offload']}: {layers}; weights in memory {format_size(report['weights_memory'])}",
        "",
        "| rows | s a token | s a step | read a step | GB/s read | waiting for layers | prompts read in |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in report["rows"]:
        lines.append(
            f"| {row['rows']} | {row['seconds_a_token']:.3g} | {row['seconds_a_step']:.3g} "
            f"| {format_size(row['read_bytes_a_step'])} | {row['read_bytes_per_second'] / 1e9:.2f} "
            f"| {1 - row['compute_share']:.0%} | {row['prompt_seconds']:.3g} s |"
        )
    before, after = (rate / 1e9 for rate in report["disk_bytes_per_second"])
    disk = (
        f"the disk alone reads these files at {before:.2f} GB/s before and {after:.2f} GB/s after; " if before else ""
    )
    return "\n".join([*lines, "", f"{disk}peak memory {format_size(report['peak_memory'])}"]) + "\n"
