"""The plan of a fine-tuning: from the rows' size and what an administrator chose to the trainer's recipe, and how long it takes.

plan = make_plan(options, size, parameters, positions)
recipe(plan, …)         # what engine/training/recipe.py reads; JSON is YAML, too
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

CORRECTIONS, GENERAL = "corrections", "general"  # the names of the trainer's sources
Kind = Literal["lora", "full"]

STEP_TOKENS = 1024  # about as many of a step: small, so that few rows give some steps
EPOCHS = {"lora": 20, "full": 16}  # that few rows are seen; many rows are seen fewer times, see `_epochs`
FEW_TOKENS = 4000
LEARNING_RATES = {"lora": 2e-3, "full": 3e-4}
REPLAY_SHARE = 0.5
LEAST_STEPS, MOST_STEPS = 20, 5000
LENGTHS = (128, 256, 512, 1024, 2048)
FLOPS = 4e10  # of one niced CPU thread, before a training was measured here


@dataclass(frozen=True, slots=True)
class Options:
    """What an administrator chose; None takes the default that fits the rows. replay_share: of the tokens, general rows."""

    kind: Kind = "lora"
    learning_rate: float | None = None
    steps: int | None = None
    rank: int = 8
    replay_share: float = REPLAY_SHARE


@dataclass(frozen=True, slots=True)
class Plan:
    """rows x length tokens a step. epochs: how often each row is seen, about. seconds: an estimate."""

    kind: Kind
    steps: int
    rows: int
    length: int
    learning_rate: float
    rank: int
    replay_share: float
    epochs: float
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_plan(
    options: Options, size: Mapping[str, Any], *, parameters: int, positions: int, threads: int, flops: float | None
) -> Plan:
    """size: what `python -m engine rows` says of the rows. flops: a second, measured in the last training; None: not yet."""
    length = next((each for each in LENGTHS if each >= size["longest"] and each <= positions), positions)
    rows = max(1, round(STEP_TOKENS / length))
    tokens = max(1, size["tokens"])
    own = rows * length * (1 - options.replay_share)  # of a step
    steps = options.steps
    if steps is None:
        steps = min(MOST_STEPS, max(LEAST_STEPS, math.ceil(_epochs(options.kind, tokens) * tokens / own)))
    operations = (4 if options.kind == "lora" else 6) * parameters * rows * length * steps
    return Plan(
        kind=options.kind,
        steps=steps,
        rows=rows,
        length=length,
        learning_rate=options.learning_rate or LEARNING_RATES[options.kind],
        rank=options.rank,
        replay_share=options.replay_share,
        epochs=round(steps * own / tokens, 1),
        seconds=round(20 + operations / (flops or FLOPS * threads)),
    )


def _epochs(kind: Kind, tokens: int) -> float:
    """As the square root falls from FEW_TOKENS on, but each row at least three times."""
    return max(3.0, EPOCHS[kind] * math.sqrt(FEW_TOKENS / max(FEW_TOKENS, tokens)))


def recipe(plan: Plan, *, initial: str, name: str, seed: int) -> dict[str, Any]:
    """The trainer's recipe. initial: "embedded" or a model folder."""
    stage: dict[str, Any] = {
        "name": "finetune",
        "steps": plan.steps,
        "rows": plan.rows,
        "length": plan.length,
        "weights": {CORRECTIONS: 1},
    }
    if plan.replay_share > 0:
        stage["replay"] = {"share": plan.replay_share, "weights": {GENERAL: 1}}
    made: dict[str, Any] = {
        "initial": initial,
        "name": name,
        "seed": seed,
        "save_every": max(10, min(100, plan.steps // 5)),
        "keep_states": 1,
        "optimizer": {
            "kind": "adamw",
            "learning_rate": plan.learning_rate,
            "embedding_learning_rate": plan.learning_rate,
            "weight_decay": 0.0,
            "warmup_steps": max(2, plan.steps // 20),
            "decay_share": 0.5,
        },
        "stages": [stage],
    }
    if plan.kind == "lora":
        made["lora"] = {"rank": plan.rank}
    return made


def measured_flops(plan: Mapping[str, Any], parameters: int, seconds: float) -> float:
    """Operations a second of a training that is done, as `make_plan` counts them."""
    operations = (4 if plan["kind"] == "lora" else 6) * parameters * plan["rows"] * plan["length"] * plan["steps"]
    return operations / max(1.0, seconds - 20)
