"""A training recipe: one YAML file that names the model, the data with its weights, the schedule. Checked at the edge."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.errors import GLMError
from engine.glm.config import PRESETS, Config


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
    learning_rate: float = Field(gt=0)
    embedding_learning_rate: float = Field(gt=0)
    weight_decay: float = Field(0.1, ge=0)
    warmup_steps: int = Field(50, ge=0)
    decay_share: float = Field(0.3, gt=0, le=1)  # of all steps, at the end, linearly down to final_share
    final_share: float = Field(0.05, ge=0, le=1)
    clip: float = Field(1.0, gt=0)
    embedding_gradient: float = Field(1.0, gt=0, le=1)  # share of the embedding's gradient at first (GLM-130B: 0.1)
    embedding_gradient_steps: int = Field(0, ge=0)  # over which it rises to 1; 0: it stays

    def embedding_gradient_share(self, step: int) -> float:
        """The share at a 0-based step."""
        if not self.embedding_gradient_steps:
            return self.embedding_gradient
        return min(1.0, self.embedding_gradient + (1 - self.embedding_gradient) * step / self.embedding_gradient_steps)


class Stage(_Strict):
    """A part of the run with its own mixture. weights are shares of tokens."""

    name: str
    steps: int = Field(ge=1)
    rows: int = Field(ge=1)
    length: int = Field(ge=16)
    weights: dict[str, float]


class HeldOut(_Strict):
    """Questions that are left out of training: paraphrases whose answer is also given to other questions."""

    source: str
    count: int = Field(ge=1)
    keep: list[str] = []  # questions that stay in training
    seed: int | None = None  # None: the recipe's; a run that goes on from another one holds out the same questions


class Recipe(_Strict):
    model: str
    initial: str | None = None  # a model folder, or "embedded", to go on from with its vocabulary; None: fresh weights
    seed: int = 1
    vocabulary: Vocabulary | None = None
    span: Span = Span()
    optimizer: Optimizer
    held_out: HeldOut | None = None
    sources: dict[str, dict] = {}  # options of single sources, see data.load_source
    stages: list[Stage]
    save_every: int = Field(100, ge=1)

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def config(self) -> Config:
        return PRESETS[self.model]

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
        return warm * (1 - late * (1 - self.optimizer.final_share))

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
        if recipe.model not in PRESETS:
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
