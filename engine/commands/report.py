"""`python -m engine report RUN`: what a training run looks like, while it goes on or at its end.

Writes training.html and training.png (loss, learning rate, gradient norm, speed) into the run folder, film_strip.html and
film_strip.md (the same prompts answered by each checkpoint), and beside the model evaluation.json (answers to the page's
examples, held-out questions answered exactly, measures of the rows in RUN/splits or of any others) and loss.png; prints the
answers and the scores. What the run has not got yet is left out. Exit status: 0, 1 when the machine fails, 2 for a mistake
in the arguments or the folder.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any, NoReturn

from engine.commands.ending import told
from engine.errors import GLMError

PARTS = ("plot", "answers", "held-out", "splits", "film-strip")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("engine.training").setLevel(logging.INFO)  # which checkpoint is asked, of perhaps many
    return told(lambda: _report(options))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m engine report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, help="a run folder of `python -m engine train`")
    add("--model", help='the model that is asked: a model folder, or "embedded" (default: RUN/model)')
    add("--parts", nargs="+", choices=PARTS, metavar="PART",
        help=f"only these of: {', '.join(PARTS)} (default: all that the run has something for)")  # fmt: skip
    add("--splits", type=Path, metavar="DIR", help="rows to measure on: JSON lines of documents, blanks or conversations, a "
        "file each (default: RUN/splits)")  # fmt: skip
    add("--prompts", type=Path, metavar="FILE", help="the film strip's: YAML or JSON, a list of texts or of {mode: chat or "
        "fill, text, wanted}")  # fmt: skip
    add(
        "--checkpoints",
        type=_count,
        metavar="N",
        help="at most so many in the film strip, evenly spread (default: all)",
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _report(options: argparse.Namespace) -> int:
    run: Path = options.run
    if not run.is_dir():
        raise GLMError("bad_data", f"There is no run folder {run}.", field="run")
    parts = _possible(options)
    if "film-strip" not in parts and (options.prompts or options.checkpoints):
        raise GLMError(
            "bad_request", "--prompts and --checkpoints are the film strip's, which is not made.", field="parts"
        )

    from engine.training.film_strip import PROMPTS, load_prompts

    prompts = load_prompts(options.prompts) if options.prompts else PROMPTS
    model = _model(options)
    if "plot" in parts:
        _plot(run, model)
    if {"answers", "held-out", "splits"} & parts:
        _evaluate(run, model, parts, _splits(options))
    if "film-strip" in parts:
        _film_strip(run, prompts, options.checkpoints)
    return 0


def _model(options: argparse.Namespace) -> Path:
    from engine.glm.config import resolve_model

    return resolve_model(options.model) if options.model else options.run / "model"


def _splits(options: argparse.Namespace) -> Path:
    from engine.training.splits import FOLDER

    return options.splits or options.run / FOLDER


def _possible(options: argparse.Namespace) -> set[str]:
    """The parts to make. GLMError bad_data for one that was asked for by name and lacks what it is made of."""
    from engine.training.curves import METRICS
    from engine.training.film_strip import checkpoints

    run, model = options.run, _model(options)
    no_model = None if (model / "config.json").is_file() else f"{run} has no model yet"
    lacking = {
        "plot": None if (run / METRICS).is_file() else f"{run} has no {METRICS}",
        "answers": no_model,
        "held-out": no_model or (None if (run / "held_out.jsonl").is_file() else f"{run} has no held_out.jsonl"),
        "splits": no_model or (None if any(_splits(options).glob("*.jsonl")) else f"{_splits(options)} has no rows"),
        "film-strip": None if checkpoints(run) else f"{run} has no checkpoints and no model yet",
    }
    lacking = {part: lacking[part] for part in options.parts or PARTS}
    if options.parts or all(lacking.values()):
        for part, reason in lacking.items():
            if reason is not None:
                raise GLMError("bad_data", f"{reason}: {part} can't be made.", field="run")
    for part, reason in lacking.items():
        if reason is not None:
            sys.stderr.write(f"{part}: left out, {reason}\n")
    return {part for part, reason in lacking.items() if reason is None}


def _plot(run: Path, model: Path) -> None:
    from engine.training import plot
    from engine.training.curves import METRICS, read
    from engine.training.panels import summary

    curves = read(run / METRICS)
    name = run.resolve().name
    sys.stdout.write(f"{summary(curves)}\n{plot.draw_page(curves, run / plot.PAGE, name)}\n")
    try:
        sys.stdout.write(f"{plot.draw_picture(curves, run / plot.PICTURE, name)}\n")
        if (model / "config.json").is_file():
            plot.draw_loss(curves, model / "loss.png")
    except GLMError as error:
        if error.kind != "unsupported":
            raise
        sys.stderr.write(f"{plot.PICTURE} was not drawn: {error}\n")  # the page needs no matplotlib


def _evaluate(run: Path, model: Path, parts: set[str], splits: Path) -> None:
    from engine.training.curves import METRICS, read
    from engine.training.report import report

    held_out = _rows(run / "held_out.jsonl") if "held-out" in parts else None
    found = asyncio.run(report(model, held_out, examples="answers" in parts))
    if (run / METRICS).is_file():
        found["training"] = read(run / METRICS).totals()
    for row in found.get("examples", ()):
        sys.stdout.write(f"{row['mode']:5} {row['question']}\n      {row['answer']}\n")
    if held_out is not None:
        held = found["held_out"]
        right = f"{held['right']} of {held['questions']} {held['by_language']}"
        sys.stdout.write(f"held-out questions answered exactly: {right}\n")
    if "splits" in parts:
        from engine.training.measures import measure, table
        from engine.training.splits import read_splits

        found["splits"] = asyncio.run(measure(model, read_splits(splits)))
        sys.stdout.write(table(found["splits"]))
    _write_evaluation(model / "evaluation.json", found)


def _write_evaluation(path: Path, found: dict[str, Any]) -> None:
    """What an earlier report found of the same weights, and was not asked now, stays."""
    from engine.training.whole_file import write_bytes

    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        before = {}
    except ValueError as error:
        raise GLMError("bad_data", f"{path} is not readable JSON: remove it.", field="model") from error
    if isinstance(before, dict) and before.get("weights_sha256") == found["weights_sha256"]:
        found = {**before, **found}
    write_bytes(path, (json.dumps(found, ensure_ascii=False, indent=1) + "\n").encode())


def _film_strip(run: Path, prompts: tuple, most: int | None) -> None:
    from engine.training.film_strip import shoot
    from engine.training.film_strip_page import write

    strip = asyncio.run(shoot(run, prompts, most))
    for path in write(strip, run):
        sys.stdout.write(f"{path}\n")


def _rows(path: Path) -> list[dict]:
    """GLMError bad_data, naming the line."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise GLMError("bad_data", f"{path}, line {number} is not JSON.", field="held_out") from error
        if not isinstance(row, dict) or not {"question", "answer", "lang"} <= row.keys():
            raise GLMError("bad_data", f"{path}, line {number} has no question, answer and lang.", field="held_out")
        rows.append(row)
    return rows
