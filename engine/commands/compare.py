"""`python -m engine compare`: what a model loses with its weights in fewer bits, as a table.

    python -m engine compare --model embedded --kinds int8 int4 int4-g32 --text held-out.txt --questions held_out.jsonl

Perplexity is a token's, on a text in UTF-8; "same tokens" says how often the most likely token there is that of the first row.
Questions are JSON lines, {"question", "answer"} for chat or {"text", "answers"} with blanks; they are asked with temperature 0,
and an answer counts if it is the right one word for word.
Exit status: 0, 1 when the machine fails, 2 for a mistake in the arguments, the model or the files.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from engine.commands.ending import told
from engine.errors import GLMError
from engine.glm.config import SERVED_QUANTIZATIONS, resolve_model
from engine.glm.size import format_size
from engine.serving.protocol import PRECISIONS


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    options = _parser().parse_args(arguments)
    return told(lambda: _compare(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help='"embedded" or a model folder')
    add("--kinds", nargs="*", default=[], choices=SERVED_QUANTIZATIONS, metavar="KIND", help="how to quantise its weights, beside "
        f"as they are: {', '.join(SERVED_QUANTIZATIONS)}")  # fmt: skip
    add("--precisions", nargs="+", default=["fp32"], choices=PRECISIONS, help="of the arithmetic (default: fp32)")
    add("--text", type=Path, metavar="FILE", help="to measure perplexity on")
    add("--questions", type=Path, metavar="FILE", help="to ask, as JSON lines")
    return parser


def _compare(options: argparse.Namespace) -> int:
    if options.text is None and options.questions is None:
        raise GLMError("bad_request", "Give --text, --questions, or both: there is nothing to measure.", field="text")
    folder = resolve_model(options.model)
    text = _read(options.text) if options.text else None
    questions = _rows(options.questions) if options.questions else []

    from engine.training.quality import compare

    header = "| weights | computing in | in memory | perplexity | same tokens | answered exactly |\n"
    header += "|---|---|---:|---:|---:|---:|\n"
    for found in compare(folder, [None, *options.kinds], options.precisions, text, questions):
        sys.stdout.write(header)
        header = ""
        perplexity = "" if found.perplexity is None else f"{found.perplexity:.4g}"
        agreement = "" if found.agreement is None else f"{found.agreement:.1%}"
        right = "" if found.right is None else f"{found.right} of {len(questions)}"
        sys.stdout.write(
            f"| {found.weights} | {found.precision} | {format_size(found.nbytes)} | {perplexity} | {agreement} | {right} |\n"
        )
        sys.stdout.flush()
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise GLMError("bad_data", f"{path} is not text in UTF-8.", field="text") from error


def _rows(path: Path) -> list[dict]:
    rows = []
    for number, line in enumerate(_read(path).splitlines(), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise GLMError("bad_data", f"{path}, line {number} is not JSON.", field="questions") from error
    if not rows:
        raise GLMError("bad_data", f"{path} has no questions.", field="questions")
    return rows
