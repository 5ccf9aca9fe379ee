"""What a run leaves behind in storage: written when it is accepted, finalised once, whatever the database does meanwhile.

When the database takes no writes (full, locked, gone, or at its quota), ends of runs wait in the spool, a file beside it, and are
written when it does again, or at the next start. With new runs the host decides: `refuse` them with the reason, or `answer` them
all the same and let their acceptance wait in the spool, too. While anything waits, everything of this kind waits behind it, so
that the database gets it in order; in `refuse` mode each new run tries the database itself, and so shows that it is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from app.errors import Problem, incident
from app.outcome import Outcome
from storage import Record, StorageError
from storage.identifier import new_id
from storage.replay import (
    Entry,
    accept_entry,
    conversation_entry,
    finalise_entry,
    of_the_database,
    replay,
    start_entry,
    write,
)
from storage.spool import Spool

ACCEPT_SECONDS = 12.0  # how long a visitor waits for the record of a run before the request is given up
SPOOL_SECONDS = 2.0  # the same before the record goes into the spool
FINALISE_SECONDS = 2.0  # how long the last event of a run waits for its record
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 10.0
UNSURE = 100_000  # refused runs of which it is remembered that the database may have them all the same

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Held:
    """An entry on its way into the spool; `kept` is for whoever must know that it got there."""

    entry: Entry
    kept: asyncio.Future[None] | None


class Ledger:
    """Writes runs to `record`. Belongs to one event loop.

    `answer`: runs are taken though the database isn't writing. `refusal()` gives a reason not to write new runs, as a quota that
    is reached. `spool` is set when it is open; without one nothing but memory holds what can't be written.
    """

    def __init__(
        self, record: Record, *, answer: bool = False, refusal: Callable[[], StorageError | None] = lambda: None
    ) -> None:
        self._record = record
        self._answer = answer
        self._refusal = refusal
        self.spool: Spool | None = None
        self._failure: StorageError | None = None
        self._outbox: list[_Held] = []
        self._filing = asyncio.Lock()
        self._unsure: dict[str, None] = {}
        self._recovery: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._stopping = False

    # Runs

    async def open_conversation(self, visitor: str, kind: str, title: str) -> str:
        """A new conversation; returns its id. Raises Problem."""
        id, moment = new_id(15), self._record.clock()
        await self._keep(
            lambda: self._record.create_conversation(visitor, kind, title, id=id, moment=moment),
            conversation_entry(id, moment, visitor=visitor, kind=kind, title=title),
        )
        return id

    async def accept(self, run: str, **values: Any) -> None:
        """Write an accepted run. Raises Problem, StorageError; then the run does not count as accepted."""
        moment = self._record.clock()
        try:
            await self._keep(
                lambda: self._record.accept_run(run, **values, moment=moment), accept_entry(run, moment, **values)
            )
        except Problem as problem:
            # The write may go on behind our back, or have been done by a database that died before it could say so. The row
            # must not stay unfinished.
            if problem.kind == "database_unavailable" and len(self._unsure) < UNSURE:
                self._unsure[run] = None
                self._recover()
            raise

    def started(self, run: str) -> None:
        """Mark a run as running; nobody waits for it, and a failure changes nothing."""
        self._in_background(self._start(run))

    async def finalise(self, run: str, outcome: Outcome) -> None:
        """Write the end of a run; returns when it is written, or after a moment while it is tried behind."""
        task = self._in_background(self._settle(run, outcome))
        await asyncio.wait({task}, timeout=FINALISE_SECONDS)

    async def close(self) -> None:
        """Let what is being written come to its end; what waits gets one last try, and then waits for the next start."""
        self._stopping = True
        self._wake.set()
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        if self.unwritten:
            logger.warning("%d writes wait for the next start", self.unwritten)
        if self.spool is not None:
            await asyncio.to_thread(self.spool.close)

    # State

    @property
    def unwritten(self) -> int:
        """Writes that the database doesn't have yet."""
        under_way = len(self._tasks) - (self._recovery is not None)
        return under_way + len(self._outbox) + (self.spool.waiting if self.spool else 0)

    @property
    def failure(self) -> StorageError | None:
        """Why the database takes no new runs now, None while it does."""
        return self._failure or self._refusal()

    @property
    def holds_runs(self) -> bool:
        """Whether accepted runs may wait that the database knows nothing of yet."""
        return self._answer and bool(self._outbox or (self.spool and self.spool.waiting))

    @property
    def refuses(self) -> bool:
        """Whether new runs are refused now."""
        return self.failure is not None and not self._answer

    # Writing

    async def _keep(self, work: Callable[[], Awaitable[Any]], entry: Entry) -> None:
        """Do `work`, or spool the entry that stands for it. Raises Problem if neither can be, StorageError for a wrong request."""
        failure = self._refusal()
        if failure is None and not (self._answer and self._failure):
            try:
                async with asyncio.timeout(SPOOL_SECONDS if self._answer else ACCEPT_SECONDS):
                    await work()
                self._wake.set()
                return
            except TimeoutError:
                failure = _silent()
            except StorageError as error:
                if not of_the_database(error):
                    raise
                failure = error
        if self._answer:
            self._fail(failure or self._failure)
            try:
                return await self._hold(entry, required=True)
            except StorageError as error:
                failure = failure or error
        elif self._refusal() is None:
            self._fail(failure)
        assert failure is not None
        raise Problem(failure.kind, failure.message, retry_after_s=5.0)

    async def _start(self, run: str) -> None:
        moment = self._record.clock()
        if self._failure is None:
            try:
                async with asyncio.timeout(ACCEPT_SECONDS):
                    await self._record.start_run(run, moment)
                return
            except (StorageError, TimeoutError) as error:
                logger.warning("run %s: could not be marked as running: %s", run, error)
                self._fail(error if isinstance(error, StorageError) else _silent())
        await self._hold(start_entry(run, moment))

    async def _settle(self, run: str, outcome: Outcome) -> None:
        arguments, moment = outcome.as_arguments(), self._record.clock()
        while self._failure is None:
            try:
                async with asyncio.timeout(ACCEPT_SECONDS):
                    if not await self._record.finalise_run(run, **arguments, moment=moment):
                        logger.debug("run %s was final already", run)
                return
            except TimeoutError:
                self._fail(_silent())
            except StorageError as error:
                if not of_the_database(error):
                    return  # its acceptance was never written
                logger.warning("run %s: its end could not be written: %s", run, error)
                self._fail(error)
            except Exception as error:  # noqa: BLE001 (it is logged, and the run must end)
                # Not the database's fault, so trying the same again is useless. The row must be final nevertheless.
                incident(error)
                if set(arguments) == {"status", "error_kind"}:
                    return
                arguments = {"status": outcome.status, "error_kind": outcome.error_kind or "internal"}
        await self._hold(finalise_entry(run, moment, **arguments))

    # Holding back

    def _fail(self, failure: StorageError | None) -> None:
        assert failure is not None
        if self._failure is None:
            logger.warning("the record of runs waits: %s", failure)
            self._failure = failure
        self._recover()

    async def _hold(self, entry: Entry, *, required: bool = False) -> None:
        """Spool an entry. Raises StorageError if it is `required` to be safe on a disk and can't be."""
        kept = asyncio.get_running_loop().create_future() if required else None
        self._outbox.append(_Held(entry, kept))
        self._recover()
        await self._file()
        if kept is not None:
            await kept

    async def _file(self) -> None:
        """Everything in the outbox goes into the spool, in one write; where that fails, what must be safe there is refused."""
        async with self._filing:
            held, self._outbox = self._outbox, []
            if not held:
                return
            failure: StorageError | None = None
            try:
                if self.spool is None:
                    raise StorageError("database_unavailable", "There is no folder for unwritten runs.")
                await asyncio.to_thread(self.spool.append, [one.entry for one in held])
            except StorageError as error:
                logger.warning("unwritten runs could not be spooled: %s", error)
                failure = error
                self._outbox = [one for one in held if one.kept is None] + self._outbox
            for one in held:
                if one.kept is None or one.kept.done():
                    continue
                if failure is None:
                    one.kept.set_result(None)
                else:
                    one.kept.set_exception(failure)

    def _recover(self) -> None:
        if self._recovery is None:
            self._recovery = self._in_background(self._write_what_waits())

    async def _write_what_waits(self) -> None:
        """Try until the database has everything; then new runs go to it directly again."""
        pause = FIRST_PAUSE
        try:
            while True:
                last = self._stopping
                self._wake.clear()
                try:
                    if await self._write_once():
                        return
                    continue
                except TimeoutError:
                    logger.debug("the database doesn't answer yet")
                except StorageError as error:
                    logger.debug("the database doesn't write yet: %s", error)
                if last:
                    return
                try:
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
                except TimeoutError:
                    pause = min(2 * pause, LONGEST_PAUSE)
        finally:
            self._recovery = None

    async def _write_once(self) -> bool:
        """Whether nothing waits any more, and what the database does is no longer a failure. Raises StorageError, TimeoutError."""
        await self._file()
        if self._answer and (refusal := self._refusal()) is not None:
            raise refusal
        async with asyncio.timeout(ACCEPT_SECONDS):
            await self._record.check_writable()
        if self.spool is not None:
            await replay(self._record, self.spool)
        async with self._filing:
            # What could not be spooled stands behind what was.
            while self._outbox and not (self.spool and self.spool.waiting):
                try:
                    await write(self._record, self._outbox[0].entry)
                except Exception as error:  # noqa: BLE001 (logged; the others must go on)
                    if of_the_database(error):
                        raise
                    incident(error)
                del self._outbox[0]
            for run in list(self._unsure):
                refused = {"error_kind": "database_unavailable", "error_message": "This run was refused."}
                await write(self._record, finalise_entry(run, self._record.clock(), "error", **refused))
                del self._unsure[run]
            if self._outbox or (self.spool and self.spool.waiting):
                return False
            if self._failure is not None:
                logger.warning("the record of runs is written again")
            self._failure = None
            return True

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _silent() -> StorageError:
    return StorageError("database_unavailable", "The database doesn't answer.")
