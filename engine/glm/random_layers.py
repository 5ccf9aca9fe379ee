"""Layers of random numbers in files, of any shape and quantisation: for measuring where there is no checkpoint.

The numbers are such that states stay finite and nothing repeats, from layer to layer or within one; they say nothing. The
files are those of prepared layers, so reading and computing are as with real ones.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch
from torch import Tensor

from engine.errors import GLMError
from engine.glm.config import Config
from engine.glm.layer_files import file_size, write
from engine.glm.layer_stream import Form
from engine.glm.offload import OffloadedGLM
from engine.glm.size import format_size

RESERVE = 4 << 30  # bytes of the disk that are left free
_BLOCK = 1 << 24  # numbers at a time


def random_layers(folder: Path, config: Config, form: Form, count: int) -> Iterator[tuple[Path, bool]]:
    """Write so many files, one after the other: path, and whether it was written now; whole ones that are there stay.

    Error: overloaded if the disk has no room for them, with the number of layers that it has room for.
    """
    stored = stored_form(config, form)
    size = file_size(dtype.itemsize * math.prod(shape) for dtype, shape in stored.values())
    name = f"{config.name}-{config.quantization.name if config.quantization else 'fp16'}"
    paths = [folder / f"{name}-{number:05d}.weights" for number in range(count)]
    missing = [path for path in paths if not path.exists()]
    room = shutil.disk_usage(folder).free - RESERVE
    if len(missing) * size > room:
        fit = max(0, room // size) + count - len(missing)
        message = (
            f"{count} layers of {format_size(size)} don't fit on the disk of {folder}: {fit} would, with "
            f"{format_size(RESERVE)} left free."
        )
        raise GLMError("overloaded", message, field="layers", limit=fit)
    for number, path in enumerate(paths):
        if path in missing:
            generator = numpy.random.Generator(numpy.random.SFC64(number))
            tensors = {name: torch.empty(shape, dtype=dtype) for name, (dtype, shape) in stored.items()}
            for name, tensor in tensors.items():
                fill(name, tensor, generator)
            try:
                write(path, tensors)
            except OSError as error:
                raise GLMError("overloaded", f"{path}: {error.strerror}.", field="folder") from error
        yield path, path in missing


def stored_form(config: Config, form: Form) -> Form:
    """Of the files: quantised layers as they compute, plain ones in fp16 as model folders have them."""
    if config.quantization is not None:
        return form
    return {name: (torch.float16, shape) for name, (_, shape) in form.items()}


def fill(name: str, tensor: Tensor, generator: numpy.random.Generator) -> None:
    """Ones for LayerNorms, zeros for biases, one small number for scales; else bytes as they come, or floats from bytes."""
    if name.endswith("bias"):
        tensor.zero_()
    elif name.endswith("layernorm.weight"):
        tensor.fill_(1)
    elif "scale" in name:
        tensor.fill_(1e-4)
    else:
        flat = tensor.view(-1)
        for part in (flat if tensor.is_floating_point() else flat.view(torch.int8)).split(_BLOCK):
            words = generator.integers(0, 2**64 - 1, size=-(-len(part) // 8), dtype=numpy.uint64, endpoint=True)
            part.copy_(torch.from_numpy(words.view(numpy.int8))[: len(part)])
            if tensor.is_floating_point():
                part.mul_(1 / (128 * math.sqrt(tensor.shape[-1])))


def random_ends(model: OffloadedGLM) -> None:
    """Embedding, in 16 bits as offload.load has it of a model folder in fp16, and last LayerNorm, in memory."""
    model.make_ends(torch.float16 if model.dtype.itemsize > 2 else model.dtype)
    generator = numpy.random.Generator(numpy.random.SFC64())
    for name, parameter in model.named_parameters():
        if not parameter.is_meta:
            fill(name, parameter.data, generator)
