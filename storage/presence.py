"""Which servers use a database now, so that the start of one doesn't end the runs of another.

A server has a name, which stands at its runs. Beside a SQLite file, whose users are all on one machine, each running server holds
a lock on `FILE.servers/NAME`: whose lock can be had has ended, and a name that is taken gets a number. Users of a PostgreSQL are
on machines that can't see each other, so there a server knows only its own name again, and ends what others left only after
`ABANDONED`.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote, unquote

from storage.address import Address
from storage.errors import translated
from storage.locks import take

ABANDONED = timedelta(days=1)


class Presence:
    """This process among those that use the database at `address`."""

    def __init__(self, address: Address, name: str) -> None:
        self.name = name
        self._folder = None if address.file is None else Path(f"{address.file}.servers")
        self._lock: int | None = None

    def enter(self) -> str:
        """Take a name, this one or with a number; returns it. Raises `StorageError`."""
        if self._folder is None or self._lock is not None:
            return self.name
        with translated(self._folder):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            wanted, number = self.name, 1
            while (lock := take(self._folder / quote(self.name, safe=""))) is None:
                number += 1
                self.name = f"{wanted}#{number}"
            self._lock = lock
        return self.name

    def others(self) -> set[str] | None:
        """The names of the other servers that run now; None if that can't be known. Forgets those that have ended."""
        if self._folder is None:
            return None
        running = set()
        with translated(self._folder):
            for path in self._folder.iterdir():
                name = unquote(path.name)
                if name == self.name:
                    continue
                lock = take(path)
                if lock is None:
                    running.add(name)
                else:
                    path.unlink(missing_ok=True)
                    os.close(lock)
        return running

    def leave(self) -> None:
        """Give the name back."""
        if self._lock is not None:
            assert self._folder is not None
            (self._folder / quote(self.name, safe="")).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None
