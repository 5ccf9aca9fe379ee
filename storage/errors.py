"""What can go wrong with the record, as one exception with a kind, and the translation from the drivers' own errors.

Kinds: `database_newer` (a newer program has migrated it), `database_unavailable` (not reachable, locked, read-only,
damaged or not migrated), `disk_full`, `not_found` (no such row, or not the asking visitor's), `conflict` (the row is
there already, or somebody was faster), `bad_request` (what is asked for makes no sense, and the message names the field),
`too_large` (more than one call takes).
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import exc

KINDS = (
    "database_newer",
    "database_unavailable",
    "disk_full",
    "not_found",
    "conflict",
    "bad_request",
    "too_large",
)

# SQLite reports ENOSPC as FULL only in a write of its own; failing to grow the shared-memory file is an IOERR.
ALMOST_NOTHING_FREE = 1 << 20


class StorageError(Exception):
    """`kind` is one of `KINDS`; `str(error)` is a sentence for a person, without paths, SQL or passwords. `field`, `limit`: of
    what was asked for, if the message is about one."""

    def __init__(self, kind: str, message: str, *, field: str | None = None, limit: int | None = None) -> None:
        assert kind in KINDS, kind
        super().__init__(kind, message)
        self.kind = kind
        self.message = message
        self.field = field
        self.limit = limit

    def __str__(self) -> str:
        return self.message


@contextmanager
def translated(file: Path | None = None) -> Iterator[None]:
    """Turn driver and SQLAlchemy errors raised inside into `StorageError`s, with the cause chained for the log.

    `file` is the SQLite file, if it is one. Errors that only a fault in this package can cause (bad SQL, a wrong type)
    pass unchanged.
    """
    try:
        yield
    except exc.IntegrityError as error:
        raise _from_integrity(error) from error
    except exc.DBAPIError as error:
        failure = _from_driver(error.orig, file)
        if failure is None:
            raise
        raise failure from error
    except exc.TimeoutError as error:
        raise StorageError("database_unavailable", "The database is too busy: no connection became free.") from error
    except OSError as error:
        raise _from_system(error) from error


def _from_integrity(error: exc.IntegrityError) -> StorageError:
    original = error.orig
    state = getattr(original, "sqlstate", None)
    if state == "23503" or "FOREIGN KEY" in str(original):
        return StorageError("not_found", "A row that this one refers to does not exist.")
    if state == "23505" or "UNIQUE" in str(original):
        return StorageError("conflict", "A row with this identity exists already.")
    # A CHECK or NOT NULL: the caller passed a value outside its contract, which is not a condition of the database.
    raise error


def _from_driver(original: BaseException | None, file: Path | None) -> StorageError | None:
    """The typed error for a driver's exception, or None if it isn't one that users or machines cause."""
    name = getattr(original, "sqlite_errorname", None)
    if name is not None:
        return _from_sqlite(name, str(original), file)
    state = getattr(original, "sqlstate", None)
    if state is None:
        # psycopg has no SQLSTATE where there was no answer from a server at all: refused, cut off, timed out.
        if type(original).__name__ in ("OperationalError", "ConnectionTimeout", "InterfaceError"):
            return StorageError("database_unavailable", "The database server can't be reached or refuses us.")
        return None
    if state == "53100":
        return StorageError("disk_full", "The disk of the database server is full.")
    if state == "25006":
        return StorageError("database_unavailable", "The database is read-only.")
    if state == "42P01":
        return StorageError("database_unavailable", "The database has no tables yet: it must be migrated first.")
    if state == "3D000":
        return StorageError("database_unavailable", "The database server has no database of this name.")
    if state in ("40001", "40P01", "55P03"):
        return StorageError("database_unavailable", "The database was busy with the same rows: try again.")
    if state[:2] == "28":
        return StorageError("database_unavailable", "The database server refused the user name or password.")
    if state[:2] in ("08", "53", "55", "57", "58", "XX"):
        return StorageError("database_unavailable", "The database server can't serve requests now.")
    return None


def _from_sqlite(name: str, text: str, file: Path | None) -> StorageError | None:
    if name == "SQLITE_FULL" or (name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN")) and _no_room(file)):
        return StorageError("disk_full", "The disk that holds the database is full.")
    if name.startswith("SQLITE_READONLY"):
        return StorageError("database_unavailable", "The database file can't be written.")
    if name.startswith("SQLITE_CANTOPEN"):
        return StorageError("database_unavailable", "The database file is missing or not accessible.")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StorageError("database_unavailable", "Another program holds the database.")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return StorageError("database_unavailable", "The database file is damaged or is no database.")
    if name.startswith(("SQLITE_IOERR", "SQLITE_PERM", "SQLITE_AUTH", "SQLITE_PROTOCOL", "SQLITE_NOMEM")):
        return StorageError("database_unavailable", "The database file can't be read or written.")
    if "no such table" in text:
        return StorageError("database_unavailable", "The database has no tables yet: it must be migrated first.")
    return None


def _no_room(file: Path | None) -> bool:
    if file is None:
        return False
    try:
        return shutil.disk_usage(file.parent).free < ALMOST_NOTHING_FREE
    except OSError:
        return False


def _from_system(error: OSError) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError("disk_full", "The disk that holds the database is full.")
    return StorageError("database_unavailable", "The database file is missing or not accessible.")
