"""How many tokens a second the trainer makes, against a plain loop over the same model, batches and optimiser, in one process.

The plain loop is what anybody would write: forward, loss, backward, clip, step, with torch alone. Its variants: logits for all
positions or only where a target is, layers compiled or not. Rounds of all variants take turns, so that what else the machine
does hits all of them; each variant's best round counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import torch
from torch.nn import functional as F

from engine.glm.attention import MaskedAttention, packed_visible
from engine.glm.config import PRESETS, Config
from engine.glm.machine import matmul_peak
from engine.glm.model import GLM, initialise
from engine.training.backend import Backend
from engine.training.data import Batch
from engine.training.grid import Grid
from engine.training.loss import batch_loss
from engine.training.optimizer import adamw_groups
from engine.training.recipe import Optimizer, Recipe, Scale, Stage
from engine.training.training_flops import attended, training_flops

_LEARNING_RATE = 1e-4


@dataclass(frozen=True, slots=True)
class Speed:
    """One variant: tokens a second of its best round, and the share of the measured matmul peak."""

    name: str
    tokens_per_second: float
    peak_share: float


def shape(layers: int, hidden: int, inner: int, vocabulary: int, length: int) -> Config:
    """A config of these sizes with heads of 48 to 128 numbers."""
    heads = next(hidden // size for size in (64, 48, 128, 96, 32, 16, 2) if hidden % size == 0)
    return replace(
        PRESETS["glm-embedded"], name="speed", layers=layers, hidden=hidden, inner=inner, heads=heads,
        vocabulary=vocabulary, positions=length,
    )  # fmt: skip


def batch_of(config: Config, rows: int, seed: int) -> Batch:
    """Two documents a row; in each the second half is to be predicted."""
    length = config.positions
    random = numpy.random.default_rng(seed)
    ids = random.integers(0, config.vocabulary, (rows, length))
    order = numpy.tile(numpy.arange(length) % (length // 2), (rows, 1))
    document = numpy.tile(numpy.arange(length) // (length // 2) + 1, (rows, 1)).clip(max=2)
    context = order < length // 4
    targets = numpy.where(context, -1, numpy.roll(ids, -1, axis=1))
    return Batch(ids, order, targets, document, context)


def compare(
    config: Config, rows: int, steps: int, rounds: int, folder: Path, tell: Callable[[str], None]
) -> tuple[float, list[Speed]]:
    """(FLOP/s of the matmul peak, the variants). steps of each round; folder: for the trainer's meeting point."""
    from engine.training.launch import join

    join(folder)
    batches = [batch_of(config, rows, seed) for seed in range(steps)]
    count = int((batches[0].targets >= 0).sum())
    variants: dict[str, Callable[[Batch], None]] = {
        "plain loop, all logits": _plain(config, all_logits=True),
        "plain loop": _plain(config),
        "plain loop, compiled": _plain(config, compile=True),
        "trainer": _trainer(config, Scale(zero=1)),
        "trainer, compiled": _trainer(config, Scale(zero=1, compile=True)),
    }
    for name, run in variants.items():
        tell(f"warming up: {name}")
        for batch in batches[:2]:
            run(batch)
    best = dict.fromkeys(variants, float("inf"))
    peak = 0.0
    for number in range(rounds):
        tell(f"round {number + 1} of {rounds}")
        peak = max(peak, matmul_peak(1.0))
        for name, run in variants.items():
            started = time.perf_counter()
            for batch in batches:
                run(batch)
            best[name] = min(best[name], (time.perf_counter() - started) / steps)
    flops = training_flops(config, batches[0].tokens, count, attended(batches[0].document))
    return peak, [Speed(name, batches[0].tokens / seconds, flops / seconds / peak) for name, seconds in best.items()]


def _model(config: Config) -> GLM:
    model = GLM(config)
    initialise(model, torch.Generator().manual_seed(1))
    return model


def _plain(config: Config, *, all_logits: bool = False, compile: bool = False) -> Callable[[Batch], None]:
    model = _model(config)
    if compile:
        for layer in model.layers:
            layer.compile()
    groups = adamw_groups(model, _LEARNING_RATE, _LEARNING_RATE, 0.1)
    optimizer = torch.optim.AdamW(groups, _LEARNING_RATE, betas=(0.9, 0.95))

    def step(batch: Batch) -> None:
        loss, count = _all_logits(model, batch) if all_logits else batch_loss(model, batch)
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _all_logits(model: GLM, batch: Batch) -> tuple[torch.Tensor, int]:
    ids, positions, targets = (torch.from_numpy(part) for part in (batch.ids, batch.positions, batch.targets))
    visible = packed_visible(torch.from_numpy(batch.document), torch.from_numpy(batch.context))
    hidden = model.run(model.embed(ids), model.rotary(positions), MaskedAttention(visible))
    logits = model.logits(hidden).flatten(0, 1).float()
    loss = F.cross_entropy(logits, targets.flatten(), ignore_index=-1, reduction="sum")
    return loss, int((targets >= 0).sum())


def _trainer(config: Config, scale: Scale) -> Callable[[Batch], None]:
    options = Optimizer(kind="adamw", learning_rate=_LEARNING_RATE, embedding_learning_rate=_LEARNING_RATE)
    stage = Stage(name="all", steps=1, rows=1, length=16, weights={"x": 1.0})
    backend = Backend(Recipe(model=config.name, optimizer=options, stages=[stage], scale=scale), _model(config), Grid())

    def step(batch: Batch) -> None:
        backend.gradients(batch, int((batch.targets >= 0).sum()), 1.0)
        backend.norm_before()
        backend.update(1.0)

    return step
