"""Group commit: small writes that are asked for at the same moment share one transaction, and each gets its own answer.

A commit costs as much as several small writes, so with many runs at once most of the time would go into commits. While one
group is being committed the next one gathers; a write that comes alone is committed at once, so nobody waits for company.

What goes wrong with one write is no matter of its neighbours. A `StorageError` that a write raises by itself, which it must do
before its first change, is its own. Any other failure rolls the group back, and each write is done again in a transaction of its
own (so a write must bear being run twice); only where the database can't be reached or is held by others do all get that error
at once, since each of them would wait for it anew.

These writes are plain functions of a `Connection`, run in a thread: with an asynchronous driver each statement would cross
between threads or through the loop several times, which costs more than the statement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import Connection, exc

from storage.errors import StorageError

LARGEST = 128  # writes in one group: it bounds how long the first of them waits for the last
LOCK_MILLISECONDS = 1000  # of PostgreSQL: how long a group waits for a row that somebody else has locked
CONTENTION = ("55P03", "40P01", "40001")  # PostgreSQL's states for a lock that wasn't had, a deadlock, a lost race

Work = Callable[[Connection], Any]
Alone = Callable[[Work], Awaitable[Any]]


class GroupCommit:
    """`alone(work)` runs a write, or a whole group as one, in a transaction of its own. Belongs to one event loop.

    `locks`: rows may be locked by other connections, as in PostgreSQL.
    """

    def __init__(self, alone: Alone, *, locks: bool) -> None:
        self._alone = alone
        self._locks = locks
        self._waiting: list[tuple[Work, asyncio.Future[Any]]] = []
        self._committing: asyncio.Task[None] | None = None

    def ask(self, work: Work) -> asyncio.Future[Any]:
        """The future answer of `work`; it is carried out whether anybody waits for it or not."""
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append((work, answer))
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit())
        return answer

    async def close(self) -> None:
        """Wait for what was asked for."""
        while self._committing is not None:
            await asyncio.wait({self._committing})

    async def _commit(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:LARGEST], self._waiting[LARGEST:]
                if len(group) == 1:
                    await self._separately(*group[0])
                else:
                    await self._together(group)
        finally:
            self._committing = None

    async def _together(self, group: list[tuple[Work, asyncio.Future[Any]]]) -> None:
        outcomes: list[tuple[Any, StorageError | None]] = []

        def all_of_them(connection: Connection) -> None:
            if self._locks:
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS}")
            for work, _ in group:
                try:
                    outcomes.append((work(connection), None))
                except StorageError as error:
                    outcomes.append((None, error))

        try:
            await self._alone(all_of_them)
        except StorageError as error:
            if error.kind == "database_unavailable" and not _contended(error):
                for _, answer in group:
                    _refuse(answer, error)
            else:
                await self._each(group)
        except Exception:  # noqa: BLE001 (each is done again, and whose fault it was gets it then)
            await self._each(group)
        else:
            for (_, answer), (result, error) in zip(group, outcomes, strict=True):
                if error is not None:
                    _refuse(answer, error)
                elif not answer.cancelled():
                    answer.set_result(result)

    async def _each(self, group: list[tuple[Work, asyncio.Future[Any]]]) -> None:
        # At the same time where the database can, so that who waits for a lock waits alone.
        await asyncio.gather(*(self._separately(work, answer) for work, answer in group))

    async def _separately(self, work: Work, answer: asyncio.Future[Any]) -> None:
        try:
            result = await self._alone(work)
        except Exception as error:  # noqa: BLE001 (handed to whoever asked)
            _refuse(answer, error)
        else:
            if not answer.cancelled():
                answer.set_result(result)


def _refuse(answer: asyncio.Future[Any], error: Exception) -> None:
    if not answer.cancelled():
        answer.set_exception(error)


def _contended(error: StorageError) -> bool:
    cause = error.__cause__
    return isinstance(cause, exc.DBAPIError) and getattr(cause.orig, "sqlstate", None) in CONTENTION
