"""Make a model folder from a SwissArmyTransformer checkpoint of GLM-130B's kind, as it is or in its downloaded chunks.

    convert(Path("glm-130b-sat"), Path("glm-130b"), tokenizer=Path("ice_text.model"))

Weights go from the ranks' files to the folder's safetensors files some rows at a time: what is in memory doesn't depend on the
model. A conversion that was ended goes on where it was when it is started again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from engine.errors import GLMError
from engine.glm.config import Config
from engine.glm.folder_writer import SHARD_SIZE, Report, Written, write_folder
from engine.glm.sat_checkpoint import SatCheckpoint
from engine.glm.sat_source import find
from engine.glm.tokenizer import ICETK_FILE, ICETK_IMAGE_TOKENS, Tokenizer


def convert(
    source: Path | Sequence[Path],
    out: Path,
    *,
    tokenizer: Path | None,
    name: str | None = None,
    heads: int | None = None,
    positions: int = 2048,
    shard_size: int = SHARD_SIZE,
    report: Report | None = None,
    tell: Callable[[str], None] | None = None,
) -> Written:
    """Write the model folder `out`, which must be new, empty, or left by an earlier run that was ended.

    source: what sat_source.find takes. tokenizer: the vocabulary's file to copy; without one the folder can't be served until it
    has a tokenizer.model. `report` hears of the progress, `tell` what a person should know.
    Errors: model_not_found, bad_model (file and tensor by name), unsupported (another model, by its name), bad_request.
    """
    out = Path(out)
    if positions < 1:
        raise GLMError("bad_request", f"positions must be at least 1, not {positions}.", field="positions", limit=1)
    with find([source] if isinstance(source, (str, Path)) else source) as found:
        checkpoint = SatCheckpoint(found, name=name, heads=heads, positions=positions)
        config = checkpoint.config
        if tokenizer is not None:
            config = _with_tokenizer(config, tokenizer)
        return write_folder(
            out,
            config,
            checkpoint.groups,
            checkpoint.blocks,
            source=found.identity,
            tokenizer=tokenizer,
            shard_size=shard_size,
            report=report,
            tell=tell,
        )


def check(source: Path | Sequence[Path], heads: int | None = None) -> Config:
    """Look through a checkpoint without writing anything. Errors: as `convert`."""
    with find([source] if isinstance(source, (str, Path)) else source) as found:
        return SatCheckpoint(found, heads=heads).config


def icetk_vocabulary() -> Path | None:
    """Where the icetk package keeps the vocabulary that it downloaded, if it did."""
    path = Path.home() / ".icetk_models" / ICETK_FILE
    return path if path.is_file() else None


def _with_tokenizer(config: Config, path: Path) -> Config:
    """The config with the number of image tokens that belongs to a vocabulary. Errors: bad_model, model_not_found."""
    if path.is_dir():
        raise GLMError("bad_request", f"{path} is a folder: give the vocabulary's file.", field="tokenizer")
    icetk = path.name == ICETK_FILE or config.num_image_tokens == ICETK_IMAGE_TOKENS
    config = replace(config, num_image_tokens=ICETK_IMAGE_TOKENS if icetk else 0)
    tokenizer = Tokenizer.load(path, config.num_image_tokens)
    if tokenizer.vocabulary_size > config.vocabulary:
        message = (
            f"{path} has {tokenizer.vocabulary_size} tokens, but the checkpoint's embedding {config.vocabulary} rows:"
        )
        raise GLMError("bad_model", f"{message} they don't belong together.", field="tokenizer")
    return config
