"""Databases for tests: every test that asks for `record` runs on SQLite and on a real PostgreSQL.

A test file takes the fixtures over by name: `address, record = databases.address, databases.record`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from storage import Database, Record, StorageError
from tests import postgres

STARTED = datetime(2024, 2, 29, 23, 59, 58, 123456, tzinfo=UTC)


class Clock:
    """A second passes at every look."""

    def __init__(self) -> None:
        self.now = STARTED

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a database of the test's own, on each of the two kinds; not migrated yet."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/new folder/100%/glm?.sqlite3"
    else:
        address = postgres.new_database()
        yield address
        postgres.drop_database(address)


@pytest_asyncio.fixture
async def record(address: str) -> AsyncIterator[Record]:
    """The record in that database, migrated, with a clock of its own."""
    database = Database(address)
    await database.migrate()
    yield Record(database, Clock())
    await database.close()


async def accept(record: Record, id: str = "run", **changes: Any) -> None:
    """Accept a run of the visitor ann, with `changes`."""
    values = {"visitor": "ann", "mode": "generate", "prompt": "Hello", "parameters": {"temperature": 0.5}}
    await record.accept_run(id, **{**values, **changes})


async def refused(awaitable: Awaitable[Any]) -> str:
    """The kind of the `StorageError` that it must raise."""
    with pytest.raises(StorageError) as caught:
        await awaitable
    assert str(caught.value).endswith(".")
    return caught.value.kind


def small_disk(folder: Path, size: str) -> list[str]:
    """The beginning of a command line: what follows runs with a file system of this size mounted at `folder`.

    It lies in a mount name space of its own, which goes when the process does. Skips the test where that can't be had.
    """
    alone = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    mount = f"mount -t tmpfs -o size={size} none {shlex.quote(str(folder))}"
    tried = shutil.which("unshare") and subprocess.run([*alone, "sh", "-c", mount], capture_output=True)
    if not tried or tried.returncode != 0:
        pytest.skip("a small file system can't be mounted here")
    return [*alone, "sh", "-c", f'{mount} && exec "$@"', "sh"]
