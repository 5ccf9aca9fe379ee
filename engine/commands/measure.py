"""`python -m engine measure`: how well models do on rows that they were not trained on, side by side.

    python -m engine measure --models runs/ours/model embedded --rows corrections.jsonl --out measured.json

Texts are measured in bits per byte, blanks and conversations by the share of last answers that are right word for word, with
temperature 0, and by the perplexity of the right ones. `--general` are rows of another kind, to see what was forgotten: without it
some that come along, which the shipped model was never trained on. The result is one JSON object, in the order of the models:
{"models": [{"model", "weights_sha256", "rows": {NAME: {…}}, "general": {NAME: {…}}}]}.
Exit status: 0, 1 when the machine fails, 2 for a mistake in the arguments, the models or the rows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

from engine.commands.ending import told
from engine.errors import GLMError
from engine.glm.config import resolve_model, weights_hash


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    options = _parser().parse_args(arguments)
    return told(lambda: _measure(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine measure", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", nargs="+", required=True, metavar="FOLDER", help='model folders, or "embedded"')
    add("--rows", type=Path, nargs="*", default=[], metavar="FILE", help="JSON lines in the trainer's forms")
    add("--general", type=Path, metavar="FILE", help="general rows instead of those that come along")
    add(
        "--out", type=Path, metavar="FILE", help="where the result goes, whole or not at all (default: standard output)"
    )
    add("--threads", type=int, help="CPU threads (default: all cores)")
    return parser


def _measure(options: argparse.Namespace) -> int:
    import torch

    from engine.training.general import file_splits, general_splits
    from engine.training.measures import measure

    if options.threads:
        torch.set_num_threads(options.threads)
    rows: dict[str, list[dict]] = {}
    for path in options.rows:
        rows |= file_splits(path)
    general = file_splits(options.general) if options.general else general_splits()
    if twice := rows.keys() & general.keys():
        raise GLMError("bad_data", f"Two files are named {min(twice)}: give them different names.", field="rows")
    found = []
    for model in options.models:
        folder = resolve_model(model)
        sys.stderr.write(f"measuring {model}\n")
        sys.stderr.flush()
        measured = asyncio.run(measure(folder, rows | general))
        found.append(
            {
                "model": model,
                "weights_sha256": weights_hash(folder),
                "rows": {name: measured[name] for name in rows},
                "general": {name: measured[name] for name in general},
            }
        )
    text = json.dumps({"models": found}, ensure_ascii=False, indent=1) + "\n"
    if options.out is None:
        sys.stdout.write(text)
    else:
        new = options.out.with_name(f".{options.out.name}.new")
        new.write_text(text, encoding="utf-8")
        os.replace(new, options.out)
    return 0
