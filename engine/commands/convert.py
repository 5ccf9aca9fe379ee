"""`python -m engine convert`: make a model folder from GLM-130B's checkpoint, as it is or in its downloaded chunks.

    python -m engine convert --input glm-130b-sat --out glm-130b --tokenizer ice_text.model
    python -m engine convert --input downloads/glm-130b-sat.tar.part_* --out glm-130b

The chunks are read as they are: nothing is joined or extracted. Run it again to go on with a conversion that was ended.
Exit status: 0, 1 when the machine fails, 2 for a mistake in the arguments or the checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from engine.commands.progress import Progress, with_progress
from engine.errors import GLMError
from engine.glm.size import format_size, parse_size


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    options = _parser().parse_args(arguments)
    return with_progress(lambda progress: _convert(options, progress), "The same command goes on where this one was.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--input", type=Path, nargs="+", required=True, metavar="PATH", help="a SwissArmyTransformer folder (with latest), "
        "an iteration's folder, a tar archive, or its chunks: all of them, their folder, or their names' beginning")  # fmt: skip
    add("--out", type=Path, required=True, metavar="FOLDER", help="the model folder to make")
    vocabulary = parser.add_mutually_exclusive_group()
    vocabulary.add_argument("--tokenizer", type=Path, metavar="FILE", help="the vocabulary, ice_text.model (default: "
        "where the icetk package keeps it, ~/.icetk_models)")  # fmt: skip
    vocabulary.add_argument(
        "--no-tokenizer", action="store_true", help="make the folder without one: it can't be served yet"
    )
    add("--name", help="of the model (default: glm-130b for a checkpoint of its shape, else the folder's)")
    add("--heads", type=int, help="attention heads, where the checkpoint doesn't tell")
    add("--positions", type=int, default=2048, help="longest sequence in tokens (default: 2048)")
    add("--shard-size", default="4GB", metavar="SIZE", help="a larger model gets one file a layer (default: 4GB)")
    return parser


def _convert(options: argparse.Namespace, progress: Progress) -> int:
    shard_size = parse_size(options.shard_size)

    from engine.glm import sat

    tokenizer = options.tokenizer or (None if options.no_tokenizer else sat.icetk_vocabulary())
    if tokenizer is None and not options.no_tokenizer:
        sat.check(options.input, heads=options.heads)  # what is wrong with the checkpoint matters more
        message = (
            "The model's vocabulary is missing: give --tokenizer ice_text.model, or let the icetk package download it to "
            "~/.icetk_models. With --no-tokenizer the folder is made without one."
        )
        raise GLMError("model_not_found", message, field="tokenizer")
    made = sat.convert(
        options.input,
        options.out,
        tokenizer=tokenizer,
        name=options.name,
        heads=options.heads,
        positions=options.positions,
        shard_size=shard_size,
        report=progress,
        tell=lambda text: sys.stderr.write(f"{text}\n"),
    )
    progress.end()
    config = made.config
    kind = config.quantization.name if config.quantization else "fp16"
    sys.stdout.write(
        f"{made.folder}: {config.name}, {config.layers} layers, {config.heads} heads, {config.parameters():,} parameters in "
        f"{kind}, {format_size(made.nbytes)}\nsha256 {made.sha256}\n"
    )
    if tokenizer is None:
        sys.stdout.write(f"It can't be served until {made.folder / 'tokenizer.model'} is there.\n")
    return 0
