"""Lock files: whose lock can be had belongs to a process that has ended."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def take(path: Path) -> int | None:
    """A handle that holds the lock of this file until it is closed, made if it is missing; None if another process holds it.

    The file may be removed by whoever holds its lock. Raises OSError.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        # It may have been removed between the two steps: then this is a lock on nothing.
        if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
            return handle
        os.close(handle)
