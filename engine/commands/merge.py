"""`python -m engine merge`: make a plain model of an adapter and its base.

    python -m engine merge --model ours-adapter --out ours

Every adapted weight becomes W + (alpha / rank) B A, rounded to the type that the base's is stored in. The merged model can be
quantised, streamed and exported as any other. The base's weights must not be quantised. Run it again to go on where a run was
ended. Exit status: 0, 1 when the machine fails, 2 for a mistake in the arguments or the model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from engine.commands.progress import Progress, with_progress
from engine.glm.config import resolve_model
from engine.glm.size import format_size, parse_size


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    options = _parser().parse_args(arguments)
    return with_progress(lambda progress: _merge(options, progress), "The same command goes on where this one was.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine merge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="the folder of an adapter")
    add("--out", type=Path, required=True, metavar="FOLDER", help="the model folder to make")
    add("--shard-size", default="4GB", metavar="SIZE", help="a larger model gets one file a layer (default: 4GB)")
    return parser


def _merge(options: argparse.Namespace, progress: Progress) -> int:
    shard_size = parse_size(options.shard_size)
    folder = resolve_model(options.model)

    from engine.glm.merge_folder import merge_folder

    made = merge_folder(
        folder, options.out, shard_size=shard_size, report=progress, tell=lambda text: sys.stderr.write(f"{text}\n")
    )
    progress.end()
    sys.stdout.write(
        f"{made.folder}: {made.config.name}, {made.config.layers} layers, {format_size(made.nbytes)}\nsha256 {made.sha256}\n"
    )
    return 0
