"""What all tests share: options, the tiny random model, the embedded model."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

# Many small processes on few cores: one thread each is faster and steadier than two that wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What a server keeps where nothing else is said must not land among a person's own files.
_DATA_HOME = tempfile.TemporaryDirectory(prefix="glm-tests-")
os.environ["XDG_DATA_HOME"] = _DATA_HOME.name

HERE = Path(__file__).resolve().parent
FULL_REFERENCE = HERE.parent.parent / "shared" / "reference" / "glm130b"
SMALL_REFERENCE = HERE / "data" / "reference"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--reference",
        default=str(FULL_REFERENCE if FULL_REFERENCE.is_dir() else SMALL_REFERENCE),
        help="folder of fixtures recorded from GLM-130B's original code",
    )


@pytest.fixture(scope="session")
def vocabulary_file() -> Path:
    """A small vocabulary of our own kind (nothing normalised, bytes as fallback)."""
    return HERE / "data" / "tokenizer" / "ours.model"


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> Path:
    """A random GLM of 2 layers with 256 positions, its tokenizer, and a chat format: the real thing, only small."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), vocabulary_file)


def make_tiny_model(folder: Path, vocabulary_file: Path, seed: int = 1) -> Path:
    """Write a tiny random model; with larger embeddings than at the start of training, so that its choices are clear."""
    import torch

    from engine.glm import checkpoint
    from engine.glm.config import CHAT, Config
    from engine.glm.model import GLM, initialise
    from engine.glm.tokenizer import Tokenizer

    vocabulary = Tokenizer.load(vocabulary_file).vocabulary_size
    model = GLM(Config("tiny", 2, 64, 128, 4, vocabulary, 256, chat=CHAT))
    generator = torch.Generator().manual_seed(seed)
    initialise(model, generator)
    with torch.no_grad():
        model.word_embeddings.weight.normal_(0.0, 0.5, generator=generator)
    checkpoint.save(model, folder, tokenizer=vocabulary_file, dtype=torch.float32)
    return folder


@pytest.fixture(scope="session")
def embedded() -> Path:
    """The folder of the model that ships with the project."""
    from engine.glm.config import EMBEDDED_FOLDER

    if not (EMBEDDED_FOLDER / "model.safetensors").is_file():
        pytest.skip("engine/pretrained has no weights in this checkout")
    return EMBEDDED_FOLDER
