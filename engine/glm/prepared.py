"""A layer a file, in the form in which it computes: written once, for weights that are streamed and aren't stored so.

Four-bit weights are packed for the matrix product, plain weights may be quantised first, a tensor parallel rank has its part
only. The folder's name says of what and for what it was made; layers that are there are whole, so an interrupted run is gone
on with. One layer at a time is in memory.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from engine.errors import GLMError
from engine.glm import layer_files
from engine.glm.checkpoint import Weights, fill
from engine.glm.config import weights_hash
from engine.glm.layer_sources import form_of
from engine.glm.model import GLM, Layer
from engine.glm.packed import pack
from engine.glm.size import format_size

_RESERVE = 1 << 30  # bytes of the disk that are left to others


def key(folder: Path, model: GLM, device: torch.device) -> str:
    """What the prepared form depends on, in 16 letters."""
    config, ranks = model.config, model.ranks
    machine = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else device.type
    form = form_of(model.layers[0].state_dict())
    what = (weights_hash(folder), config.quantization, ranks.rank, ranks.size, form, torch.__version__, machine)
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


def prepare(folder: Path, weights: Weights, model: GLM, device: torch.device, cache: Path | None) -> list[Path]:
    """The layers' files, of which those that aren't there yet are written. Several processes may want the same ones.

    cache: the folder to write to instead of the model's own.
    GLMError overloaded when the disk has no room for them, bad_model if the weights can't be read.
    """
    place = (cache or folder) / f".prepared-{key(folder, model, device)}"
    paths = [place / f"layer-{number:05d}.weights" for number in range(len(model.layers))]
    try:
        place.mkdir(parents=True, exist_ok=True)
        with (place / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until this file is closed, be it by the death of the process
            for left in place.glob(".*.weights.*"):  # of a process that died while it wrote
                left.unlink()
            _write([path for path in paths if not path.exists()], paths, weights, model, device)
    except OSError as error:
        message = f"The layers can't be prepared in {place}: {error.strerror}."
        raise GLMError("overloaded", message, field="offload") from error
    return paths


def ready_layer(model: GLM, weights: Weights, number: int, device: torch.device) -> dict[str, Tensor]:
    """The tensors of a layer as it computes on a device, read from a model folder. model: of the same config, for its names."""
    waiting = model.layers[number]
    model.layers[number] = layer = Layer(model.config, number, model.ranks, device=device, dtype=model.dtype)
    try:
        fill(model, weights, f"layers.{number}.")
    finally:
        model.layers[number] = waiting
    pack(layer, model.dtype, device)
    return layer.state_dict()


def _write(missing: list[Path], paths: list[Path], weights: Weights, model: GLM, device: torch.device) -> None:
    began = time.monotonic()
    for done, path in enumerate(missing):
        tensors = ready_layer(model, weights, paths.index(path), device)
        if done == 0:
            _check_room(path.parent, tensors, len(missing))
        layer_files.write(path, {name: tensor.cpu() for name, tensor in tensors.items()})
        del tensors
        left = (time.monotonic() - began) / (done + 1) * (len(missing) - done - 1)
        _show(f"prepared layer {done + 1} of {len(missing)}, {left:.0f} s left", last=done + 1 == len(missing))


def _check_room(place: Path, tensors: Mapping[str, Tensor], count: int) -> None:
    needed, free = (
        count * layer_files.file_size(tensor.nbytes for tensor in tensors.values()),
        shutil.disk_usage(place).free - _RESERVE,
    )
    if needed > free:
        message = (
            f"{place} needs {format_size(needed)} for the prepared layers, the disk has {format_size(max(0, free))}."
        )
        raise GLMError("overloaded", message, field="offload", limit=free)


def _show(text: str, *, last: bool) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}" + ("\n" if last else ""))
        sys.stderr.flush()
