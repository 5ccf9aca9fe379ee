"""A server with a tiny model for tests of /admin, and pages of members who are logged in: a plugin for pytest.

Members and runs are written straight into the server's database, so that no test waits for a login or counts as a try.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from app.admin.access import COOKIE, key_hash
from storage import Database, Record, StorageError
from tests.browser.conftest import Server, Watch, _watch, start_server

SIZE = {"width": 1280, "height": 800}


def with_record(folder: Path, work: Callable[[Record], Awaitable[Any]]) -> Any:
    """What `work(record)` gives on the database of the server of this folder; in a thread, since Playwright's loop runs in this
    one."""
    found: list[Any] = []

    async def run() -> None:
        database = Database(str(folder / "glm.db"))
        try:
            found.append(await work(Record(database)))
        finally:
            await database.close()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    thread.join()
    return found[0]


class Desk:
    """The server and its database."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.address = server.address
        self.folder = folder
        self.password = (folder / "glm-admin-password.txt").read_text().strip()

    def record(self, work: Callable[[Record], Awaitable[Any]]) -> Any:
        """What `work(record)` gives."""
        return with_record(self.folder, work)

    def session(self, name: str, role: str = "reviewer") -> str:
        """The cookie of a new session of this member, who is made if need be."""
        cookie = secrets.token_urlsafe(12)

        async def work(record: Record) -> None:
            try:
                row = await record.create_staff(name, role, None)
            except StorageError:
                row = await record.find_staff(name)
            assert row is not None
            await record.add_key(key_hash(cookie), row.id, "session", expires=record.clock() + timedelta(hours=1))

        self.record(work)
        return cookie


@pytest.fixture(scope="session")
def desk(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    for server in start_server(tiny_model_folder, folder):
        yield Desk(server, folder)


OpenDesk = Callable[..., Page]


@pytest.fixture
def open_desk(desk: Desk, browser: Browser, watch: Watch) -> Iterator[OpenDesk]:
    """open_desk(hash, member=..., role=..., **context options) -> a watched page of a member; without one, of nobody."""
    contexts = []

    def open_one(hash: str = "", member: str | None = "admin", role: str = "reviewer", **options: Any) -> Page:
        context = browser.new_context(**({"locale": "en-US", "viewport": SIZE} | options))
        contexts.append(context)
        context.set_default_timeout(20_000)
        if member:
            context.add_cookies([{"name": COOKIE, "value": desk.session(member, role), "url": desk.address}])
        page = context.new_page()
        _watch(page, watch, desk.address.split("/")[2])
        page.goto(f"{desk.address}admin{hash}")
        page.wait_for_selector("[data-shown]" if member else ".glm-front form, .glm-front a")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not watch.unexpected()
