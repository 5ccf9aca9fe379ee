"""`python -m engine export`: write a model folder as a SwissArmyTransformer checkpoint, for any number of ranks.

    python -m engine export --model glm-130b --out glm-130b-sat --tensor-parallel 8
    python -m engine export --model glm-130b --out glm-130b-int4 --tensor-parallel 4 --quantize int4

The tensors are those of GLM-130B's own tools/convert_tp.py, to the bit. Exit status: 0, 1 when the machine fails, 2 for a
mistake in the arguments or the model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from engine.commands.progress import Progress, with_progress
from engine.glm.config import Config, resolve_model
from engine.glm.size import format_size


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    options = _parser().parse_args(arguments)
    return with_progress(lambda progress: _export(options, progress), "Nothing was exported.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help='"embedded" or a model folder')
    add("--out", type=Path, required=True, metavar="FOLDER", help="the checkpoint to make: a new folder")
    add("--tensor-parallel", type=int, required=True, metavar="N", help="ranks, each with a file of its own")
    add("--quantize", choices=("int8", "int4"), help="default: as the weights are")
    add("--iteration", type=int, default=100, help="the number of the iteration's folder (default: 100)")
    return parser


def _export(options: argparse.Namespace, progress: Progress) -> int:
    folder = resolve_model(options.model)

    from engine.glm import sat_export

    made = sat_export.export(
        folder, options.out, options.tensor_parallel, options.quantize, options.iteration, report=progress
    )
    progress.end()
    if Config.load(folder).rotary_precision != "fp16":
        sys.stderr.write(
            "This model has rotary tables in fp32. The original code makes them in fp16: its logits differ.\n"
        )
    files = "file" if made.ranks == 1 else "files"
    sys.stdout.write(f"{made.folder}: {made.ranks} {files}, {format_size(made.nbytes)}\n")
    return 0
