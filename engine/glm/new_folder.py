"""A small folder that appears whole or not at all: written beside its place and moved there at the end. Torch-free."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path


@contextlib.contextmanager
def new_folder(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """A temporary folder to write the files of these names to; without an error they take the place of those in `folder`.

    names: in the order in which they are moved; the last one is the file without which the folder is none (config.json).
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new = Path(temporary)
        yield new
        folder.mkdir(exist_ok=True)
        (folder / names[-1]).unlink(missing_ok=True)
        for name in names:
            (new / name).chmod(0o644)  # temporary files are the owner's alone; a model folder is read by servers
            (new / name).replace(folder / name)
