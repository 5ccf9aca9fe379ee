"""A database, open: `read` and `write` run one function in one transaction each.

SQLite: write-ahead log, `synchronous=NORMAL`, foreign keys on. All writes go through one connection, one after the
other (`BEGIN IMMEDIATE` behind a lock), so that any number of concurrent runs never meet "database is locked"; reads
use other connections, which can't write, and wait for nobody. PostgreSQL: a pool of connections, tested before use.

`write_together` shares a transaction with others that are asked for at the same moment (see `storage.group_commit`): for the
small writes of every run. A write that has been asked for is carried through even if the asking task is cancelled: a closed
socket can't lose the end of a run. Errors that machines or users cause are `StorageError`s.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import sqlite3
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, closing, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, AsyncAdaptedQueuePool, Connection, Engine, QueuePool, create_engine, event
from sqlalchemy.dialects.sqlite.base import SQLiteCompiler
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from storage import migration
from storage.address import Address
from storage.errors import StorageError, translated
from storage.group_commit import GroupCommit

BUSY_SECONDS = 10.0  # how long another program may hold a SQLite file before a write gives up
SCRUB_SECONDS = 1.0  # how long emptying the log waits for readers, while nobody writes
CONNECT_SECONDS = 10
READERS = 4
SERVER_CONNECTIONS = 20
GROUP_CONNECTIONS = 4  # of PostgreSQL, for writes that share a transaction; more than one only where they must not

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
            self._together = _sqlite_group_engine(self.address)
            self._one_writer = asyncio.Lock()
        else:
            self._writer = create_async_engine(
                self.address.server,
                pool_size=SERVER_CONNECTIONS,
                max_overflow=0,
                pool_pre_ping=True,
                json_serializer=to_json,
                hide_parameters=True,
                connect_args={"connect_timeout": CONNECT_SECONDS},
            )
            # The same pool. Several statements of one read must see one state, as they do in SQLite.
            self._reader = self._writer.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            self._together = create_engine(
                self.address.server,
                pool_size=GROUP_CONNECTIONS,
                max_overflow=0,
                pool_pre_ping=True,
                json_serializer=to_json,
                hide_parameters=True,
                connect_args={"connect_timeout": CONNECT_SECONDS},
            )
            self._one_writer = nullcontext()
        self._threads: ThreadPoolExecutor | None = None
        self._groups = GroupCommit(self._write_in_thread, locks=self.address.server is not None)

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
        return await _carried_through(task)

    async def write_together(self, work: Callable[[Connection], Result]) -> Result:
        """As `write`, in one transaction with others of this moment. `work(connection)` is a plain function that runs in a thread;
        it must bear being run twice, and raise a `StorageError` of its own only before its first change."""
        return await _carried_through(self._groups.ask(work))

    async def _write(self, work: Work[Result]) -> Result:
        async with self._one_writer:
            session = AsyncSession(self._writer, expire_on_commit=False, autoflush=False)
            with translated(self.address.file):
                async with session, session.begin():
                    return await work(session)

    async def _write_in_thread(self, work: Callable[[Connection], Result]) -> Result:
        def transaction() -> Result:
            with self._together.begin() as connection:
                return work(connection)

        if self._threads is None:
            threads = 1 if self.address.server is None else GROUP_CONNECTIONS
            self._threads = ThreadPoolExecutor(threads, thread_name_prefix="record")
        async with self._one_writer:
            with translated(self.address.file):
                return await asyncio.get_running_loop().run_in_executor(self._threads, transaction)

    async def scrub(self) -> bool:
        """After an erasure: write SQLite's log back into the file and empty it, since it holds former pages. False if a reader
        kept it; then the next call does it. PostgreSQL frees what is erased by itself, with its own vacuum."""
        if self.address.server is not None:
            return True
        uri = self.address.file_uri()

        def checkpoint() -> bool:
            with closing(sqlite3.connect(uri, uri=True, timeout=SCRUB_SECONDS, isolation_level=None)) as connection:
                return connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0

        async with self._one_writer:
            try:
                return await asyncio.to_thread(checkpoint)
            except sqlite3.OperationalError as error:
                logger.warning("the log of the database could not be emptied: %s", error)
                return False

    async def close(self) -> None:
        """Wait for the writes under way, then close every connection. The object may be used again afterwards."""
        await self._groups.close()
        while self._writes:
            await asyncio.wait(set(self._writes))
        await self._reader.dispose()
        await self._writer.dispose()
        self._together.dispose()
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None


def to_json(value: Any) -> str:
    """JSON with Chinese as itself: a third of the bytes of escapes, and searchable."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


async def _carried_through(work: asyncio.Future[Result]) -> Result:
    """Its result; if the caller is cancelled, it goes on without it."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        work.add_done_callback(_report)
        raise


def _report(task: asyncio.Future[Any]) -> None:
    """Log the failure of a write that nobody waits for any more."""
    if not task.cancelled() and (error := task.exception()) is not None:
        if isinstance(error, StorageError):
            logger.warning("a write that nobody waits for any more failed: %s", error)
        else:
            logger.error("a write that nobody waits for any more failed", exc_info=error)


def _sqlite_engine(address: Address, *, connections: int, begin: str, query_only: bool) -> AsyncEngine:
    engine = create_async_engine(
        _sqlite_url(address, "sqlite+aiosqlite"),
        connect_args={"timeout": BUSY_SECONDS},
        poolclass=AsyncAdaptedQueuePool,
        pool_size=connections,
        max_overflow=0,
        json_serializer=to_json,
        hide_parameters=True,  # what visitors typed has no place in an error's text, which may be logged
    )
    _prepare_sqlite(engine.sync_engine, address, begin=begin, query_only=query_only)
    return engine


def _sqlite_group_engine(address: Address) -> Engine:
    engine = create_engine(
        _sqlite_url(address, "sqlite+pysqlite"),
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        poolclass=QueuePool,
        pool_size=1,
        max_overflow=0,
        json_serializer=to_json,
        hide_parameters=True,  # what visitors typed has no place in an error's text, which may be logged
    )
    _prepare_sqlite(engine, address, begin="BEGIN IMMEDIATE", query_only=False)
    return engine


def _sqlite_url(address: Address, driver: str) -> URL:
    assert address.file is not None
    # As a URI with mode=rw, since opening must not create the file.
    return URL.create(driver, database=address.file.as_uri(), query={"mode": "rw", "uri": "true"})


class _Compiler(SQLiteCompiler):
    """With hints, so that a statement can name the index to go by: `with_hint(table, "INDEXED BY name", "sqlite")`."""

    def get_from_hint_text(self, table: Any, text: str | None) -> str | None:
        return text


def _prepare_sqlite(engine: Engine, address: Address, *, begin: str, query_only: bool) -> None:
    """Settings of every connection of this engine, and how its transactions begin."""
    assert address.file is not None
    engine.dialect.statement_compiler = _Compiler

    @event.listens_for(engine, "do_connect")
    def _exists(*_: Any) -> None:
        # aiosqlite leaves a thread behind where SQLite can't open a file; so find out the commonest reasons without it.
        if not os.access(address.file, os.R_OK):
            raise FileNotFoundError(errno.ENOENT, "no such database file, or not readable")

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        # None: sqlite3 must not begin transactions on its own; `_begin` does, with the lock that it means.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute(f"PRAGMA query_only={'ON' if query_only else 'OFF'}")
        # What is deleted is overwritten with zeros, a former place of a changed row too: else it could be read from the file.
        cursor.execute("PRAGMA secure_delete=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)
