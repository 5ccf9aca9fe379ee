"""`python -m engine train RECIPE.yaml --data DIR --out DIR`: train by a recipe; run again to resume."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from pathlib import Path

from engine.commands.ending import told


def main(arguments: list[str]) -> int:
    """Exit status 0 when the run is complete, 1 when it failed (a full disk, a loss that won't come down), 2 for a mistake in
    recipe or data, 3 when SIGTERM stopped it: it saves its state first. Ctrl-C ends it at once."""
    parser = argparse.ArgumentParser(prog="python -m engine train", description=__doc__)
    parser.add_argument("recipe", type=Path, help="a YAML recipe, e.g. engine/training/recipes/embedded.yaml")
    parser.add_argument("--data", type=Path, required=True, help="folder of the sources that the recipe names")
    parser.add_argument("--out", type=Path, required=True, help="run folder; an unfinished run in it is resumed")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument(
        "--prepare", action="store_true", help="only hold questions out and make the vocabulary, for tokenize"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)

    return told(lambda: _train(options), "The same command goes on from the last saved state.")


def _train(options: argparse.Namespace) -> int:
    from engine.glm.allocator import keep_freed_memory

    keep_freed_memory()

    import torch

    from engine.training.launch import join
    from engine.training.recipe import Recipe
    from engine.training.trainer import Trainer

    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = Recipe.load(options.recipe)
    options.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(recipe, options.data, options.out, *join(options.out))
    signal.signal(signal.SIGTERM, lambda *_: trainer.stop())
    trainer.prepare()
    folder = options.out if options.prepare else trainer.train()
    if folder is None:
        sys.stderr.write("Stopped, the state is saved. The same command goes on from there.\n")
        return 3
    if trainer.rank == 0:
        sys.stdout.write(f"{folder}\n")
    return 0
