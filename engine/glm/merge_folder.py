"""Write the model that an adapter and its base are together as a plain model folder: W + (alpha / rank) B A.

    merge_folder(Path("ours-adapter"), Path("ours"))

Sums are in fp32 and rounded once, to the type that the base's weight is stored in. Some rows of one weight are in memory at a
time, beside the adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from engine.errors import GLMError
from engine.glm.adapter import Adapter, read_adapter
from engine.glm.checkpoint import Weights, adapter_weights, check_names, weight_files
from engine.glm.config import Config, base_folder, check_base
from engine.glm.folder_writer import SHARD_SIZE, Report, Written, write_folder
from engine.glm.layer_files import TYPES
from engine.glm.quantize_folder import BLOCK, Stored
from engine.glm.sat_layout import MATRICES, entries
from engine.glm.tokenizer import VOCABULARY_FILE


def merge_folder(
    folder: Path,
    out: Path,
    *,
    shard_size: int = SHARD_SIZE,
    report: Report | None = None,
    tell: Callable[[str], None] | None = None,
) -> Written:
    """Write `out`, a new folder, from an adapter folder. An interrupted run goes on when it is started again.

    Errors: model_not_found, bad_model (also for a weight that isn't finite in the base's type), unsupported (a base of quantised
    weights), bad_request.
    """
    adapter = read_adapter(folder)
    if adapter is None:
        raise GLMError("bad_request", f"{folder} is no adapter: there is nothing to merge.", field="model")
    config, base = Config.load(folder), base_folder(folder)
    if config.quantization is not None:
        message = (
            f"The base in {base} is quantised, as {config.quantization.name}: a merged weight would have to be rounded to that "
            "again, which loses most of what the adapter adds. Serve the adapter as it is, or merge with the plain weights."
        )
        raise GLMError("unsupported", message, field="model")
    source = _Source(folder, base, config, adapter)
    check_base(folder)  # last, for it reads all weights
    return write_folder(
        out,
        config,
        source.groups,
        source.blocks,
        source=source.identity,
        tokenizer=folder / VOCABULARY_FILE,
        shard_size=shard_size,
        report=report,
        tell=tell,
    )


class _Source:
    """The tensors of the merged folder. Error: bad_model for one that is missing or wrong, in the base or in the adapter."""

    def __init__(self, folder: Path, base: Path, config: Config, adapter: Adapter) -> None:
        self._weights, self._lora = Weights(base), adapter.lora
        groups = entries(config)
        wanted = {entry.name: entry.shape for group in groups for entry in group}
        check_names(self._weights, set(wanted))
        self.groups = [
            [Stored(entry.name, self._type(entry.name, entry.shape), entry.shape) for entry in group]
            for group in groups
        ]
        self._updates = self._read(folder, wanted)
        self.identity: list[Any] = [adapter.sha256(folder)]
        self.identity += [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in weight_files(base)]

    def _type(self, name: str, shape: tuple[int, ...]) -> str:
        dtype, found = self._weights.described(name)
        if found != shape or dtype not in TYPES or not TYPES[dtype].is_floating_point:
            message = f"{name} is {dtype} {found}, not floats {shape} as config.json asks for."
            raise GLMError("bad_model", message, field="model")
        return dtype

    def _read(self, folder: Path, wanted: dict[str, tuple[int, ...]]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """(A, (alpha / rank) B) by the name of the matrix that they belong to."""
        weights, rank = adapter_weights(folder), self._lora.rank
        names = [name for name in wanted if name.removesuffix(".weight").endswith(MATRICES) and name.endswith("weight")]
        names = [name for name in names if name.split(".")[-2] in self._lora.targets]
        pairs = {name: tuple(name.removesuffix("weight") + kind for kind in ("lora_a", "lora_b")) for name in names}
        check_names(weights, {kind for pair in pairs.values() for kind in pair})
        found = {}
        for name, pair in pairs.items():
            rows, columns = wanted[name]
            a, b = map(weights.part, pair)
            for kind, tensor, shape in zip(pair, (a, b), ((rank, columns), (rows, rank)), strict=True):
                if tensor.shape != shape:
                    message = f"{kind} has the shape {tuple(tensor.shape)}, the config asks for {shape}."
                    raise GLMError("bad_model", message, field="model")
            found[name] = a.float(), b.float() * self._lora.scale
        return found

    def blocks(self, entry: Stored) -> Iterator[memoryview]:
        """The bytes of a tensor to be written. Error: bad_model for a number that isn't finite."""
        update = self._updates.get(entry.name)
        first = 0
        for rows in self._weights.blocks(entry.name, BLOCK):
            if update is not None:
                a, b = update
                rows = (rows.float() + b[first : first + len(rows)] @ a).to(rows.dtype)
                first += len(rows)
            if not torch.isfinite(rows).all():
                raise GLMError("bad_model", f"{entry.name} is not finite in {entry.dtype}.", field="model")
            yield memoryview(rows.contiguous().view(-1).view(torch.uint8).numpy())
        self._weights.release()
