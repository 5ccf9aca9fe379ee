"""Read and write a model folder's weights: safetensors, one file or several, names as in GLM-130B without its prefix.

An adapter folder (adapter.py) is read as the model of its base with the adapter beside the weights.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from engine.errors import GLMError
from engine.glm import lora
from engine.glm.adapter import read_adapter, weights_file
from engine.glm.config import W8A8, Config, base_folder, check_base
from engine.glm.model import GLM
from engine.glm.new_folder import new_folder
from engine.glm.packed import pack
from engine.glm.parallel import COLUMNS, SINGLE, Ranks, partition, scale_slice, slices
from engine.glm.quantize import quantize_weight


def load(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    ranks: Ranks = SINGLE,
    quantize: str | None = None,
    training: bool = False,
) -> GLM:
    """The model of a folder, or a rank's part of it, in evaluation mode. One tensor beyond the model is in memory at a time.

    quantize: of config.SERVED_QUANTIZATIONS, for plain weights; a folder of quantised weights stays as it is. training: in
    training mode, quantised weights in a form through which gradients pass, an adapter in fp32 and nothing else to be trained.
    Errors: model_not_found, bad_model (a missing, extra, mis-shaped or unreadable tensor, by name; a base with other weights than
    an adapter was trained over), unsupported.
    """
    base = base_folder(folder)
    if ranks.rank == 0:  # which reads all weights: once is enough
        check_base(folder)
    config = serving_config(folder, ranks, quantize)
    model = GLM(config, device=device, dtype=dtype, ranks=ranks)
    fill(model, Weights(base))
    if not training:
        pack(model, dtype, model.device, eight_bit=quantize == W8A8)
    adapter = read_adapter(folder)
    if adapter is not None:
        lora.attach(model, adapter.lora, torch.float32 if training else dtype)
        fill_adapter(model, adapter_weights(folder))
    return model.train(training)


def serving_config(folder: Path, ranks: Ranks, quantize: str | None) -> Config:
    """The config that a model of this folder is to be built with. Errors: those of Config.load; unsupported."""
    return Config.load(folder).quantized(quantize, ranks.size)


def fill(model: GLM, weights: Weights, prefix: str = "") -> None:
    """Read every tensor of a model whose name begins with `prefix`; each rank reads its part only.

    Plain weights are quantised on the way where the model wants it so. Errors: bad_model by name.
    """
    wanted = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name.startswith(prefix)}
    if not prefix:
        for name in weights.names - set(wanted):
            raise GLMError("bad_model", f"{weights.file(name)} has an unexpected tensor {name}.", field="model")
    quantized = model.config.quantization
    stored = {name for name in wanted if weights.quantized or not name.endswith(".weight_scale")}
    missing = sorted(stored - weights.names)
    if missing:
        raise GLMError(
            "bad_model", f"{weights.folder} lacks {len(missing)} tensors, {missing[0]} first.", field="model"
        )
    with torch.no_grad():
        for name in sorted(stored):
            scales = f"{name}_scale"
            if scales in wanted and not weights.quantized:
                assert quantized is not None
                part = weights.part(name, model.ranks).to(wanted[name].device)
                numbers, scale = quantize_weight(part, quantized.bits, wanted[scales].shape[1])
                check_finite(name, scale)
                _put(name, wanted[name], numbers)
                _put(scales, wanted[scales], scale)
            else:
                _put(name, wanted[name], weights.part(name, model.ranks))


def fill_adapter(model: GLM, weights: Weights) -> None:
    """Read the adapter of a model that has room for it; each rank reads its part only. Errors: bad_model by name."""
    wanted = lora.named_parameters(model)
    check_names(weights, set(wanted))
    with torch.no_grad():
        for name, matrix in wanted.items():
            _put(name, matrix, weights.part(name, model.ranks))


def check_names(weights: Weights, wanted: set[str]) -> None:
    """GLMError bad_model if the tensors of a folder are not those of the wanted names."""
    for what, names in (
        ("lacks the", wanted - weights.names),
        ("has an unexpected", weights.names - wanted),
    ):
        if names:
            raise GLMError("bad_model", f"{weights.folder} {what} tensor {min(names)}.", field="model")


def check_finite(name: str, scale: torch.Tensor) -> None:
    """GLMError bad_model if the scales of a matrix say that it had numbers that can't be quantised."""
    if not torch.isfinite(scale).all():
        raise GLMError("bad_model", f"{name} is not finite in fp16: it can't be quantised.", field="model")


def _put(name: str, target: torch.Tensor, source: torch.Tensor) -> None:
    if source.shape != target.shape:
        shapes = f"{tuple(source.shape)}, the config asks for {tuple(target.shape)}"
        raise GLMError("bad_model", f"{name} has the shape {shapes}.", field="model")
    target.copy_(source)


class Weights:
    """The tensors of a model folder by name, read from its safetensors files part by part."""

    def __init__(self, folder: Path, files: Sequence[Path] | None = None) -> None:
        """files: instead of the folder's weight files."""
        self.folder = Path(folder)
        self._files: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        for path in weight_files(self.folder) if files is None else files:
            for name in self._handle(path).keys():  # noqa: SIM118 (a safetensors handle is no mapping)
                if name in self._files:
                    raise GLMError("bad_model", f"{name} is in two files, {path.name} the second.", field="model")
                self._files[name] = path

    @property
    def names(self) -> set[str]:
        return set(self._files)

    @property
    def quantized(self) -> bool:
        return any(name.endswith(".weight_scale") for name in self._files)

    def file(self, name: str) -> str:
        return self._files[name].name

    def part(self, name: str, ranks: Ranks = SINGLE) -> torch.Tensor:
        """A rank's part of a tensor, read without the rest of it. GLMError bad_model, unsupported."""
        path = self._files[name]
        with self._reading(path):
            view = self._handle(path).get_slice(name)
            shape, how = view.get_shape(), partition(name)
            if how == COLUMNS and name.endswith(".weight_scale"):
                return view[:, scale_slice(shape[1], ranks.rank, ranks.size)]
            pieces = [view[index] for index in slices(how, shape, ranks.rank, ranks.size)]
            return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def described(self, name: str) -> tuple[str, tuple[int, ...]]:
        """The type of a tensor, as the format names it, and its shape."""
        path = self._files[name]
        with self._reading(path):
            view = self._handle(path).get_slice(name)
            return view.get_dtype(), tuple(view.get_shape())

    def blocks(self, name: str, numbers: int) -> Iterator[torch.Tensor]:
        """A whole tensor some rows at a time, of about so many numbers. GLMError bad_model."""
        path = self._files[name]
        with self._reading(path):
            view = self._handle(path).get_slice(name)
            count, *row = view.get_shape()
            step = max(1, numbers // math.prod(row))
            for first in range(0, count, step):
                yield view[first : first + step]

    def release(self) -> None:
        """Unmap the files: what was read of them counts as this process's memory until then. Reading maps them again."""
        self._open.clear()

    def _handle(self, path: Path) -> Any:
        if path not in self._open:
            with self._reading(path):
                self._open[path] = safe_open(path, framework="pt")
        return self._open[path]

    @contextlib.contextmanager
    def _reading(self, path: Path) -> Iterator[None]:
        try:
            yield
        except SafetensorError as error:
            raise GLMError(
                "bad_model", f"{path.name} is not a whole safetensors file ({error}).", field="model"
            ) from error


def adapter_weights(folder: Path) -> Weights:
    """The matrices A and B of an adapter folder."""
    return Weights(folder, [weights_file(folder)])


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder in order. Error: bad_model if there is none; unsupported for an adapter's folder."""
    if read_adapter(folder) is not None:
        message = (
            f"{folder} is an adapter over {base_folder(folder)}: this needs a model with weights of its own. "
            "`python -m engine merge` makes one of it."
        )
        raise GLMError("unsupported", message, field="model")
    paths = sorted(Path(folder).glob("model*.safetensors"))
    if not paths:
        raise GLMError("bad_model", f"{folder} has no model*.safetensors.", field="model")
    return paths


def save(
    model: GLM, folder: Path, *, tokenizer: Path, dtype: torch.dtype = torch.float16, about: dict | None = None
) -> None:
    """Write a model folder that `load` and the server read. Whole or not at all: it is moved into place at the end.

    tokenizer: the vocabulary file to copy; about: a few words for the file's own metadata (string to string).
    Error: bad_model if a weight is not finite in `dtype`.
    """
    assert model.config.quantization is None  # quantised weights are no parameters: see quantize_folder.py
    assert lora.adapter_settings(model) is None  # see lora.save
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[name] = parameter.detach().to("cpu", dtype).contiguous()
        if not torch.isfinite(tensors[name]).all():
            raise GLMError("bad_model", f"{name} is not finite in {dtype}: nothing was saved.", field="model")
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (about or {}).items()}
    # config.json last: a folder without it is no model folder (see config.resolve_model)
    with new_folder(Path(folder), ("tokenizer.model", "model.safetensors", "config.json")) as new:
        save_file(tensors, new / "model.safetensors", metadata={"format": "pt", **metadata})
        model.config.save(new)
        shutil.copyfile(tokenizer, new / "tokenizer.model")
