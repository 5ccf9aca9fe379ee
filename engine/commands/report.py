"""`python -m engine report RUN`: what a trained model answers, and how many held-out questions it gets right."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

from engine.errors import GLMError


def main(arguments: list[str]) -> int:
    """Writes evaluation.json and loss.png beside the run's model, prints the answers."""
    parser = argparse.ArgumentParser(prog="python -m engine report", description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder of `python -m engine train`")
    parser.add_argument("--model", type=Path, help="model folder (default: RUN/model)")
    options = parser.parse_args(arguments)

    from engine.training.report import draw_loss, report

    folder = options.model or options.run / "model"
    try:
        held_out = [
            json.loads(line) for line in (options.run / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        found = asyncio.run(report(folder, held_out))
        found["training"] = draw_loss(options.run / "metrics.jsonl", folder / "loss.png")
    except (GLMError, FileNotFoundError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    (folder / "evaluation.json").write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    for row in found["examples"]:
        sys.stdout.write(f"{row['mode']:5} {row['question']}\n      {row['answer']}\n")
    held = found["held_out"]
    sys.stdout.write(
        f"held-out questions answered exactly: {held['right']} of {held['questions']} {held['by_language']}\n"
    )
    return 0
