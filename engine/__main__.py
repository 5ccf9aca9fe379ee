"""python -m engine COMMAND ...: everything that needs no web server."""

from __future__ import annotations

import importlib
import sys

SUMMARIES = {
    "generate": "fill blanks, go on with texts, or chat, from the command line",
    "convert": "make a model folder from GLM-130B's checkpoint, whole or in its downloaded parts",
    "export": "write a model folder as a SwissArmyTransformer checkpoint, for any number of ranks",
    "quantize": "store a model's weights in 8 or 4 bits",
    "merge": "make a plain model of an adapter and its base",
    "plan": "whether a model fits some hardware, and what it will do there",
    "bench": "how fast a model runs here, its weights in memory or streamed from disk",
    "tokenize": "tokenise a recipe's documents once, before training",
    "train": "train a model by a recipe, or resume a run",
    "trainspeed": "tokens a second of the trainer here, against a plain loop",
    "ablate": "GLM-130B's choices for stability, each left out in turn, at small scale",
    "report": "what a training run looks like: curves, answers, its score on held-out questions",
    "rows": "what the trainer makes of rows, before anything is trained",
    "measure": "how well models do on rows they were not trained on, side by side",
    "evaluate": "measure a model on benchmarks, in GLM-130B's task format",
    "compare": "what a model loses with its weights in fewer bits, as a table",
}


def main(arguments: list[str]) -> int:
    """Run a command; returns the exit status. 2 is a mistake in the arguments, told in a sentence."""
    lines = [f"  {name:11}{text}" for name, text in SUMMARIES.items()]
    usage = "\n".join(
        ["usage: python -m engine COMMAND ...", "", "commands:", *lines, "", "COMMAND --help tells more.", ""]
    )
    if arguments and arguments[0] in ("-h", "--help"):
        sys.stdout.write(usage)
        return 0
    if not arguments or arguments[0] not in SUMMARIES:
        problem = f"There is no command {arguments[0]!r}." if arguments else "A command is missing."
        sys.stderr.write(f"{problem}\n{usage}")
        return 2
    return importlib.import_module(f"engine.commands.{arguments[0]}").main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
