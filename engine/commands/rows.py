"""`python -m engine rows`: what the trainer makes of rows, before anything is trained.

    python -m engine rows --model embedded --rows corrections.jsonl --length 128

Every row becomes one sequence or several, of what the model reads and what it is to answer; the answer alone is learnt. What is
printed is one JSON object: rows, sequences, tokens (of all), targets (that are learnt), longest, left_out ([{"reason", "rows",
"first"}]: rows that give nothing in so many tokens) and shown: the first ones, [{"row", "sequences": [{"reads", "answers",
"tokens"}], "left_out"}].
Exit status: 0, or 2 for a mistake in the arguments, the model or the rows.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from random import Random
from typing import Any

from engine.commands.ending import told
from engine.errors import GLMError
from engine.glm.blanks import Sample
from engine.glm.config import Config, resolve_model
from engine.glm.tokenizer import Tokenizer
from engine.training.objective import Objective, fitting_samples
from engine.training.sources import read_rows


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m engine rows", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, metavar="FOLDER", help='whose vocabulary and chat format: a folder, or "embedded"')
    add("--rows", type=Path, required=True, metavar="FILE", help="JSON lines in the trainer's forms")
    add("--length", type=int, metavar="TOKENS", help="of a sequence, at most (default: what the model takes)")
    add("--shown", type=int, default=20, metavar="N", help="rows that are shown (default: 20)")
    options = parser.parse_args(arguments)
    return told(lambda: _rows(options))


def _rows(options: argparse.Namespace) -> int:
    found = what_is_trained(resolve_model(options.model), options.rows, options.length, options.shown)
    json.dump(found, sys.stdout, ensure_ascii=False)
    sys.stdout.write("\n")
    return 0


def what_is_trained(folder: Path, rows: Path, length: int | None = None, most_shown: int = 20) -> dict[str, Any]:
    """The object that is printed. GLMError bad_data for a row that the trainer refuses, with its place."""
    config, tokenizer = Config.load(folder), Tokenizer.load(folder)
    length = min(length or config.positions, config.positions)
    count = sequences = tokens = targets = longest = 0
    left_out: dict[str, dict[str, Any]] = {}
    shown = []
    for row in read_rows(rows.parent, rows.name.removesuffix(".jsonl")):
        count += 1
        try:
            samples, reason = fitting_samples(row, config.chat, tokenizer, Objective(), length, Random(count))
        except GLMError as error:
            raise GLMError("bad_data", f"{rows.name}, row {count}: {error.message}", field=error.field) from error
        if reason is not None:
            entry = left_out.setdefault(reason, {"reason": reason, "rows": 0, "first": count})
            entry["rows"] += 1
        sequences += len(samples)
        tokens += sum(len(sample.ids) for sample in samples)
        targets += sum(target >= 0 for sample in samples for target in sample.targets)
        longest = max([longest, *(len(sample.ids) for sample in samples)])
        if len(shown) < most_shown:
            described = [_described(sample, tokenizer) for sample in samples]
            shown.append({"row": count, "sequences": described, "left_out": reason})
    return {
        "rows": count,
        "sequences": sequences,
        "tokens": tokens,
        "targets": targets,
        "longest": longest,
        "length": length,
        "left_out": list(left_out.values()),
        "shown": shown,
    }


def _described(sample: Sample, tokenizer: Tokenizer) -> dict[str, Any]:
    """As text, special tokens by their names; the end of the answer, which is learnt, too, isn't shown."""
    learnt = [target for target in sample.targets if target >= 0 and target not in tokenizer.end_ids]
    return {
        "reads": tokenizer.decode(sample.ids[: sample.context_length]),
        "answers": tokenizer.decode(learnt, first_of_text=False),
        "tokens": len(sample.ids),
    }
