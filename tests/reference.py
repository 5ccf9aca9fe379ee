"""Read the recorded reference: the model behind fixtures of GLM-130B's original code (see --reference)."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from engine.glm.config import Config
from engine.glm.model import GLM


def load_config(folder: Path) -> Config:
    """The config of the recorded model."""
    values = json.loads((folder / "config.json").read_text())
    return Config(
        "reference",
        values["num_layers"],
        values["hidden_size"],
        values["inner_hidden_size"],
        values["num_attention_heads"],
        values["vocab_size"],
        values["max_sequence_length"],
        values["layernorm_epsilon"],
        rotary_precision="fp16",
    )


def load_model(folder: Path, checkpoint: str = "tiny-mp1") -> GLM:
    """The recorded weights of a one-rank checkpoint, upcast to fp32."""
    base = folder / "checkpoints" / checkpoint
    file = base / (base / "latest").read_text() / "mp_rank_00_model_states.pt"
    tensors = torch.load(file, map_location="cpu", weights_only=True)["module"]
    model = GLM(load_config(folder))
    state = {
        name.removeprefix("transformer."): tensor.float()
        for name, tensor in tensors.items()
        if not name.endswith("inv_freq")
    }
    model.load_state_dict(state)
    return model.eval()
