"""The saved states of a run: whole or not there, the last few of them, whatever kills the run or fills the disk.

`state/step-00000120/` holds what one save wrote; it is written under another name and renamed when all ranks are done, then
`state/latest` names it. A save that fails leaves the states before it as they are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from engine.errors import GLMError


def state_name(step: int) -> str:
    """Of the folder of a step's state."""
    return f"step-{step:08d}"


class States:
    """keep: how many states stay. barrier: waits for all ranks; rank 0 moves and removes."""

    def __init__(self, folder: Path, keep: int, rank: int, barrier: Callable[[], None]) -> None:
        self.folder, self._keep, self._rank, self._barrier = folder, keep, rank, barrier

    def latest(self) -> Path | None:
        """The folder of the last whole state. GLMError bad_data if it was removed by hand."""
        pointer = self.folder / "latest"
        if not pointer.exists():
            return None
        path = self.folder / pointer.read_text(encoding="utf-8").strip()
        if not path.is_dir():
            raise GLMError("bad_data", f"{pointer} names {path.name}, which isn't there.", field="out")
        return path

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """`write` puts this rank's files into the folder that it is given.

        GLMError overloaded, in the rank that it happened to, if they can't be written; the run then ends.
        """
        path = self.folder / state_name(step)
        new = self.folder / f".{path.name}.new"
        if self._rank == 0:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
        self._barrier()
        try:
            write(new)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            if self._rank == 0:
                shutil.rmtree(new, ignore_errors=True)
            message = f"The state of step {step} can't be saved in {self.folder} ({error}). The last one is whole."
            raise GLMError("overloaded", message, field="out") from error
        self._barrier()
        if self._rank == 0:
            shutil.rmtree(path, ignore_errors=True)
            new.replace(path)
            pointer = self.folder / ".latest.new"
            pointer.write_text(path.name + "\n", encoding="utf-8")
            with pointer.open("rb") as file:
                os.fsync(file.fileno())
            pointer.replace(self.folder / "latest")
            for old in sorted(self.folder.glob("step-*"))[: -self._keep]:
                shutil.rmtree(old)
        self._barrier()
