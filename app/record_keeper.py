"""The record as one server keeps it: its name among the servers, what waits in the spool, the ledger, the room on the disk.

`prepare` brings everything to the state in which runs can be accepted: tables up to date, what ended servers could not write
written, their unfinished runs ended.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from app.disk_watch import DiskWatch
from app.ledger import Ledger
from app.settings import Settings, data_folder
from engine.glm.size import parse_size
from storage import Database, Record
from storage.presence import Presence
from storage.replay import replay, replay_left
from storage.spool import SEGMENT_BYTES, Spool

logger = logging.getLogger(__name__)


class RecordKeeper:
    """`database` is not yet migrated. Belongs to one event loop."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        name = settings.server_name or f"{socket.gethostname()}:{settings.port}"
        self._presence = Presence(database.address, name)
        self.record = Record(database, server=name)
        self.disk = DiskWatch(self.record, parse_size(settings.quota) if settings.quota else 0)
        self.ledger = Ledger(self.record, answer=settings.when_unwritable == "answer", refusal=self.disk.refusal)

    async def prepare(self) -> None:
        """Raises StorageError."""
        await self._database.migrate()
        self.record.server = await asyncio.to_thread(self._presence.enter)
        folder = self._spools()
        spool = Spool(
            folder / quote(self.record.server, safe=""),
            parse_size(self._settings.spool_limit),
            # Refused runs need no room; ends of runs can also wait in memory.
            reserve=SEGMENT_BYTES if self._settings.when_unwritable == "answer" else 0,
        )
        # First of all, since a server that already runs under this name must be noticed before its runs are ended.
        await asyncio.to_thread(spool.open)
        self.ledger.spool = spool
        count = await replay(self.record, spool) + await replay_left(self.record, folder)
        if count:
            logger.warning("%d writes that had waited in the spool are done", count)
        count = await self.record.interrupt_unfinished(await asyncio.to_thread(self._presence.others))
        if count:
            logger.warning("%d runs were interrupted by the end of the last server process", count)
        await self.disk.start()

    async def stop(self) -> None:
        """Behind the ledger's end, before the database's."""
        await self.disk.stop()
        await asyncio.to_thread(self._presence.leave)
        with suppress(OSError):  # something waits there, or another server uses it
            self._spools().rmdir()

    def state(self) -> dict[str, Any]:
        """For clients: `writing`, `waiting` (runs are taken, their record comes later) or `refusing`, and why, for a person."""
        failure = self.ledger.failure
        if failure is None:
            return {"state": "writing", "reason": None}
        return {"state": "refusing" if self.ledger.refuses else "waiting", "reason": failure.message}

    def _spools(self) -> Path:
        """The folder of all spools of this database on this machine, one for each server."""
        address = self._database.address
        if not self._settings.spool and address.file is not None:
            return Path(f"{address.file}.spool")
        # A folder may serve several databases.
        folder = Path(self._settings.spool).expanduser() if self._settings.spool else data_folder() / "spool"
        return folder.absolute() / hashlib.sha256(str(address).encode()).hexdigest()[:12]
