"""A folder that one run at a time writes to."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from engine.errors import GLMError


@contextlib.contextmanager
def locked_folder(out: Path) -> Iterator[None]:
    """The folder, made, and no other run's until the context ends, be it by the death of the process. GLMError bad_request."""
    if out.exists() and not out.is_dir():
        raise GLMError("bad_request", f"{out} is a file, not a folder.", field="out")
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise GLMError("bad_request", f"Another run writes to {out} at present.", field="out") from error
        yield
    finally:
        os.close(descriptor)
