"""Which tensors a SwissArmyTransformer checkpoint of GLM-130B's kind has, in its own order.

Their names are ours (model.GLM's) behind `transformer.`. Beyond them every layer may have `rotary_emb.inv_freq`, which nothing
reads. Of quantised checkpoints each rank quantised its own part, so the scales of a rank are one column.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engine.glm.config import Config, Quantization
from engine.glm.parallel import COLUMNS, WHOLE, partition

PREFIX = "transformer."
MATRICES = ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
INVERSE_FREQUENCIES = "attention.rotary_emb.inv_freq"


def rank_file(rank: int) -> str:
    return f"mp_rank_{rank:02}_model_states.pt"


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a model folder: our name, dtype as safetensors names it, whole shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def itemsize(self) -> int:
        return {"F16": 2, "I8": 1}[self.dtype]

    @property
    def nbytes(self) -> int:
        size = self.itemsize
        for length in self.shape:
            size *= length
        return size


def entries(config: Config) -> list[list[Entry]]:
    """All tensors of a model folder in fp16 or quantised per row: the embedding, each layer, the last LayerNorm."""
    groups = [[Entry("word_embeddings.weight", "F16", (config.vocabulary, config.hidden))]]
    groups += [list(_layer(config, number)) for number in range(config.layers)]
    groups.append([Entry(f"final_layernorm.{kind}", "F16", (config.hidden,)) for kind in ("weight", "bias")])
    return groups


def _layer(config: Config, number: int) -> Iterator[Entry]:
    hidden, inner = config.hidden, config.inner
    start = f"layers.{number}"
    yield from _norm(f"{start}.input_layernorm", hidden)
    yield from _matrix(f"{start}.attention.query_key_value", 3 * hidden, hidden, config.quantization, False)
    yield from _matrix(f"{start}.attention.dense", hidden, hidden, config.quantization, True)
    yield from _norm(f"{start}.post_attention_layernorm", hidden)
    yield from _matrix(f"{start}.mlp.dense_h_to_4h", 2 * inner, hidden, config.quantization, False)
    yield from _matrix(f"{start}.mlp.dense_4h_to_h", hidden, inner, config.quantization, True)


def _norm(name: str, hidden: int) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", "F16", (hidden,))
    yield Entry(f"{name}.bias", "F16", (hidden,))


def _matrix(
    name: str, rows: int, columns: int, quantization: Quantization | None, split_columns: bool
) -> Iterator[Entry]:
    if quantization is None:
        yield Entry(f"{name}.weight", "F16", (rows, columns))
    else:
        yield Entry(f"{name}.weight", "I8", (rows, columns * quantization.bits // 8))
        yield Entry(f"{name}.weight_scale", "F16", (rows, quantization.groups(columns, split_columns)))
    yield Entry(f"{name}.bias", "F16", (rows,))


def rank_shape(entry: Entry, size: int) -> tuple[int, ...]:
    """Of one rank's part among `size` in its own file, where scales have one dimension."""
    how = partition(entry.name)
    if entry.name.endswith(".weight_scale"):
        return (entry.shape[0] if how == COLUMNS else entry.shape[0] // size,)
    if how == WHOLE:
        return entry.shape
    if how == COLUMNS:
        return (entry.shape[0], entry.shape[1] // size)
    return (entry.shape[0] // size, *entry.shape[1:])
