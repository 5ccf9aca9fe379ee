"""`python -m engine ablate --out FOLDER`: GLM-130B's choices for stability, each left out in turn, at small scale.

    python -m engine ablate --out ablations --depths 8 24 --rates 1e-3 4e-3 --seeds 1 2

Trains every variant at every depth, learning rate and seed (results.jsonl; run again to resume, or with more of them to add
to it), and writes report.md, report.html and report.png: loss, gradient norms, spikes, and which published claim shows here by
stated rules. Exit status: 0, 2 for a mistake in the arguments or the data.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import NoReturn

from engine.commands.ending import told
from engine.errors import GLMError

_COUNTS = (
    ("steps", 120, 10, "of each run"), ("hidden", 64, 8, "width"), ("heads", 4, 1, ""), ("rows", 4, 1, "of a step"),
    ("length", 64, 16, "of a row, in tokens"), ("vocabulary", 512, 300, "trained on the data, of a new folder"),
    ("threads", 1, 1, "of the CPU"),
)  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    options = _parser().parse_args(arguments)
    return told(lambda: _ablate(options), "The same command goes on where this one was.")


def _ablate(options: argparse.Namespace) -> int:
    if options.hidden % options.heads or options.hidden // options.heads % 2:
        raise GLMError("bad_request", "--hidden / --heads must be an even whole number.", field="heads")
    if options.data is not None and not options.data.is_dir():
        raise GLMError("bad_data", f"There is no folder {options.data}.", field="data")

    import torch

    from engine.training.ablation_report import write
    from engine.training.ablation_run import Data, Run, Settings, run_all
    from engine.training.ablations import VARIANTS, find_variant

    variants = [find_variant(name).name for name in dict.fromkeys(options.variants or VARIANTS)]
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    data = Data(options.data, options.out, options.vocabulary)
    about = f"{data.about}; vocabulary {data.tokenizer.hash()[:12]}"
    settings = Settings(
        options.steps, options.rows, options.length, options.hidden, options.heads,
        data.tokenizer.vocabulary_size, about,
    )  # fmt: skip
    runs = [
        Run(variant, depth, rate, seed)
        for depth in dict.fromkeys(options.depths)
        for rate in dict.fromkeys(options.rates)
        for seed in dict.fromkeys(options.seeds)
        for variant in variants
    ]
    results = run_all(runs, settings, data, options.out, lambda line: _tell(line))
    for path in write(results, options.out):
        sys.stdout.write(f"{path}\n")
    return 0


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")


def _count(low: int):
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} on")
        return int(text)

    return parse


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a learning rate, above 0 and at most 1")
    return rate


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m engine ablate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="results and report; what it holds of the runs is not done again")
    add("--data", type=Path, help="folder of rows as the trainer reads them (default: a small invented language)")
    add("--variants", nargs="+", metavar="NAME", help="only these (default: all)")
    add("--depths", nargs="+", type=_count(1), default=[8, 24], metavar="LAYERS", help="default: 8 24")
    add("--rates", nargs="+", type=_rate, default=[1e-3, 4e-3], metavar="RATE", help="peaks (default: 1e-3 4e-3)")
    add("--seeds", nargs="+", type=_count(0), default=[1, 2], metavar="SEED", help="default: 1 2")
    for name, default, low, meaning in _COUNTS:
        add(f"--{name}", type=_count(low), default=default, help=f"{meaning} (default: {default})".strip())
    return parser
