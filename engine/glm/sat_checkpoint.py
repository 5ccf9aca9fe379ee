"""A SwissArmyTransformer checkpoint as one model: its shape, checked in every rank, and its whole tensors in blocks of rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from engine.errors import GLMError
from engine.glm import foreign
from engine.glm.config import CHAT, PRESETS, Config, Quantization
from engine.glm.parallel import COLUMNS, HALVES, WHOLE, partition
from engine.glm.sat_file import Rows, TorchFile
from engine.glm.sat_layout import INVERSE_FREQUENCIES, PREFIX, Entry, entries, rank_file, rank_shape
from engine.glm.sat_source import Source

BLOCK = 1 << 25  # bytes of a whole tensor that are in memory at a time
_LAYER = re.compile(re.escape(PREFIX) + r"layers\.(\d+)\.(.+)")


class SatCheckpoint:
    """Every tensor of every rank is there with the right shape and dtype once this is made.

    heads: where neither the checkpoint nor a preset of the same shape says it. Errors: bad_model (names file and tensor),
    unsupported (another model, by its name), bad_request (heads).
    """

    def __init__(
        self, source: Source, *, name: str | None = None, heads: int | None = None, positions: int = 2048
    ) -> None:
        self.ranks = [TorchFile(view, origin) for origin, view in source.ranks]
        first = self.ranks[0]
        foreign.check_tensors({key: tensor.shape for key, tensor in first.tensors.items()}, first.origin)
        for file in self.ranks:
            file.check()
        self._shapes, self.layers = self._common_shapes()
        self.config = self._config(name or source.name, name, heads, positions)
        self.groups = entries(self.config)
        for file in self.ranks:
            self._check(file)

    def blocks(self, entry: Entry) -> Iterator[memoryview]:
        """The bytes of a whole tensor in order, some rows at a time. GLMError bad_model where ranks differ in what is the same."""
        key, how = PREFIX + entry.name, partition(entry.name)
        readers = [file.rows(key) for file in self.ranks]
        if how == COLUMNS:
            yield from _side_by_side(readers, entry.shape[0])
        elif how == WHOLE:
            yield from self._same(readers, entry.name)
        else:
            for _ in range(2 if how == HALVES else 1):
                for reader in readers:
                    yield from _some_rows(reader, reader.count // (2 if how == HALVES else 1))

    def _same(self, readers: list[Rows], name: str) -> Iterator[memoryview]:
        wanted = readers[0].take(readers[0].count)
        for file, reader in zip(self.ranks[1:], readers[1:], strict=True):
            if not np.array_equal(reader.take(reader.count), wanted):
                message = f"{file.origin}: {PREFIX}{name} isn't the same as in {self.ranks[0].origin}."
                raise GLMError("bad_model", message, field="input")
        yield memoryview(wanted).cast("B")

    def _common_shapes(self) -> tuple[dict[str, tuple[int, ...]], int]:
        """What most ranks and layers have under a name (of layers, without their number), and the number of layers."""
        counts: dict[str, Counter[tuple[int, ...]]] = {}
        last = -1
        for file in self.ranks:
            for key, tensor in file.tensors.items():
                match = _LAYER.fullmatch(key)
                if match:
                    last = max(last, int(match[1]))
                counts.setdefault(match[2] if match else key, Counter())[tensor.shape] += 1
        if last < 0:
            message = f"{self.ranks[0].origin} has no layers: it is no checkpoint of GLM-130B's kind."
            raise GLMError("bad_model", message, field="input")
        return {name: shapes.most_common(1)[0][0] for name, shapes in counts.items()}, last + 1

    def _shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        shape = self._shapes.get(name)
        file = self.ranks[0].origin
        if shape is None:
            raise GLMError("bad_model", f"{file} lacks the tensor {name}.", field="input")
        if len(shape) != dimensions or 0 in shape:
            raise GLMError("bad_model", f"{file}: {name} has the shape {shape}.", field="input")
        return shape

    def _config(self, called: str, name: str | None, heads: int | None, positions: int) -> Config:
        size = len(self.ranks)
        (hidden,) = self._shape("input_layernorm.weight", 1)
        rows, width = self._shape("attention.query_key_value.weight", 2)
        _, columns = self._shape("mlp.dense_4h_to_h.weight", 2)
        vocabulary, _ = self._shape(f"{PREFIX}word_embeddings.weight", 2)
        bits = None
        if "attention.query_key_value.weight_scale" in self._shapes:
            bits = {hidden: 8, hidden // 2: 4}.get(width)
            columns = columns * 2 if bits == 4 else columns
        ranks = 3 * hidden // rows
        if ranks * rows != 3 * hidden or (width != hidden and bits is None):
            message = f"{self.ranks[0].origin}: attention.query_key_value.weight has the shape {(rows, width)}"
            raise GLMError("bad_model", f"{message}, but LayerNorms have {hidden} numbers.", field="input")
        if ranks != size:
            what = f"lacks {rank_file(size)}" if ranks > size else f"has {size - ranks} files too many"
            where = self.ranks[-1].origin
            message = f"The checkpoint {what}: its tensors are parts for {ranks} ranks, {where} is the last of {size}."
            raise GLMError("bad_model", message, field="input")
        shape = (self.layers, hidden, columns * size, vocabulary * size)
        preset = next(
            (one for one in PRESETS.values() if (one.layers, one.hidden, one.inner, one.vocabulary) == shape), None
        )
        config = Config(
            preset.name if preset and not name else called,
            *shape[:3],
            self._heads(hidden, preset, heads),
            shape[3],
            positions,
            rotary_precision="fp16",
            # It was not trained to chat; a text of questions and answers makes it go on with an answer.
            chat=CHAT,
            quantization=Quantization(bits, 0, shards=size) if bits else None,
        )
        if config.heads % size:
            message = f"{config.heads} heads can't be split over the checkpoint's {size} ranks."
            raise GLMError("bad_request" if heads else "bad_model", message, field="heads")
        return replace(config, num_image_tokens=preset.num_image_tokens) if preset else config

    def _heads(self, hidden: int, preset: Config | None, given: int | None) -> int:
        frequencies = self._shapes.get(INVERSE_FREQUENCIES)
        if frequencies is not None and len(frequencies) == 1 and frequencies[0] and hidden % (2 * frequencies[0]) == 0:
            found = hidden // (2 * frequencies[0])
            origin = f"{INVERSE_FREQUENCIES} of {frequencies[0]} numbers"
        elif preset is not None:
            found, origin = preset.heads, f"the shape of {preset.name}"
        elif given is None:
            message = f"The checkpoint doesn't say how many attention heads its width of {hidden} has: give --heads."
            raise GLMError("bad_request", message, field="heads")
        else:
            if given < 1 or hidden % (2 * given):
                message = f"--heads {given}: {hidden} / heads must be an even whole number."
                raise GLMError("bad_request", message, field="heads")
            return given
        if given not in (None, found):
            message = f"--heads is {given}, but the checkpoint has {found} heads ({origin})."
            raise GLMError("bad_request", message, field="heads")
        return found

    def _check(self, file: TorchFile) -> None:
        wanted = {PREFIX + entry.name: entry for group in self.groups for entry in group}
        ignored = {f"{PREFIX}layers.{layer}.{INVERSE_FREQUENCIES}" for layer in range(self.layers)}
        missing = [key for key in wanted if key not in file.tensors]
        extra = [key for key in file.tensors if key not in wanted and key not in ignored]
        for what, keys in (("lacks", missing), ("has an unexpected", extra)):
            if keys:
                more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
                raise GLMError("bad_model", f"{file.origin} {what} tensor {keys[0]}{more}.", field="input")
        for key, entry in wanted.items():
            found, shape = file.tensors[key], rank_shape(entry, len(self.ranks))
            if found.dtype != entry.dtype:
                message = f"{file.origin}: {key} has the dtype {found.dtype}, not {entry.dtype}."
                raise GLMError("bad_model", message, field="input")
            if found.shape != shape:
                message = f"{file.origin}: {key} has the shape {found.shape}, not {shape} as the other tensors ask for."
                raise GLMError("bad_model", message, field="input")
            file.rows(key)  # says so if the record is missing or cut short


def _some_rows(reader: Rows, count: int) -> Iterator[memoryview]:
    step = max(1, BLOCK // reader.row_bytes)
    for start in range(0, count, step):
        yield memoryview(reader.take(min(step, count - start))).cast("B")


def _side_by_side(readers: list[Rows], count: int) -> Iterator[memoryview]:
    """Rows of parts that were split by columns."""
    width = sum(reader.row_bytes for reader in readers)
    step = max(1, BLOCK // width)
    for start in range(0, count, step):
        rows = min(step, count - start)
        whole = np.empty((rows, width), np.uint8)
        end = 0
        for reader in readers:
            first, end = end, end + reader.row_bytes
            whole[:, first:end] = reader.take(rows)
        yield memoryview(whole).cast("B")
