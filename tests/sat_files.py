"""Small SwissArmyTransformer checkpoints of random weights, split by a splitter of the tests' own."""

from __future__ import annotations

import tarfile
from pathlib import Path

import torch
from torch import Tensor

VOCABULARY, HIDDEN, INNER, HEADS = 1920, 64, 96, 4
MATRICES = ("query_key_value.weight", "attention.dense.weight", "dense_h_to_4h.weight", "dense_4h_to_h.weight")


def whole_tensors(
    layers: int = 2, hidden: int = HIDDEN, inner: int = INNER, vocabulary: int = VOCABULARY, seed: int = 1
) -> dict[str, Tensor]:
    """Random fp16 tensors of a model by their SwissArmyTransformer names."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).half()

    tensors = {"transformer.word_embeddings.weight": random(vocabulary, hidden)}
    for layer in range(layers):
        start = f"transformer.layers.{layer}"
        tensors |= {
            f"{start}.input_layernorm.weight": random(hidden),
            f"{start}.input_layernorm.bias": random(hidden),
            f"{start}.attention.query_key_value.weight": random(3 * hidden, hidden),
            f"{start}.attention.query_key_value.bias": random(3 * hidden),
            f"{start}.attention.dense.weight": random(hidden, hidden),
            f"{start}.attention.dense.bias": random(hidden),
            f"{start}.post_attention_layernorm.weight": random(hidden),
            f"{start}.post_attention_layernorm.bias": random(hidden),
            f"{start}.mlp.dense_h_to_4h.weight": random(2 * inner, hidden),
            f"{start}.mlp.dense_h_to_4h.bias": random(2 * inner),
            f"{start}.mlp.dense_4h_to_h.weight": random(hidden, inner),
            f"{start}.mlp.dense_4h_to_h.bias": random(hidden),
        }
    return tensors | {
        "transformer.final_layernorm.weight": random(hidden),
        "transformer.final_layernorm.bias": random(hidden),
    }


def inverse_frequencies(head_dim: int) -> Tensor:
    return torch.tensor([10000 ** (-2 * number / head_dim) for number in range(head_dim // 2)]).half()


def split(tensors: dict[str, Tensor], ranks: int, bits: int | None = None, heads: int | None = HEADS) -> list[dict]:
    """Each rank's tensors; quantised after the split; with the rotary frequencies of `heads` heads, if given."""
    parts: list[dict[str, Tensor]] = [{} for _ in range(ranks)]
    for name, tensor in tensors.items():
        for rank, part in enumerate(parts):
            part[name] = piece(name, tensor, rank, ranks)
            if bits and name.endswith(MATRICES):
                part[name], part[f"{name}_scale"] = quantize(part[name], bits)
            if heads and name.endswith("attention.query_key_value.weight"):
                key = name.replace("query_key_value.weight", "rotary_emb.inv_freq")
                part[key] = inverse_frequencies(tensor.shape[1] // heads)
    return parts


def piece(name: str, tensor: Tensor, rank: int, ranks: int) -> Tensor:
    if name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")):
        width = tensor.shape[1] // ranks
        return tensor[:, rank * width : (rank + 1) * width].clone()
    if "dense_h_to_4h" in name:
        half, length = tensor.shape[0] // 2, tensor.shape[0] // 2 // ranks
        first = slice(rank * length, (rank + 1) * length)
        return torch.cat((tensor[:half][first], tensor[half:][first]))
    if "word_embeddings" in name or "query_key_value" in name:
        length = tensor.shape[0] // ranks
        return tensor[rank * length : (rank + 1) * length].clone()
    return tensor.clone()


def quantize(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """int8 numbers (two in a byte for 4 bits) and fp16 scales of the rows."""
    scale = (weight.abs().amax(dim=1).float() / (127 if bits == 8 else 7)).half()
    numbers = (weight.float() / scale.float()[:, None]).half().float().round().to(torch.int32)
    if bits == 4:
        numbers = (numbers[:, ::2] & 15) * 16 + (numbers[:, 1::2] & 15)
        numbers = torch.where(numbers > 127, numbers - 256, numbers)
    return numbers.to(torch.int8), scale


def write(folder: Path, parts: list[dict], iteration: str = "100") -> Path:
    """Write ranks' tensors as a checkpoint."""
    (folder / iteration).mkdir(parents=True)
    for rank, tensors in enumerate(parts):
        torch.save({"module": tensors}, rank_file(folder, rank, iteration))
    (folder / "latest").write_text(iteration)
    return folder


def rank_file(folder: Path, rank: int, iteration: str = "100") -> Path:
    return folder / iteration / f"mp_rank_{rank:02}_model_states.pt"


def cut(folder: Path, archive: Path, size: int, names: list[str], format: int = tarfile.GNU_FORMAT) -> list[Path]:
    """Pack a folder and cut the archive in chunks of so many bytes, named `archive` + each of `names` in turn."""
    with tarfile.open(archive, "w", format=format) as tar:
        tar.add(folder, arcname=folder.name)
    data = archive.read_bytes()
    archive.unlink()
    starts = range(0, len(data), size)
    assert len(starts) <= len(names)
    chunks = []
    for start, name in zip(starts, names, strict=False):
        chunks.append(archive.with_name(archive.name + name))
        chunks[-1].write_bytes(data[start : start + size])
    return chunks
