"""Bring a database's tables to this program's form, or back; plain synchronous code, run once at start.

Everything happens in one transaction under a lock (a lock file beside a SQLite database, an advisory lock in
PostgreSQL), so processes that start together take turns and a killed one leaves the former state. A revision that this
program doesn't know was made by a newer program: it is refused and nothing is touched.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, NullPool, create_engine, event, text

from storage.address import Address
from storage.errors import StorageError, translated

FOLDER = Path(__file__).parent / "migrations"
CONNECT_SECONDS = 10
WAIT_SECONDS = 60.0
# Any number that no other program on the same server is likely to use.
ADVISORY_LOCK = 0x474C4D_0001


def upgrade(address: Address, revision: str = "head") -> str:
    """Upgrade to `revision`, creating a SQLite file if there is none; returns the revision. Raises `StorageError`."""
    with translated(address.file), _locked(address) as connection:
        _refuse_newer(connection)
        command.upgrade(_config(connection), revision)
        return _current(connection) or ""


def downgrade(address: Address, revision: str) -> str:
    """Go back to `revision` (`base`: no tables); returns the revision reached, `""` for none. Raises `StorageError`."""
    with translated(address.file), _locked(address) as connection:
        _refuse_newer(connection)
        command.downgrade(_config(connection), revision)
        return _current(connection) or ""


def newest() -> str:
    """The revision that this program makes and needs."""
    head = ScriptDirectory.from_config(_config(None)).get_current_head()
    assert head is not None
    return head


def _config(connection: Connection | None) -> Config:
    config = Config()
    # ConfigParser reads % as interpolation, and folders may well have one in their name.
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _refuse_newer(connection: Connection) -> None:
    current = _current(connection)
    known = {script.revision for script in ScriptDirectory.from_config(_config(None)).walk_revisions()}
    if current is not None and current not in known:
        raise StorageError(
            "database_newer",
            f"The database is newer than this program: it is at revision {current}, and this program knows only up to "
            f"{newest()}. Start the newer program, or use another database.",
        )


@contextmanager
def _locked(address: Address) -> Iterator[Connection]:
    """A connection inside a transaction that nobody else can migrate beside; committed at the end."""
    if address.server is None:
        address.create_file()
        with _file_lock(Path(f"{address.file}.lock")):
            yield from _sqlite_transaction(address)
    else:
        engine = create_engine(address.server, poolclass=NullPool, connect_args={"connect_timeout": CONNECT_SECONDS})
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
            yield connection


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # which also unlocks; the file stays, since removing it would let two processes lock two files


def _sqlite_transaction(address: Address) -> Iterator[Connection]:
    uri = address.file_uri()
    engine = create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(uri, uri=True, timeout=WAIT_SECONDS, isolation_level=None),
        poolclass=NullPool,
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: sqlite3.Connection, _record: object) -> None:
        # The journal mode can't change inside a transaction, and stays in the file. Foreign keys are off meanwhile:
        # SQLite changes a table by copying it and dropping the old one, which would delete every row that refers to it.
        connection.execute("PRAGMA journal_mode=WAL").close()
        connection.execute("PRAGMA foreign_keys=OFF").close()
        connection.execute("PRAGMA secure_delete=ON").close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    with engine.begin() as connection:
        yield connection
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
        assert not broken, f"a migration left rows that refer to nothing: {broken[:3]}"
