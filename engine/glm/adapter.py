"""Low-rank adapters (LoRA, arXiv 2106.09685): their settings, and what an adapter folder says about itself. Torch-free.

An adapter folder is served as a model folder is. It holds `config.json` (the base's, with a name of its own), `tokenizer.model`,
`adapter.safetensors` (the matrices A and B of every adapted layer, fp32) and `adapter.json`:

    {"format": "glm-lora-1", "base": "../glm-130b", "base_sha256": "...", "rank": 8, "alpha": 16.0,
     "targets": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"], "dropout": 0.0}

base: the folder of the model below, absolute, or relative to the adapter's folder, so that both can be moved together, or
`embedded`. base_sha256: the hash of its weights (config.weights_hash): over any others the adapter is worthless.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from engine.errors import GLMError

DESCRIPTION, WEIGHTS = "adapter.json", "adapter.safetensors"
FORMAT = "glm-lora-1"
TARGETS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")


@dataclass(frozen=True, slots=True)
class Lora:
    """What is trained beside a frozen base: of every target matrix W, B and A in W + (alpha / rank) B A.

    targets: some of TARGETS, in any order; all four unless said otherwise, for adapters of the attention alone fall short of full
    fine-tuning (QLoRA, arXiv 2305.14314, section 4). dropout: of A's input, in training. GLMError bad_request for what can't be.
    """

    rank: int
    alpha: float
    targets: Sequence[str] = TARGETS
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not _is_number(self.rank, int) or self.rank < 1:
            raise _mistake("rank", f"must be a whole number of at least 1, not {self.rank!r}", 1)
        if not _is_number(self.alpha, int, float) or not 0 < self.alpha <= sys.float_info.max:
            raise _mistake("alpha", f"must be a number above 0, not {self.alpha!r}", 0)
        if not _is_number(self.dropout, int, float) or not 0 <= self.dropout < 1:
            raise _mistake("dropout", f"must be a number from 0 to below 1, not {self.dropout!r}", 1)
        listed = isinstance(self.targets, Sequence) and not isinstance(self.targets, str)
        chosen = tuple(name for name in TARGETS if listed and name in self.targets)
        if not chosen or len(chosen) != len(self.targets):
            known = ", ".join(TARGETS)
            raise _mistake("targets", f"must be one or more of {known}, each once, not {self.targets!r}", known)
        object.__setattr__(self, "targets", chosen)
        object.__setattr__(self, "alpha", float(self.alpha))
        object.__setattr__(self, "dropout", float(self.dropout))

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def _is_number(value: object, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _mistake(field: str, problem: str, limit: int | str) -> GLMError:
    return GLMError("bad_request", f"An adapter's {field} {problem}.", field=field, limit=limit)


@dataclass(frozen=True, slots=True)
class Adapter:
    """What adapter.json says."""

    base: str
    base_sha256: str
    lora: Lora

    def save(self, folder: Path) -> None:
        """Write adapter.json."""
        values = {"format": FORMAT, "base": self.base, "base_sha256": self.base_sha256, **asdict(self.lora)}
        text = json.dumps(values, ensure_ascii=False, indent=1)
        (Path(folder) / DESCRIPTION).write_text(text + "\n", encoding="utf-8")

    def sha256(self, folder: Path) -> str:
        """The identity of base and adapter together: wherever the base lies, and however the file is written."""
        lora = self.lora
        digest = hashlib.sha256(repr((self.base_sha256, lora.rank, lora.alpha, lora.targets)).encode())
        with weights_file(folder).open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
        return digest.hexdigest()


def read_adapter(folder: Path) -> Adapter | None:
    """What a folder's adapter.json says; None for a folder without it. GLMError bad_model."""
    path = Path(folder) / DESCRIPTION
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise GLMError("bad_model", f"{path} is not readable JSON.", field="model") from error
    if any(Path(folder).glob("model*.safetensors")):
        message = f"{folder} holds the weights of a model and {DESCRIPTION}: it can't be both a model and an adapter."
        raise GLMError("bad_model", message, field="model")
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise GLMError("bad_model", f"{path} is not of the format {FORMAT}.", field="model")
    base, digest = values.pop("base", None), values.pop("base_sha256", None)
    if not isinstance(base, str) or not base or not isinstance(digest, str) or not digest:
        raise GLMError("bad_model", f"{path} must name its base and base_sha256.", field="model")
    try:
        return Adapter(base, digest, Lora(**values))
    except TypeError as error:
        raise GLMError("bad_model", f"{path} has other fields than an adapter ({error}).", field="model") from error
    except GLMError as error:
        raise GLMError("bad_model", f"{path}: {error.message}", field=error.field, limit=error.limit) from error


def weights_file(folder: Path) -> Path:
    """adapter.safetensors of a folder. GLMError bad_model if it isn't there."""
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise GLMError("bad_model", f"{folder} has {DESCRIPTION} but no {WEIGHTS}.", field="model")
    return path
