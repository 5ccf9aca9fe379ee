"""`python -m engine quantize`: store a model's weights in 8 or 4 bits.

    python -m engine quantize --model glm-130b --to int4 --tensor-parallel 4 --out glm-130b-int4
    python -m engine quantize --model embedded --to int4-g32 --out embedded-int4

The weights are those that serving with --quantize makes while it loads, to the bit; int8 and int4 are GLM-130B's own, one scale
for each row of a rank, and `-g32` and the like have one for so many columns. Embedding, biases and LayerNorms stay as they are.
Run it again to go on where a run was ended. Exit status: 0, 1 when the machine fails, 2 for a mistake in the arguments or
the model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from engine.commands.progress import Progress, with_progress
from engine.glm.config import QUANTIZATIONS, resolve_model
from engine.glm.size import format_size, parse_size


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    options = _parser().parse_args(arguments)
    return with_progress(lambda progress: _quantize(options, progress), "The same command goes on where this one was.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine quantize", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help='"embedded" or a model folder, its weights not quantised yet')
    add("--to", required=True, choices=QUANTIZATIONS, help="bits, and columns a scale (default: a rank's whole row)")
    add("--out", type=Path, required=True, metavar="FOLDER", help="the model folder to make")
    add("--tensor-parallel", type=int, default=1, metavar="N", help="ranks that it is to be served over (default: 1)")
    add("--shard-size", default="4GB", metavar="SIZE", help="a larger model gets one file a layer (default: 4GB)")
    return parser


def _quantize(options: argparse.Namespace, progress: Progress) -> int:
    shard_size = parse_size(options.shard_size)
    folder = resolve_model(options.model)

    from engine.glm.quantize_folder import quantize_folder

    made = quantize_folder(
        folder,
        options.out,
        options.to,
        tensor_parallel=options.tensor_parallel,
        shard_size=shard_size,
        report=progress,
        tell=lambda text: sys.stderr.write(f"{text}\n"),
    )
    progress.end()
    sys.stdout.write(
        f"{made.folder}: {made.config.name}, {made.config.layers} layers in {options.to}, {format_size(made.nbytes)}\n"
        f"sha256 {made.sha256}\n"
    )
    return 0
