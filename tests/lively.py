"""A tiny random model that is undecided: sampling gives many different tokens, and ends now and then."""

from __future__ import annotations

from pathlib import Path


def make_lively_model(
    folder: Path, vocabulary_file: Path, *, seed: int = 7, poison: bool = False, positions: int = 256
) -> Path:
    """A model folder. poison: its last LayerNorm has a nan, so that every logit is one."""
    import torch

    from engine.glm.config import CHAT, Config
    from engine.glm.model import GLM, initialise
    from engine.glm.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(vocabulary_file)
    # 12 rows more than the vocabulary: the padding of real checkpoints
    model = GLM(Config("lively", 3, 64, 96, 4, tokenizer.vocabulary_size + 12, positions, chat=CHAT))
    generator = torch.Generator().manual_seed(seed)
    initialise(model, generator)
    with torch.no_grad():
        model.word_embeddings.weight.normal_(0.0, 0.2, generator=generator)
        for layer in model.layers:  # context matters, so that a wrong mask or cache shows
            layer.attention.query_key_value.weight.normal_(0.0, 0.3, generator=generator)
            layer.attention.query_key_value.bias.normal_(0.0, 0.1, generator=generator)
            layer.attention.dense.weight.normal_(0.0, 0.3, generator=generator)
        if poison:
            model.final_layernorm.weight[3] = float("nan")
    save(model, folder, vocabulary_file)
    return folder


def save(model, folder: Path, vocabulary_file: Path) -> None:
    """As checkpoint.save, which rightly refuses the poisoned one."""
    import shutil

    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()},
        folder / "model.safetensors",
    )
    model.config.save(folder)
    shutil.copyfile(vocabulary_file, folder / "tokenizer.model")
