"""`python -m engine trainspeed`: tokens a second of the trainer here, against a plain loop over the same model in one run.

    python -m engine trainspeed --layers 8 --hidden 384 --inner 1024 --vocabulary 12000 --rows 16 --length 256

One process, fp32, AdamW. Exit status: 0, 2 for a mistake in the arguments.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from engine.errors import GLMError


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        for name in ("layers", "hidden", "inner", "vocabulary", "rows", "length", "steps", "rounds"):
            if getattr(options, name) < 1:
                raise GLMError("bad_request", f"--{name} must be at least 1.", field=name, limit=1)
        if options.length < 16 or options.length % 4:
            raise GLMError("bad_request", "--length must be a multiple of 4, at least 16.", field="length", limit=16)
        if options.hidden % 4:
            raise GLMError("bad_request", "--hidden must be a multiple of 4.", field="hidden", limit=4)

        import torch

        from engine.training.speed import compare, shape

        if options.threads:
            torch.set_num_threads(options.threads)
        config = shape(options.layers, options.hidden, options.inner, options.vocabulary, options.length)
    except GLMError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        peak, found = compare(
            config, options.rows, options.steps, options.rounds, Path(folder), lambda line: _tell(line)
        )
    if options.json:
        sys.stdout.write(json.dumps({"peak_flops": peak, "variants": [asdict(one) for one in found]}) + "\n")
        return 0
    sys.stdout.write(
        f"{config.parameters():,} parameters, {options.rows} x {options.length} tokens a step, {torch.get_num_threads()} threads, "
        f"matmul peak {peak / 1e9:.0f} GFLOP/s\n\n| | tokens/s | of peak |\n|---|---:|---:|\n"
    )
    for one in found:
        sys.stdout.write(f"| {one.name} | {one.tokens_per_second:,.0f} | {one.peak_share:.0%} |\n")
    best = {one.name: one.tokens_per_second for one in found}
    sys.stdout.write(
        f"\ntrainer / plain loop: {best['trainer'] / best['plain loop']:.3f}; both compiled: "
        f"{best['trainer, compiled'] / best['plain loop, compiled']:.3f}\n"
    )
    return 0


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine trainspeed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    for name, default, meaning in (
        ("layers", 8, ""), ("hidden", 384, ""), ("inner", 1024, "of the gated feed-forward layer, one half"),
        ("vocabulary", 12000, ""), ("rows", 16, "of a step"), ("length", 256, "of a row"),
        ("steps", 4, "of a round"), ("rounds", 3, "the best one of each variant counts"),
    ):  # fmt: skip
        add(f"--{name}", type=int, default=default, help=f"{meaning} (default: {default})".strip())
    add("--threads", type=int, help="CPU threads (default: all cores)")
    add("--json", action="store_true", help="one JSON object")
    return parser
