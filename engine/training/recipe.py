"""A training recipe: one YAML file that names the model, the data with its weights, the schedule. Checked at the edge."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.errors import GLMError
from engine.glm.adapter import TARGETS, Lora
from engine.glm.config import PRESETS, Config, resolve_model


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Vocabulary(_Strict):
    """What the vocabulary is trained on: source -> how often (0.3 = the first 30%), or a limit in megabytes."""

    sources: dict[str, float]
    limit_megabytes: dict[str, float] = {}


class Span(_Strict):
    mask_share: float = Field(0.3, ge=0, le=1)
    masked_tokens: float = Field(0.15, gt=0, lt=1)
    mean_span: float = Field(3.0, gt=0)


class Optimizer(_Strict):
    """muon: Muon for the matrices and AdamW for the rest (optimizer.py); adamw: AdamW for all, which ZeRO can partition."""

    kind: Literal["muon", "adamw"] = "muon"
    learning_rate: float = Field(gt=0)
    embedding_learning_rate: float = Field(gt=0)
    weight_decay: float = Field(0.1, ge=0)
    warmup_steps: int = Field(50, ge=0)
    decay: Literal["linear", "cosine"] = "linear"
    decay_share: float = Field(0.3, gt=0, le=1)  # of all steps, at the end, down to final_share
    final_share: float = Field(0.05, ge=0, le=1)
    clip: float = Field(1.0, gt=0)
    embedding_gradient: float = Field(1.0, gt=0, le=1)  # share of the embedding's gradient at first (GLM-130B: 0.1)
    embedding_gradient_steps: int = Field(0, ge=0)  # over which it rises to 1; 0: it stays

    def embedding_gradient_share(self, step: int) -> float:
        """The share at a 0-based step."""
        if not self.embedding_gradient_steps:
            return self.embedding_gradient
        return min(1.0, self.embedding_gradient + (1 - self.embedding_gradient) * step / self.embedding_gradient_steps)


class Scale(_Strict):
    """How a step is spread over memory and processes; none of it changes what is computed, but for rounding.

    zero: DeepSpeed's stage, of which 1 partitions the optimiser's states, 2 the gradients, too, 3 the weights, too. offload:
    the optimiser's states wait in host memory. micro_rows: rows of one forward pass of one process; None: all of a step.
    tensor_parallel: processes that share one copy of the model, each with a part of every matrix; the copies share the rows.
    checkpointing: a layer's activations are computed again in the backward pass. compile: layers are compiled by torch, which
    takes a minute at first, and again for another length or number of rows. streams: orders of the data that a step's
    rows come from, the same for any number of processes; with at least as many as processes no row is made twice.
    """

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    zero: int = Field(0, ge=0, le=3)
    offload: bool = False
    micro_rows: int | None = Field(None, ge=1)
    tensor_parallel: int = Field(1, ge=1)
    checkpointing: bool = False
    compile: bool = False
    streams: int = Field(1, ge=1, le=4096)


class LowRank(_Strict):
    """Train a low-rank adapter over `initial` instead of all weights (LoRA, engine/glm/adapter.py). The learning rate is that of
    its matrices; alpha: None means twice the rank."""

    rank: int = Field(8, ge=1)
    alpha: float | None = Field(None, gt=0)
    targets: list[str] = list(TARGETS)
    dropout: float = Field(0.0, ge=0, lt=1)

    def settings(self) -> Lora:
        """GLMError bad_request for targets that are none."""
        return Lora(self.rank, self.alpha or 2.0 * self.rank, tuple(self.targets), self.dropout)


class Ramp(_Strict):
    """A step's rows begin at a share of the stage's and rise evenly for so many steps of the run."""

    share: float = Field(gt=0, le=1)
    steps: int = Field(ge=1)


class Guard(_Strict):
    """When a run goes back to its last saved state: see watch.py. rewinds: after so many it ends with an error."""

    factor: float = Field(1.5, gt=1)
    window: int = Field(50, ge=4)
    patience: int = Field(5, ge=1)
    rewinds: int = Field(3, ge=0)


class Multitask(_Strict):
    """Instruction sources mixed into pre-training: together `share` of the tokens, each by its number of rows (cap it by the
    source's options), as in GLM-130B."""

    sources: list[str] = Field(min_length=1)
    share: float = Field(0.05, ge=0, le=1)


class Replay(_Strict):
    """General data that is trained on again while a model is fine-tuned, so that it isn't forgotten: together `share` of the
    tokens."""

    weights: dict[str, float] = Field(min_length=1)
    share: float = Field(0.2, ge=0, le=1)


class Stage(_Strict):
    """A part of the run with its own mixture. weights are shares of tokens, of those that `replay` and `multitask` leave."""

    name: str
    steps: int = Field(ge=1)
    rows: int = Field(ge=1)
    length: int = Field(ge=16)
    weights: dict[str, float]
    replay: Replay | None = None
    multitask: Multitask | None = None

    @property
    def sources(self) -> list[str]:
        replayed = self.replay.weights if self.replay is not None else ()
        return [*self.weights, *replayed, *(self.multitask.sources if self.multitask is not None else ())]


class HeldOut(_Strict):
    """Questions that are left out of training: paraphrases whose answer is also given to other questions."""

    source: str
    count: int = Field(ge=1)
    keep: list[str] = []  # questions that stay in training
    seed: int | None = None  # None: the recipe's; a run that goes on from another one holds out the same questions


class Split(_Strict):
    """Rows of a source that are kept away from training, see splits.py. shortest: characters of their text; keep: texts that
    stay in training; without: sources that lose the rows that contain a held-out text; keep_documents: only questions and
    blanks made of a row (by its source's `split`) are held out, and its text stays."""

    source: str
    count: int = Field(ge=1)
    shortest: int = Field(1, ge=1)
    keep: list[str] = []
    without: list[str] = []
    keep_documents: bool = False


class Recipe(_Strict):
    """model: a preset's shape; None: that of `initial`. name: what the trained model is called; None: as the model it goes on
    from, or the preset."""

    model: str | None = None
    name: str | None = Field(None, min_length=1, max_length=100)
    lora: LowRank | None = None
    initial: str | None = None  # a model folder, or "embedded", to go on from with its vocabulary; None: fresh weights
    seed: int = 1
    vocabulary: Vocabulary | None = None
    span: Span = Span()
    optimizer: Optimizer
    held_out: HeldOut | None = None
    splits: dict[str, Split] = {}
    sources: dict[str, dict] = {}  # options of single sources, see data.load_source
    stages: list[Stage] = Field(min_length=1)
    scale: Scale = Scale()
    ramp: Ramp | None = None
    guard: Guard = Guard()
    save_every: int = Field(100, ge=1)
    keep_states: int = Field(2, ge=1)
    snapshot_every: int = Field(0, ge=0)  # steps from one model folder in checkpoints/ to the next; 0: none

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @cached_property
    def config(self) -> Config:
        """Of the model that is trained. GLMError model_not_found, bad_model: those of `initial`."""
        if self.model is not None:
            config = PRESETS[self.model]
        else:
            assert self.initial is not None
            config = Config.load(resolve_model(self.initial))
        return config if self.name is None else replace(config, name=self.name)

    def stage_at(self, step: int) -> Stage:
        """The stage that step number `step` (0-based) belongs to."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.stages[-1]

    def learning_rate_share(self, step: int) -> float:
        """Warm-up, plateau, linear decay: the share of the peak learning rate at a 0-based step."""
        warm = min(1.0, (step + 1) / max(1, self.optimizer.warmup_steps))
        decay_from = self.steps * (1 - self.optimizer.decay_share)
        late = max(0.0, (step - decay_from) / max(1.0, self.steps - decay_from))
        if self.optimizer.decay == "cosine":
            late = (1 - math.cos(math.pi * min(1.0, late))) / 2
        return warm * (1 - late * (1 - self.optimizer.final_share))

    def rows_at(self, step: int, multiple: int) -> int:
        """Rows of a 0-based step: a multiple of `multiple`, at least that, and no more than the stage's."""
        rows = self.stage_at(step).rows
        if self.ramp is None or step >= self.ramp.steps:
            return rows
        share = self.ramp.share + (1 - self.ramp.share) * step / self.ramp.steps
        return min(rows, max(multiple, int(rows * share) // multiple * multiple))

    def _check_together(self, path: Path) -> None:
        scale = self.scale
        if self.optimizer.kind == "muon" and (scale.zero or scale.precision != "fp32"):
            message = "Muon needs whole matrices in fp32: take optimizer.kind adamw, or scale.zero 0 with fp32."
            raise GLMError("bad_data", f"{path}: {message}", field="optimizer.kind")
        if self.lora is not None:
            self.lora.settings()
            if self.initial is None or self.optimizer.kind != "adamw" or scale.zero:
                message = "lora needs initial, the model below it, optimizer.kind adamw, and scale.zero 0."
                raise GLMError("bad_data", f"{path}: {message}", field="lora")
        if scale.tensor_parallel > 1 and (self.optimizer.kind == "muon" or scale.zero > 1 or self.lora is not None):
            message = "tensor_parallel goes with optimizer.kind adamw, scale.zero 0 or 1, and no lora."
            raise GLMError("bad_data", f"{path}: {message}", field="scale.tensor_parallel")
        if scale.zero == 0 and (scale.precision != "fp32" or scale.offload):
            message = (
                "bf16, fp16 and offload need scale.zero 1 or more: weights in fp32 are kept beside the short ones."
            )
            raise GLMError("bad_data", f"{path}: {message}", field="scale.zero")

    @staticmethod
    def load(path: Path) -> Recipe:
        """Read a recipe. Errors: bad_data, naming the field."""
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            recipe = Recipe.model_validate(values)
        except FileNotFoundError as error:
            raise GLMError("bad_data", f"There is no recipe {path}.", field="config") from error
        except yaml.YAMLError as error:
            raise GLMError("bad_data", f"{path} is not readable YAML: {error}", field="config") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise GLMError("bad_data", f"{path}: {where}: {first['msg']}.", field=where) from error
        recipe._check_together(path)
        if recipe.model is None and recipe.initial is None:
            raise GLMError("bad_data", f"{path}: a recipe needs model, initial, or both.", field="model")
        if recipe.model is not None and recipe.model not in PRESETS:
            raise GLMError("bad_data", f"{path}: model must be one of {', '.join(PRESETS)}.", field="model")
        longest = max(stage.length for stage in recipe.stages)
        if longest > recipe.config.positions:
            limit = recipe.config.positions
            raise GLMError(
                "bad_data",
                f"{path}: length {longest} is over the model's {limit} positions.",
                field="length",
                limit=limit,
            )
        return recipe
