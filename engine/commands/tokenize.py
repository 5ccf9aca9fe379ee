"""`python -m engine tokenize`: tokenise a recipe's documents once, before training, into files that are read as they are drawn.

    python -m engine tokenize RECIPE.yaml --data DIR --tokenizer RUN --out RUN/tokens

Training on them gives the same batches, begins at once, and keeps none of them in memory. Sources with conversations or
blanks are left as they are. Run it again to go on where a run was ended, or after a source or the vocabulary changed: what
fits already is kept. Exit status: 0, 1 when the machine fails, 2 for a mistake in recipe or data.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from engine.commands.progress import Progress, with_progress
from engine.errors import GLMError
from engine.glm.locked_folder import locked_folder


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    options = _parser().parse_args(arguments)
    return with_progress(lambda progress: _tokenize(options, progress), "The same command goes on where this one was.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine tokenize", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("recipe", type=Path, help="a YAML recipe; the sources of its stages are tokenised, by their options in it")
    add("--data", type=Path, required=True, metavar="DIR", help="folder of the sources that the recipe names")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the tokens, RUN/tokens say")
    add("--tokenizer", metavar="PATH", help='the vocabulary: a run folder, a model folder, "embedded", or a vocabulary '
        "file (default: that of the model that the recipe goes on from)")  # fmt: skip
    add("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: one a core)")
    return parser


def _tokenize(options: argparse.Namespace, progress: Progress) -> int:
    if options.workers < 1:
        raise GLMError("bad_request", f"--workers {options.workers}: at least 1.", field="workers")

    from engine.glm.tokenizer import Tokenizer
    from engine.training.recipe import Recipe
    from engine.training.row_files import RowFile
    from engine.training.source_options import SourceOptions
    from engine.training.sources import find_source
    from engine.training.token_writer import OtherRows, TokenWriter

    recipe = Recipe.load(options.recipe)
    tokenizer = Tokenizer.load(_vocabulary(options.tokenizer or recipe.initial))
    names = sorted({name for stage in recipe.stages for name in stage.sources})
    # Mistakes are told before the hours of work.
    parsed = {name: SourceOptions.parse(name, recipe.sources.get(name, {})) for name in names}
    files = {name: RowFile(find_source(options.data, name)) for name in names}
    before, total = 0, sum(file.size for file in files.values())
    with (
        locked_folder(options.out),
        TokenWriter(
            options.out,
            tokenizer,
            options.workers,
            report=lambda what, done: progress(what, before + done, total),
        ) as writer,
    ):
        for name in names:
            try:
                made = writer.write(name, files[name], parsed[name])
            except OtherRows as other:
                text = f"not tokenised: {other.place} has something else than a document"
            else:
                text = f"{made.rows:,} rows, {made.tokens:,} tokens" + (
                    f", {made.text_bytes / 1e6 / made.seconds:.1f} MB/s" if made.text_bytes else ""
                )
            before += files[name].size
            progress.end()
            sys.stdout.write(f"{name}: {text}\n")
            sys.stdout.flush()
    return 0


def _vocabulary(given: str | None) -> Path:
    from engine.glm.config import EMBEDDED, resolve_model

    if given is None:
        message = "Whose vocabulary? Give --tokenizer: a run folder, a model folder, or a vocabulary file."
        raise GLMError("model_not_found", message, field="tokenizer")
    return resolve_model(given) if given == EMBEDDED else Path(given)
