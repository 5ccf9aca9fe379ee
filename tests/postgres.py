"""A real PostgreSQL for tests: the one named by GLM_TEST_POSTGRES, or a throwaway server from the installed programs.

Each test gets an empty database of its own. Where there is neither, the tests are skipped and say why.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

import psutil
import pytest
from sqlalchemy import URL, NullPool, create_engine, make_url

NO_SERVER = "no PostgreSQL: install its server (Debian: apt-get install postgresql) or set GLM_TEST_POSTGRES to a URL"


class Server:
    """A throwaway server on a socket in its own folder (no port to collide with), stopped when Python exits.

    `durable`: a commit waits for the disk, as a server in use does it.
    """

    def __init__(self, programs: Path, durable: bool = False) -> None:
        self.programs = programs
        self.durable = durable
        # PostgreSQL refuses to run as root; its package has made a user for it, who must be able to reach the folder.
        self.user = "postgres" if os.geteuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="glm-postgres-"))
        if self.user:
            shutil.chown(self.folder, self.user)
        atexit.register(self.remove)
        self._run("initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
        self.start()

    @property
    def url(self) -> URL:
        return URL.create("postgresql", "postgres", database="postgres", query={"host": str(self.folder)})

    def start(self) -> None:
        # A time zone that is not UTC, so that a moment which is stored or read without its zone is wrong.
        options = (
            f"-k {self.folder} -c listen_addresses='' -c fsync={'on' if self.durable else 'off'} "
            "-c max_connections=200 -c timezone=Asia/Shanghai"
        )
        self._run("pg_ctl", "-w", "-o", options, "-l", str(self.folder / "log"), "start")

    def stop(self, mode: str) -> None:
        """`mode`: fast, or immediate, which is what a killed server looks like to its clients."""
        self._run("pg_ctl", "-w", "-m", mode, "stop")

    def kill(self) -> None:
        """SIGKILL to every process of the server, as by a machine that runs out of memory."""
        number = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        postmaster = psutil.Process(number)
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=60)

    def remove(self) -> None:
        atexit.unregister(self.remove)
        try:
            self.stop("immediate")
        finally:
            shutil.rmtree(self.folder)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self.programs / program, "-D", self.folder / "data", *arguments],
            check=True,
            user=self.user,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=60,
        )


def installed() -> Path | None:
    """The folder of the newest server programs: Debian's place, then the search path."""
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(versions, key=lambda program: int(program.parent.parent.name), default=None)
    found = newest or shutil.which("initdb")
    return Path(found).parent if found else None


def own_server(durable: bool = False) -> Server:
    """A throwaway server for the caller alone, who may stop and start it; skips the test if there are no programs."""
    programs = installed()
    if programs is None:
        pytest.skip(NO_SERVER)
    return Server(programs, durable)


@functools.cache
def _shared_url() -> URL | None:
    if address := os.environ.get("GLM_TEST_POSTGRES"):
        return make_url(address)
    programs = installed()
    return None if programs is None else Server(programs).url


def new_database() -> str:
    """The URL of an empty database, on one server for the whole test session; skips the test if there is none."""
    url = _shared_url()
    if url is None:
        pytest.skip(NO_SERVER)
    name = f"glm_test_{uuid.uuid4().hex}"
    execute(url, f'CREATE DATABASE "{name}"')
    return url.set(database=name).render_as_string(hide_password=False)


def drop_database(address: str) -> None:
    """Remove what `new_database` made, whoever is still connected to it."""
    url = _shared_url()
    assert url is not None
    execute(url, f'DROP DATABASE "{make_url(address).database}" WITH (FORCE)')


def execute(address: str | URL, *statements: str) -> None:
    """Run statements outside a transaction, as an administrator would."""
    url = make_url(address).set(drivername="postgresql+psycopg")
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
