"""A database, open: `read` and `write` run one function in one transaction each.

SQLite: write-ahead log, `synchronous=NORMAL`, foreign keys on. All writes go through one connection, one after the
other (`BEGIN IMMEDIATE` behind a lock), so that any number of concurrent runs never meet "database is locked"; reads
use other connections, which can't write, and wait for nobody. PostgreSQL: a pool of connections, tested before use.

A write that has been asked for is carried through even if the asking task is cancelled: a closed socket can't lose the
end of a run. Errors that machines or users cause are `StorageError`s.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, AsyncAdaptedQueuePool, Connection, event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from storage import migration
from storage.address import Address
from storage.errors import translated

BUSY_SECONDS = 10.0  # how long another program may hold a SQLite file before a write gives up
CONNECT_SECONDS = 10
READERS = 4
SERVER_CONNECTIONS = 20

Result = TypeVar("Result")
Work = Callable[[AsyncSession], Awaitable[Result]]

logger = logging.getLogger(__name__)


class Database:
    """`address`: a file, `sqlite:///file` or `postgresql://user@host/name`. Connects at the first use, not here.

    Belongs to one event loop. Raises `StorageError("database_unavailable")` for an address that makes no sense.
    """

    def __init__(self, address: str | Path) -> None:
        self.address = Address.parse(address)
        self._writes: set[asyncio.Task[Any]] = set()
        self._one_writer: AbstractAsyncContextManager[Any]
        if self.address.server is None:
            self._writer = _sqlite_engine(self.address, connections=1, begin="BEGIN IMMEDIATE", query_only=False)
            self._reader = _sqlite_engine(self.address, connections=READERS, begin="BEGIN", query_only=True)
            self._one_writer = asyncio.Lock()
        else:
            self._writer = create_async_engine(
                self.address.server,
                pool_size=SERVER_CONNECTIONS,
                max_overflow=0,
                pool_pre_ping=True,
                json_serializer=to_json,
                connect_args={"connect_timeout": CONNECT_SECONDS},
            )
            # The same pool. Several statements of one read must see one state, as they do in SQLite.
            self._reader = self._writer.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            self._one_writer = nullcontext()

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._writer.dialect.name

    async def migrate(self) -> str:
        """Create the database's tables or bring them up to date; returns the revision. Safe from several processes.

        Raises `StorageError`: `database_newer`, `database_unavailable`, `disk_full`.
        """
        return await asyncio.to_thread(migration.upgrade, self.address)

    async def read(self, work: Work[Result]) -> Result:
        """Run `work(session)` in a transaction that sees one state of the database and changes nothing."""
        with translated(self.address.file):
            async with AsyncSession(self._reader, expire_on_commit=False, autoflush=False) as session:
                return await work(session)

    async def write(self, work: Work[Result]) -> Result:
        """Run `work(session)` in a transaction and commit it; an exception rolls it back.

        If the caller is cancelled, the write goes on without it.
        """
        task = asyncio.create_task(self._write(work))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_report)
            raise

    async def _write(self, work: Work[Result]) -> Result:
        async with self._one_writer:
            session = AsyncSession(self._writer, expire_on_commit=False, autoflush=False)
            with translated(self.address.file):
                async with session, session.begin():
                    return await work(session)

    async def close(self) -> None:
        """Wait for the writes under way, then close every connection. The object may be used again afterwards."""
        while self._writes:
            await asyncio.wait(set(self._writes))
        await self._reader.dispose()
        await self._writer.dispose()


def to_json(value: Any) -> str:
    """JSON with Chinese as itself: a third of the bytes of escapes, and searchable."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _report(task: asyncio.Task[Any]) -> None:
    """Log the failure of a write that nobody waits for any more."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("a write failed after its caller was cancelled", exc_info=error)


def _sqlite_engine(address: Address, *, connections: int, begin: str, query_only: bool) -> AsyncEngine:
    assert address.file is not None
    engine = create_async_engine(
        # As a URI with mode=rw, since opening must not create the file.
        URL.create("sqlite+aiosqlite", database=address.file.as_uri(), query={"mode": "rw", "uri": "true"}),
        connect_args={"timeout": BUSY_SECONDS},
        poolclass=AsyncAdaptedQueuePool,
        pool_size=connections,
        max_overflow=0,
        json_serializer=to_json,
    )

    @event.listens_for(engine.sync_engine, "do_connect")
    def _exists(*_: Any) -> None:
        # aiosqlite leaves a thread behind where SQLite can't open a file; so find out the commonest reasons without it.
        if not os.access(address.file, os.R_OK):
            raise FileNotFoundError(errno.ENOENT, "no such database file, or not readable")

    @event.listens_for(engine.sync_engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        # None: sqlite3 must not begin transactions on its own; `_begin` does, with the lock that it means.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute(f"PRAGMA query_only={'ON' if query_only else 'OFF'}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
