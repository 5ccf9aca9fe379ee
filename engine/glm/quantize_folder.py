"""Write a model folder again with quantised weights: what quantising while loading makes of them, to the bit.

    quantize_folder(Path("glm-130b"), Path("glm-130b-int4"), "int4")

Some rows of one tensor are in memory at a time. The scales of a row belong to columns that lie side by side, so they are those
that tensor parallel ranks would find for their own parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.errors import GLMError
from engine.glm.checkpoint import Weights, check_finite, weight_files
from engine.glm.config import Config, check_split
from engine.glm.folder_writer import SHARD_SIZE, Report, Written, write_folder
from engine.glm.layer_files import TYPES
from engine.glm.quantize import quantize_weight
from engine.glm.sat_layout import entries
from engine.glm.tokenizer import VOCABULARY_FILE

BLOCK = 1 << 24  # numbers of a tensor that are in memory at a time, about


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor to be written; dtype as safetensors names it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return TYPES[self.dtype].itemsize * math.prod(self.shape)


def quantize_folder(
    folder: Path,
    out: Path,
    kind: str,
    *,
    tensor_parallel: int = 1,
    shard_size: int = SHARD_SIZE,
    report: Report | None = None,
    tell: Callable[[str], None] | None = None,
) -> Written:
    """Write `out`, a new folder, from a folder of plain weights. An interrupted run goes on when it is started again.

    kind: a name of config.QUANTIZATIONS. tensor_parallel: the ranks that the weights must be fit for; without column groups
    each rank's part of a row has a scale of its own, as in GLM-130B's own code.
    Errors: model_not_found, bad_model, unsupported (quantised already, or what doesn't come out even), bad_request.
    """
    if tensor_parallel < 1:
        message = f"tensor_parallel must be at least 1, not {tensor_parallel}."
        raise GLMError("bad_request", message, field="tensor_parallel", limit=1)
    plain = Config.load(folder)
    if plain.quantization is not None:
        raise GLMError("unsupported", f"{folder} is quantised already, as {plain.quantization.name}.", field="model")
    if out.resolve() == folder.resolve():
        raise GLMError("bad_request", f"{out} is the model itself: give a new folder.", field="out")
    config = plain.quantized(kind, tensor_parallel)
    check_split(config, tensor_parallel)
    tokenizer = folder / VOCABULARY_FILE
    source = _Source(Weights(folder), plain, config)
    return write_folder(
        out,
        config,
        source.groups,
        source.blocks,
        source=source.identity,
        tokenizer=tokenizer if tokenizer.is_file() else None,
        shard_size=shard_size,
        report=report,
        tell=tell,
    )


class _Source:
    """The tensors of the quantised folder, made of those of the plain one. Error: bad_model for one that is missing or wrong."""

    def __init__(self, weights: Weights, plain: Config, config: Config) -> None:
        self._weights = weights
        self._bits = config.quantization.bits if config.quantization else 0
        self._groups: dict[str, int] = {}  # scales a row, by the matrix's name
        self._scales: dict[str, torch.Tensor] = {}  # of the matrix that was quantised last: they are written behind it
        wanted = {entry.name: entry for group in entries(plain) for entry in group}
        for what, names in (
            ("lacks the", wanted.keys() - weights.names),
            ("has an unexpected", weights.names - wanted.keys()),
        ):
            if names:
                raise GLMError("bad_model", f"{weights.folder} {what} tensor {min(names)}.", field="model")
        for entry in wanted.values():
            dtype, shape = weights.described(entry.name)
            if shape != entry.shape or dtype not in TYPES or not TYPES[dtype].is_floating_point:
                message = f"{entry.name} is {dtype} {shape}, not floats {entry.shape} as config.json asks for."
                raise GLMError("bad_model", message, field="model")
        self.groups: list[list[Stored]] = []
        for group in entries(config):
            self.groups.append([])
            for entry in group:
                # What isn't quantised stays as it is stored.
                kept = not entry.name.endswith("_scale") and entry.dtype != "I8"
                dtype = weights.described(entry.name)[0] if kept else entry.dtype
                self.groups[-1].append(Stored(entry.name, dtype, entry.shape))
                if entry.name.endswith("_scale"):
                    self._groups[entry.name.removesuffix("_scale")] = entry.shape[1]

    @property
    def identity(self) -> list[tuple[str, int, int]]:
        """Names, sizes and times of change of the files."""
        found = [(path.name, path.stat()) for path in weight_files(self._weights.folder)]
        return [(name, status.st_size, status.st_mtime_ns) for name, status in found]

    def blocks(self, entry: Stored) -> Iterator[memoryview]:
        """The bytes of a tensor to be written. Error: bad_model for numbers that aren't finite in fp16, in a matrix."""
        if entry.name in self._scales:
            yield _bytes(self._scales.pop(entry.name))
            return
        scales = []
        for rows in self._weights.blocks(entry.name, BLOCK):
            if entry.dtype == "I8":
                rows, scale = quantize_weight(rows, self._bits, self._groups[entry.name])
                check_finite(entry.name, scale)
                scales.append(scale)
            yield _bytes(rows)
        if scales:
            self._scales[f"{entry.name}_scale"] = torch.cat(scales)
        self._weights.release()


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())
