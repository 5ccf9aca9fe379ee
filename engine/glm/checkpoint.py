"""Read and write a model folder's weights: safetensors, one file or several, names as in GLM-130B without its prefix."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from engine.errors import GLMError
from engine.glm.config import Config
from engine.glm.model import GLM


def load(folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> GLM:
    """The model of a folder, in evaluation mode. One tensor beyond the model itself is in memory at a time.

    Errors: model_not_found, bad_model (a missing, extra, mis-shaped or unreadable tensor, by name).
    """
    config = Config.load(folder)
    model = GLM(config, device=device, dtype=dtype)
    wanted = dict(model.named_parameters())
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
                    if name not in wanted:
                        raise GLMError("bad_model", f"{path.name} has an unexpected tensor {name}.", field="model")
                    parameter, tensor = wanted.pop(name), file.get_tensor(name)
                    if tensor.shape != parameter.shape:
                        shapes = f"{tuple(tensor.shape)}, the config asks for {tuple(parameter.shape)}"
                        raise GLMError("bad_model", f"{path.name}: {name} has the shape {shapes}.", field="model")
                    with torch.no_grad():
                        parameter.copy_(tensor)
        except SafetensorError as error:
            raise GLMError(
                "bad_model", f"{path.name} is not a whole safetensors file ({error}).", field="model"
            ) from error
    if wanted:
        raise GLMError("bad_model", f"{folder} lacks {len(wanted)} tensors, {next(iter(wanted))} first.", field="model")
    return model.eval()


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder in order. Error: bad_model if there is none."""
    paths = sorted(Path(folder).glob("model*.safetensors"))
    if not paths:
        raise GLMError("bad_model", f"{folder} has no model*.safetensors.", field="model")
    return paths


def save(
    model: GLM, folder: Path, *, tokenizer: Path, dtype: torch.dtype = torch.float16, about: dict | None = None
) -> None:
    """Write a model folder that `load` and the server read. Whole or not at all: it is moved into place at the end.

    tokenizer: the vocabulary file to copy; about: a few words for the file's own metadata (string to string).
    Error: bad_model if a weight is not finite in `dtype`.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[name] = parameter.detach().to("cpu", dtype).contiguous()
        if not torch.isfinite(tensors[name]).all():
            raise GLMError("bad_model", f"{name} is not finite in {dtype}: nothing was saved.", field="model")
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (about or {}).items()}
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new = Path(temporary)
        save_file(tensors, new / "model.safetensors", metadata={"format": "pt", **metadata})
        model.config.save(new)
        shutil.copyfile(tokenizer, new / "tokenizer.model")
        folder.mkdir(exist_ok=True)
        # config.json last: a folder without it is no model folder (see config.resolve_model)
        for name in ("tokenizer.model", "model.safetensors", "config.json"):
            (new / name).chmod(0o644)  # temporary files are the owner's alone; a model folder is read by servers
            (new / name).replace(folder / name)
