"""Looks at the room that the record takes: warns in the log before it is full, and refuses new runs at the quota.

How much is used is asked every few seconds, the forecast, which counts runs, every few minutes.
"""

from __future__ import annotations

import asyncio
import logging

from engine.glm.size import format_size
from storage import Record, StorageError
from storage.disk import DiskState

LOOK_SECONDS = 15.0
FORECAST_SECONDS = 600.0

logger = logging.getLogger(__name__)


class DiskWatch:
    """`quota`: bytes that the record may take, 0 for any. Belongs to one event loop."""

    def __init__(self, record: Record, quota: int) -> None:
        self._record = record
        self._quota = quota
        self._used = 0
        self._task: asyncio.Task[None] | None = None
        self._warned = False
        self.state: DiskState | None = None  # the last forecast

    def refusal(self) -> StorageError | None:
        """Why no new runs are to be written now."""
        if not self._quota or self._used < self._quota:
            return None
        return StorageError("disk_full", f"The server's record has reached its quota of {format_size(self._quota)}.")

    async def start(self) -> None:
        """Look once, then go on in the background."""
        await self.look()
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def look(self) -> None:
        """See how much is used now. A database that can't be asked changes nothing: its failure is noticed elsewhere."""
        try:
            self._used = await self._record.used_bytes()
        except StorageError as error:
            logger.debug("the room that the record takes is unknown: %s", error)

    async def forecast(self) -> None:
        """Compute the forecast, and warn once when it begins to be serious."""
        try:
            self.state = await self._record.disk_state(self._quota)
        except StorageError as error:
            logger.debug("the forecast of the disk can't be made: %s", error)
            return
        warning = self.state.warning
        if warning and not self._warned:
            logger.warning("%s", warning)
        self._warned = warning is not None

    async def _watch(self) -> None:
        while True:
            await self.forecast()
            for _ in range(int(FORECAST_SECONDS / LOOK_SECONDS)):
                await asyncio.sleep(LOOK_SECONDS)
                await self.look()
