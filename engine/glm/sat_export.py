"""Write a model folder as a SwissArmyTransformer checkpoint, for any number of tensor parallel ranks.

    export(Path("glm-130b"), Path("glm-130b-sat"), tensor_parallel=8)

The files are those of GLM-130B's own convert_tp.py, to the bit of every tensor: fp16, or 8 or 4 bits that each rank's part was
quantised to by itself. They are written tensor by tensor; one rank's part of one tensor is in memory at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.errors import GLMError
from engine.glm.checkpoint import Weights
from engine.glm.config import Config, check_split
from engine.glm.parallel import Ranks
from engine.glm.quantize import quantize_weight
from engine.glm.sat_layout import INVERSE_FREQUENCIES, PREFIX, Entry, entries, rank_file, rank_shape
from engine.glm.sat_pickle import write_pickle
from engine.glm.size import format_size

ALIGNMENT = 64  # of a tensor in its file, as torch has it, so that the file can be mapped
_ZIP64 = 1 << 30  # records from this size on have the larger header
_DTYPES = {"F16": torch.float16, "I8": torch.int8}
Report = Callable[[str, int, int], None]  # what is being done, bytes done, bytes in all


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished checkpoint."""

    folder: Path
    ranks: int
    nbytes: int  # of all tensors in all ranks


def export(
    folder: Path,
    out: Path,
    tensor_parallel: int,
    quantize: str | None = None,
    iteration: int = 100,
    *,
    report: Report | None = None,
) -> Exported:
    """Write `out`/latest and `out`/ITERATION/mp_rank_RR_model_states.pt; `out` appears whole or not at all.

    quantize: "int8" or "int4", for plain weights. Errors: model_not_found, bad_model (a tensor that is missing, mis-shaped or not
    finite in fp16), bad_request, unsupported (what the format can't express).
    """
    if tensor_parallel < 1 or iteration < 0:
        name, value, least = ("iteration", iteration, 0) if iteration < 0 else ("tensor_parallel", tensor_parallel, 1)
        raise GLMError("bad_request", f"{name} must be at least {least}, not {value}.", field=name, limit=least)
    if quantize not in (None, "int8", "int4"):
        message = f"SwissArmyTransformer checkpoints are fp16, int8 or int4, not {quantize}."
        raise GLMError("unsupported", message, field="quantize")
    config = Config.load(folder)
    stored = config.quantization
    config = config.quantized(quantize, tensor_parallel)
    _check_expressible(config, tensor_parallel)
    weights = Weights(folder)
    wanted = [entry for group in entries(config) for entry in group]
    _check_names(weights, wanted, stored is not None)
    records = _records(config, wanted, tensor_parallel)
    nbytes = tensor_parallel * sum(record.nbytes for record in records)
    with _made(Path(out), nbytes) as new:
        (new / str(iteration)).mkdir()
        done = 0
        for rank in range(tensor_parallel):
            source = _RankTensors(weights, config, Ranks(rank, tensor_parallel), requantize=stored is None)
            with _TorchFile(new / str(iteration) / rank_file(rank)) as file:
                file.describe(records)
                for number, record in enumerate(records):
                    file.write(f"data/{number}", source.bytes(record))
                    weights.release()
                    done += record.nbytes
                    if report:
                        report(f"writes rank {rank}", done, nbytes)
        (new / "latest").write_text(str(iteration), encoding="utf-8")
    return Exported(Path(out), tensor_parallel, nbytes)


@dataclass(frozen=True, slots=True)
class _Record:
    """A tensor in every rank's file; `name` is ours."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return Entry(self.name, self.dtype, self.shape).nbytes


def _records(config: Config, wanted: list[Entry], size: int) -> list[_Record]:
    """In the original's order: the rotary frequencies of a layer come first in its attention."""
    records = []
    for entry in wanted:
        if entry.name.endswith("attention.query_key_value.weight"):
            layer = entry.name.removesuffix("attention.query_key_value.weight")
            records.append(_Record(layer + INVERSE_FREQUENCIES, "F16", (config.head_dim // 2,)))
        records.append(_Record(entry.name, entry.dtype, rank_shape(entry, size)))
    return records


def _check_expressible(config: Config, size: int) -> None:
    """GLMError unsupported for what a checkpoint of so many ranks can't hold."""
    check_split(config, size)
    quantization = config.quantization
    if quantization is None:
        return
    if quantization.group:
        message = f"SwissArmyTransformer checkpoints have one scale a row, no groups of columns as {quantization.name}."
        raise GLMError("unsupported", message, field="quantize")
    if size % quantization.shards:
        message = (
            f"The weights were quantised in {quantization.shards} parts: a rank of {size} would have more than one scale a row."
            f" Export {quantization.shards} ranks or a multiple, or from the weights before they were quantised."
        )
        raise GLMError("unsupported", message, field="tensor_parallel", limit=quantization.shards)
    if quantization.bits == 4 and (config.hidden // size % 2 or config.inner // size % 2):
        message = f"int4 stores two columns in a byte: {size} ranks would have an odd number of columns."
        raise GLMError("unsupported", message, field="tensor_parallel")


def _check_names(weights: Weights, wanted: list[Entry], quantized: bool) -> None:
    names = {entry.name for entry in wanted if quantized or not entry.name.endswith(".weight_scale")}
    for what, which in (("lacks the", names - weights.names), ("has an unexpected", weights.names - names)):
        if which:
            raise GLMError("bad_model", f"{weights.folder} {what} tensor {min(which)}.", field="model")


class _RankTensors:
    """What a rank's file holds under our names."""

    def __init__(self, weights: Weights, config: Config, ranks: Ranks, *, requantize: bool) -> None:
        self._weights, self._config, self._ranks = weights, config, ranks
        self._requantize = requantize and config.quantization is not None
        self._scales: dict[str, Tensor] = {}  # of the matrix that was quantised last: they are written behind it

    def bytes(self, record: _Record) -> memoryview:
        tensor = self._tensor(record).contiguous()
        if tensor.shape != record.shape or tensor.dtype != _DTYPES[record.dtype]:
            message = (
                f"{record.name} is {tensor.dtype} {tuple(tensor.shape)} of a rank, not {record.dtype} {record.shape}"
            )
            raise GLMError("bad_model", f"{message} as config.json asks for.", field="model")
        return memoryview(tensor.view(-1).view(torch.uint8).numpy())

    def _tensor(self, record: _Record) -> Tensor:
        if record.name.endswith(INVERSE_FREQUENCIES):
            # In single precision, then rounded: as the original makes it.
            exponents = torch.arange(0, self._config.head_dim, 2).float() / self._config.head_dim
            return (1.0 / 10000**exponents).half()
        if record.name in self._scales:
            return self._scales.pop(record.name)
        part = self._weights.part(record.name, self._ranks)
        if record.name.endswith(".weight_scale"):
            return part.flatten()
        if record.dtype == "I8" and not self._requantize:
            return part
        part = part.half()
        # In blocks: the check makes copies.
        if not all(torch.isfinite(block).all() for block in part.flatten().split(1 << 22)):
            raise GLMError("bad_model", f"{record.name} is not finite in fp16: nothing was exported.", field="model")
        if record.dtype == "I8":
            assert self._config.quantization is not None
            part, scales = quantize_weight(part, self._config.quantization.bits)
            self._scales[f"{record.name}_scale"] = scales.flatten()
        return part


class _TorchFile(contextlib.AbstractContextManager):
    """A file as torch.save writes it: a zip archive of uncompressed records, written from front to back."""

    def __init__(self, path: Path) -> None:
        self._folder = path.stem
        self._file = path.open("w+b")
        self._archive = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)

    def describe(self, records: list[_Record]) -> None:
        """The records that come before the tensors'."""
        self.write("data.pkl", write_pickle([(PREFIX + record.name, record.dtype, record.shape) for record in records]))
        self.write("byteorder", b"little")
        self.write("version", b"3\n")

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Add a record, its bytes aligned."""
        info = zipfile.ZipInfo(f"{self._folder}/{name}")  # of 1980: equal models give equal files
        info.file_size = len(data)
        zip64 = info.file_size >= _ZIP64
        start = self._file.tell() + 30 + len(info.filename.encode()) + (20 if zip64 else 0) + 4
        padding = -start % ALIGNMENT
        info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
        with self._archive.open(info, "w", force_zip64=zip64) as record:
            record.write(data)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if kind is not None:  # the file is thrown away, and what went wrong is known
                with contextlib.suppress(OSError, ValueError):
                    self._archive.close()
                return
            self._archive.close()
            self._file.flush()
            os.fsync(self._file.fileno())


@contextlib.contextmanager
def _made(out: Path, nbytes: int) -> Iterator[Path]:
    """A hidden folder beside `out`, which takes that name at the end. What an export that was killed left there is removed."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise GLMError("bad_request", f"{out} is there already: give a new folder.", field="out")
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.resolve().with_name(f".{out.resolve().name}.export")
    new.mkdir(exist_ok=True)
    lock = os.open(new, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise GLMError("bad_request", f"Another export writes to {out} at present.", field="out") from error
        try:
            _empty(new)
            needed, free = nbytes + (1 << 20), shutil.disk_usage(new).free
            if needed > free:
                message = f"{out} needs {format_size(needed)}, its disk has {format_size(free)} free."
                raise GLMError("bad_request", message, field="out", limit=free)
            yield new
            new.replace(out)
        except BaseException:
            shutil.rmtree(new)
            raise
    finally:
        os.close(lock)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
