"""Who may import whom, read from the code itself (app -> storage, engine.serving and torch-free engine.glm; no way back)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TORCH_FREE_GLM = {"config", "tokenizer", "blanks", "filling", "stream_decoder", "sentencepiece_file", "size"}
HEAVY = {"torch", "deepspeed", "gradio", "safetensors"}


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Full names of what a file imports; `from a import b` counts as a and a.b."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", files("storage"), ids=lambda path: str(path.relative_to(ROOT)))
def test_storage_knows_neither_app_nor_engine(path: Path) -> None:
    assert not {name for name in imports(path) if name.split(".")[0] in ("app", "engine")}


@pytest.mark.parametrize("path", files("engine"), ids=lambda path: str(path.relative_to(ROOT)))
def test_engine_knows_neither_app_nor_storage(path: Path) -> None:
    assert not {name for name in imports(path) if name.split(".")[0] in ("app", "storage")}


@pytest.mark.parametrize("path", files("app"), ids=lambda path: str(path.relative_to(ROOT)))
def test_app_uses_only_the_torch_free_engine(path: Path) -> None:
    for name in imports(path):
        parts = name.split(".")
        assert parts[0] not in ("torch", "deepspeed"), name
        if parts[0] == "engine" and len(parts) > 1:
            allowed = parts[1] in ("errors", "serving", "GLMError") or (
                parts[1] == "glm" and (len(parts) == 2 or parts[2] in TORCH_FREE_GLM)
            )
            assert allowed, f"{path}: {name}"


@pytest.mark.parametrize("package", ["app", "engine", "storage"])
def test_importing_modules_does_not_load_torch_or_gradio_at_the_web_side(package: str) -> None:
    """No module that the web process loads imports a heavy package when it is imported."""
    modules = {
        "app": ["app.main"],
        "engine": [
            "engine.serving.pool",
            "engine.serving.generate",
            "engine.serving.scheduler",
            "engine.glm.tokenizer",
        ],
        "storage": ["storage.database"],
    }[package]
    code = f"import sys, {', '.join(modules)}; print(sorted({HEAVY!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert found.stdout.strip() == "[]", found.stdout + found.stderr


def test_no_machine_specific_words_in_the_repository() -> None:
    """The repository speaks of the project alone: no absolute paths of a builder's machine."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    forbidden = ["/wo" + "rk/", "/ro" + "ot/"]
    for name in listed.stdout.split("\n"):
        path = ROOT / name
        if (
            path.suffix in {".py", ".js", ".md", ".yaml", ".yml", ".toml", ".txt", ".html", ".css", ".json"}
            and path.is_file()
        ):
            text = path.read_text(encoding="utf-8")
            assert not [word for word in forbidden if word in text], name
