"""How much room the record takes, and when it will be full: at its quota, or when the disk is.

Growth is what a run takes on average, all indexes and the share of everything else included, times the runs of a day in the last
week. Bytes everywhere.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from storage.database import Database
from storage.models import Run

WINDOW = timedelta(days=7)  # of the past, from which the growth is computed
SHORTEST_WINDOW = timedelta(hours=1)
FEWEST_RUNS = 100  # with fewer the empty tables would count as runs
WARNED_DAYS = 14.0  # a warning comes when it will be full in fewer days,
WARNED_SHARE = 0.9  # when so much of the quota is used,
WARNED_FREE = 1 << 30  # or when so little of the disk is free


@dataclass(frozen=True, slots=True)
class DiskState:
    """`used`: by the database, SQLite's log included, places that deletions freed left out. `free`: on its disk with those places,
    None where a server doesn't tell. `quota`: 0 for none. Growth and `days_left` are None where there are too few runs, or none
    lately."""

    used: int
    free: int | None
    quota: int
    runs: int
    bytes_a_run: float | None
    runs_a_day: float | None
    bytes_a_day: float | None
    days_left: float | None

    @property
    def warning(self) -> str | None:
        """A sentence if it is time to do something."""
        if self.quota and self.used >= self.quota:
            return f"The record has reached its quota: it takes {_size(self.used)} of {_size(self.quota)}."
        if self.days_left is not None and self.days_left < WARNED_DAYS:
            what = "reach its quota" if self._quota_first else "fill its disk"
            return f"The record will {what} in {self.days_left:.1f} days: it grows by {_size(self.bytes_a_day or 0)} a day."
        if self.quota and self.used >= WARNED_SHARE * self.quota:
            return f"The record takes {_size(self.used)} of its quota of {_size(self.quota)}."
        if self.free is not None and self.free < WARNED_FREE:
            return f"The disk of the record has only {_size(self.free)} free."
        return None

    @property
    def _quota_first(self) -> bool:
        return bool(self.quota) and (self.free is None or self.quota - self.used < self.free)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"warning": self.warning}


async def used_bytes(database: Database) -> int:
    """What the database takes now. Quick enough to be asked every few seconds. Raises `StorageError`."""
    return (await database.read(lambda session: _room(session, database)))[0]


async def disk_state(database: Database, now: datetime, quota: int = 0) -> DiskState:
    """Raises `StorageError`."""

    async def work(session: AsyncSession) -> DiskState:
        used, free = await _room(session, database)
        runs = await session.scalar(select(func.count()).select_from(Run)) or 0
        first = await session.scalar(select(func.min(Run.created)))
        lately = select(func.count()).select_from(Run).where(Run.created >= now - WINDOW)
        recent = await session.scalar(lately) or 0
        if runs < FEWEST_RUNS or first is None:
            return DiskState(used, free, quota, runs, None, None, None, None)
        days = max(SHORTEST_WINDOW, min(WINDOW, now - first)) / timedelta(days=1)
        each, daily = used / runs, recent / days
        growth = each * daily
        rooms = [room for room in (free, max(0, quota - used) if quota else None) if room is not None]
        left = min(rooms) / growth if rooms and growth else None
        return DiskState(used, free, quota, runs, each, daily, growth, left)

    return await database.read(work)


async def _room(session: AsyncSession, database: Database) -> tuple[int, int | None]:
    """(bytes used, bytes free)."""
    file = database.address.file
    if file is None:
        used = await session.scalar(text("SELECT pg_database_size(current_database())"))
        return int(used or 0), await _free_of_server(session, database)
    page, pages, unused = [
        int(await session.scalar(text(f"PRAGMA {name}")) or 0) for name in ("page_size", "page_count", "freelist_count")
    ]
    log = Path(f"{file}-wal")
    used = page * (pages - unused) + (log.stat().st_size if log.exists() else 0)
    return used, shutil.disk_usage(file.parent).free + page * unused


async def _free_of_server(session: AsyncSession, database: Database) -> int | None:
    """Free bytes on the disk of a PostgreSQL on this machine, if it tells where that is and the folder can be reached."""
    assert database.address.server is not None
    host = database.address.server.query.get("host") or database.address.server.host or "/"
    if not str(host).startswith("/") and host not in ("localhost", "127.0.0.1", "::1"):
        return None
    try:
        async with session.begin_nested():
            folder = await session.scalar(text("SHOW data_directory"))
    except DBAPIError:  # only the server's administrators may ask
        return None
    try:
        return shutil.disk_usage(os.fspath(folder)).free
    except OSError:
        return None


def parse_size(text: str) -> int:
    """Bytes of a size as people write it: 200GiB, 1.5 TB, 800000. ValueError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B|B?)\s*", text, re.IGNORECASE)
    if found is None:
        raise ValueError(f"{text!r} is not a size: write it as 200GiB")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** (" KMGT".index(found[2].upper()) if found[2] else 0))


def _size(size: float) -> str:
    for unit, bits in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << bits:
            return f"{size / (1 << bits):.1f} {unit}"
    return f"{size:.0f} B"


def lines(state: DiskState) -> list[tuple[str, str]]:
    """(name, value) for a person, as `python -m storage stats` prints them."""
    shown = [("room used", _size(state.used))]
    if state.quota:
        shown.append(("quota", _size(state.quota)))
    shown.append(("room free", "unknown" if state.free is None else _size(state.free)))
    if state.bytes_a_run is None or state.bytes_a_day is None:
        return [*shown, ("forecast", f"comes with {FEWEST_RUNS} runs")]
    shown += [("a run takes", _size(state.bytes_a_run)), ("grows a day", _size(state.bytes_a_day))]
    return [*shown, ("days until full", "unknown" if state.days_left is None else f"{state.days_left:,.0f}")]
