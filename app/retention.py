"""The scheduled job that erases what is over: once at start, then daily, until the server stops."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from app.errors import incident
from storage import Record, StorageError
from storage.retention import Policy

EVERY_SECONDS = 24 * 3600.0
AGAIN_SECONDS = 1200.0  # after a failure
SOON_SECONDS = 600.0  # between two rounds at least: a round may have to write the search index anew

logger = logging.getLogger(__name__)


class RetentionJob:
    """Erases by `policy` in `record`. `start` and `stop` begin and end it; a stop in the middle loses nothing but time."""

    def __init__(self, record: Record, policy: Policy) -> None:
        self.policy = policy
        self._record = record
        self._task: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()

    def soon(self) -> None:
        """Have a round before its time, since something was deleted; but not within SOON_SECONDS of the last."""
        self._wanted.set()

    def start(self) -> None:
        """Begin with a first round at once, behind the caller."""
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Leave off after the step that is under way."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _work(self) -> None:
        while True:
            pause = EVERY_SECONDS
            self._wanted.clear()
            try:
                erased = await self._record.prune(self.policy.rules(), by="server")
            except StorageError as error:
                logger.warning("what is over could not be erased yet: %s", error)
                pause = AGAIN_SECONDS
            except Exception as error:  # noqa: BLE001 (logged; the next round tries again)
                incident(error)
                pause = AGAIN_SECONDS
            else:
                if erased.runs or erased.shared_pages:
                    logger.info("erased the texts of %d runs and %d shared pages", erased.runs, erased.shared_pages)
            await asyncio.sleep(SOON_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause - SOON_SECONDS):
                    await self._wanted.wait()
