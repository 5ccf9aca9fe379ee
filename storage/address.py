"""Where a database is: one address for a person to type, a URL for each driver.

`glm.sqlite3`, `sqlite:///glm.sqlite3`, `postgresql://user:password@host/name`: a path alone means SQLite. A SQLite
database must be a file, since its readers, its writer and the migration are separate connections.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from storage.errors import StorageError


@dataclass(frozen=True, slots=True)
class Address:
    """`file` for SQLite, `server` (a `postgresql+psycopg` URL) for PostgreSQL: exactly one of them is set."""

    file: Path | None
    server: URL | None

    @classmethod
    def parse(cls, address: str | Path) -> Address:
        """Raises `StorageError("database_unavailable")` for an address that names neither."""
        if isinstance(address, Path) or "://" not in address:
            return cls._of_file(str(address))
        try:
            url = make_url(address)
        except ArgumentError as error:
            raise StorageError("database_unavailable", "The address of the database can't be read.") from error
        backend = url.drivername.partition("+")[0]
        if backend == "sqlite":
            return cls._of_file(url.database or "")
        if backend in ("postgresql", "postgres"):
            return cls(None, url.set(drivername="postgresql+psycopg"))
        raise StorageError("database_unavailable", f"{backend} can't be used: SQLite and PostgreSQL can.")

    @classmethod
    def _of_file(cls, name: str) -> Address:
        if not name or name == ":memory:":
            raise StorageError("database_unavailable", "A SQLite database needs the name of a file.")
        return cls(Path(name).expanduser().absolute(), None)

    def __str__(self) -> str:
        """For people and logs: the password is left out."""
        return str(self.file) if self.server is None else self.server.render_as_string(hide_password=True)

    def create_file(self) -> None:
        """Make the folder and an empty SQLite file that only its owner can read; leave what exists as it is.

        SQLite gives its -wal and -shm files the mode of the database. Raises OSError.
        """
        assert self.file is not None
        self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            os.close(os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            # An existing file must not even be opened here: closing it would drop the locks that connections of this
            # process hold on it (https://www.sqlite.org/howtocorrupt.html, 2.2).
            return

    def file_uri(self) -> str:
        """For sqlite3.connect(uri=True): opens for writing, but never creates."""
        assert self.file is not None
        return f"{self.file.as_uri()}?mode=rw"
