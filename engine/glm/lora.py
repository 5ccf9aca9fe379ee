"""LoRA (arXiv 2106.09685): small trained matrices beside the frozen ones of a GLM, computed unmerged.

    model = checkpoint.load(base, training=True)
    lora.add(model, Lora(rank=8, alpha=16), torch.Generator().manual_seed(1))
    optimizer = AdamW(lora.parameters(model)); ... ; lora.save(model, out, base=base, name="ours")

An adapted layer is W x + (alpha / rank) B (A x) + b with A (rank, columns), B (rows, rank), whatever form W has, plain or
quantised. The layers stay where they are, and so do the names of their tensors, beside which there are `...query_key_value.lora_a`
and `...lora_b`. Of tensor parallel ranks each has the part of A and B that belongs to its part of W (parallel.partition), so what
the ranks already sum is the sum of the adapters' products, too.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from engine.errors import GLMError
from engine.glm.adapter import DESCRIPTION, WEIGHTS, Adapter, Lora
from engine.glm.config import EMBEDDED, EMBEDDED_FOLDER, Config, base_folder, resolve_model, weights_hash
from engine.glm.model import GLM, Linear
from engine.glm.new_folder import new_folder
from engine.glm.parallel import COLUMNS, partition, slices
from engine.glm.projection import Projection
from engine.glm.quantize import QuantizedLinear
from engine.glm.sat_layout import MATRICES
from engine.glm.tokenizer import VOCABULARY_FILE


class _Adapted(Projection, nn.Module):
    """What an adapted layer has beyond the layer's own."""

    lora: Lora
    lora_a: nn.Parameter
    lora_b: nn.Parameter

    def update(self, states: Tensor) -> Tensor:
        """(..., columns) -> (..., rows), in the states' type; the matrices may have a longer one, for training."""
        states = F.dropout(states, self.lora.dropout, self.training)
        inner = F.linear(states, self.lora_a.to(states.dtype)) * self.lora.scale
        return F.linear(inner, self.lora_b.to(states.dtype))

    def plus(self, states: Tensor, residual: Tensor) -> Tensor:
        return Projection.plus(self, states, residual)

    def gated(self, states: Tensor) -> Tensor:
        return Projection.gated(self, states)


class AdaptedLinear(_Adapted, Linear):
    def product(self, states: Tensor) -> Tensor:
        """Without the bias."""
        return super().product(states) + self.update(states)

    def forward(self, states: Tensor) -> Tensor:
        return super().forward(states) + self.update(states)


class AdaptedQuantizedLinear(_Adapted, QuantizedLinear):
    def product(self, states: Tensor) -> Tensor:
        """Without the bias."""
        return super().product(states) + self.update(states)

    def gated(self, states: Tensor) -> Tensor:
        return QuantizedLinear.gated(self, states)


_KINDS: dict[type, type] = {Linear: AdaptedLinear, QuantizedLinear: AdaptedQuantizedLinear}


def add(model: GLM, settings: Lora, generator: torch.Generator, *, dtype: torch.dtype = torch.float32) -> None:
    """Freeze a model and give it a new adapter, with which it computes at first exactly what it did.

    A is drawn from N(0, 1 / columns) with the generator, a CPU's, the same numbers on any device and over any ranks; B is zero.
    dtype: of A and B. With less than fp32 the small steps of training are lost to rounding; they compute in the states' type.
    GLMError bad_request, field rank, for a rank above the shorter side of a target; unsupported if there is an adapter already.
    """
    hidden, inner = model.config.hidden, model.config.inner
    limit = min({"dense_h_to_4h": 2 * inner, "dense_4h_to_h": inner}.get(name, hidden) for name in settings.targets)
    limit = min(limit, hidden)
    if settings.rank > limit:
        message = f"An adapter of {model.config.name} has a rank of {limit} at most, not {settings.rank}."
        raise GLMError("bad_request", message, field="rank", limit=limit)
    attach(model, settings, dtype)
    with torch.no_grad():
        for name, matrix in named_parameters(model).items():
            if name.endswith("lora_a"):
                rows, columns = matrix.shape
                ranks, how = model.ranks, partition(name)
                columns *= ranks.size if how == COLUMNS else 1
                whole = torch.empty(rows, columns).normal_(0.0, 1 / math.sqrt(columns), generator=generator)
                [part] = slices(how, whole.shape, ranks.rank, ranks.size)
                matrix.copy_(whole[part])


def attach(model: GLM, settings: Lora, dtype: torch.dtype = torch.float32) -> None:
    """As `add`, with A and B zero and of any rank: room for an adapter that is read."""
    if adapter_settings(model) is not None:
        message = f"{model.config.name} has an adapter already: merge it first, or go on with its training."
        raise GLMError("unsupported", message, field="model")
    model.requires_grad_(False)
    for linear in _targets(model, settings):
        factory: dict[str, Any] = {"device": linear.bias.device, "dtype": dtype}
        rows, columns = linear.bias.shape[0], _columns(linear)
        # The layer itself changes its class, as torch's parametrizations do: its tensors, their names, whoever holds it stay.
        linear.__class__ = _KINDS[type(linear)]
        linear.lora = settings
        linear.lora_a = nn.Parameter(torch.zeros(settings.rank, columns, **factory))
        linear.lora_b = nn.Parameter(torch.zeros(rows, settings.rank, **factory))


def _targets(model: GLM, settings: Lora) -> Iterator[Any]:
    for layer in model.layers:
        for name in MATRICES:
            if name.rpartition(".")[2] in settings.targets:
                yield layer.get_submodule(name)


def _columns(linear: Linear | QuantizedLinear) -> int:
    return linear.columns if isinstance(linear, QuantizedLinear) else linear.in_features


def adapter_settings(model: nn.Module) -> Lora | None:
    """Of the adapter that a model has; None without one."""
    return next((module.lora for module in model.modules() if isinstance(module, _Adapted)), None)


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's matrices by name, in the model's order: what a state of training keeps (`load_state_dict(strict=False)`)."""
    return {name: one for name, one in model.named_parameters() if name.endswith((".lora_a", ".lora_b"))}


def parameters(model: nn.Module) -> list[nn.Parameter]:
    """The adapter's matrices, which alone are trained: for an optimiser."""
    return list(named_parameters(model).values())


def save(
    model: GLM,
    folder: Path,
    *,
    base: str | Path,
    name: str,
    tokenizer: Path | None = None,
    about: dict[str, Any] | None = None,
) -> None:
    """Write a model's adapter as a folder that `checkpoint.load` and the server read. Whole or not at all.

    base: the model it was trained over, "embedded" or a folder; if that is an adapter, which was trained further, its base is
    meant. name: of the model that base and adapter are. tokenizer: the vocabulary to copy, if not the base's. about: a few words
    for the file's own metadata. GLMError bad_model if a number is not finite; bad_request for a folder that holds a model.
    """
    settings = adapter_settings(model)
    assert settings is not None and model.ranks.size == 1  # a rank has only a part
    folder = Path(folder)
    if any(folder.glob("model*.safetensors")):
        raise GLMError("bad_request", f"{folder} holds a model: give the adapter a folder of its own.", field="out")
    below = base_folder(resolve_model(base))
    config = replace(Config.load(below), name=name)
    written = _written(below, folder, absolute=Path(base).expanduser().is_absolute())
    tensors = {key: matrix.detach().to("cpu", torch.float32) for key, matrix in named_parameters(model).items()}
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise GLMError("bad_model", f"{key} is not finite: nothing was saved.", field="model")
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (about or {}).items()}
    with new_folder(folder, (VOCABULARY_FILE, WEIGHTS, DESCRIPTION, "config.json")) as new:
        save_file(tensors, new / WEIGHTS, metadata={"format": "pt", **metadata})
        Adapter(written, weights_hash(below), settings).save(new)
        config.save(new)
        shutil.copyfile(tokenizer or below / VOCABULARY_FILE, new / VOCABULARY_FILE)


def _written(base: Path, folder: Path, *, absolute: bool) -> str:
    """A base as adapter.json names it."""
    if base == EMBEDDED_FOLDER:
        return EMBEDDED
    return str(base) if absolute else os.path.relpath(base.resolve(), folder.resolve())
