"""storage: killed processes and servers, full disks, read-only and missing databases; each has a name and loses nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from storage import Database, FilledBlank, Record, StorageError
from storage.models import UNFINISHED
from tests import databases, postgres
from tests.databases import accept, refused

ROOT = Path(__file__).parent.parent

# The fixtures of this file, each on SQLite and on PostgreSQL.
address, record = databases.address, databases.record


WRITER = """
import asyncio, sys
from storage import Database, FilledBlank, Record

async def stream(record, number):
    count = 0
    while True:
        id = f"{number}-{count}"
        await record.accept_run(id, visitor="v", mode="chat", prompt=id, parameters={})
        print(f"accepted {id}", flush=True)
        await record.start_run(id)
        blanks = [FilledBlank(index, "[MASK]", id, [index] * 50, [-1.0] * 50) for index in range(3)]
        await record.finalise_run(id, "done", output=id, blanks=blanks)
        print(f"done {id}", flush=True)
        count += 1

async def main():
    record = Record(Database(sys.argv[1]))
    await asyncio.gather(*(stream(record, number) for number in range(64)))

asyncio.run(main())
"""


async def test_a_killed_process_leaves_whole_rows(record: Record, address: str):
    await record.database.close()
    writer = subprocess.Popen([sys.executable, "-c", WRITER, address], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    told: dict[str, set[str]] = {"accepted": set(), "done": set()}
    state = ""
    while len(told["done"]) < 100 or state == "done":  # until one has just been accepted, so that there is a middle
        state, id = writer.stdout.readline().split()
        told[state].add(id)
    writer.send_signal(signal.SIGKILL)
    for line in writer.communicate()[0].splitlines(keepends=True):
        if line.endswith("\n"):  # the last one may have been cut off
            state, id = line.split()
            told[state].add(id)

    counts = await record.counts()
    unfinished = sum(counts["runs_by_status"][status] for status in UNFINISHED)
    assert 0 < unfinished <= 64
    assert await record.interrupt_unfinished() == unfinished
    for id in told["accepted"]:
        run = await record.get_run(id, None)
        assert run.status == ("done" if id in told["done"] else run.status)
        assert run.status in ("done", "interrupted")
        assert (run.output, len(run.blanks)) == ((id, 3) if run.status == "done" else (None, 0))
        assert all(len(blank.token_ids) == len(blank.logprobs) == 50 for blank in run.blanks)
    assert all(
        number == 0 for status, number in (await record.counts())["runs_by_status"].items() if status in UNFINISHED
    )


async def test_a_killed_database_server_is_named_and_comes_back():
    server = postgres.own_server()
    try:
        database = Database(server.url.render_as_string(hide_password=False))
        await database.migrate()
        record = Record(database, databases.Clock())
        await accept(record)
        server.stop("immediate")
        assert await refused(record.finalise_run("run", "done", output="lost")) == "database_unavailable"
        assert await refused(record.get_run("run", None)) == "database_unavailable"
        assert await refused(Database(str(server.url)).migrate()) == "database_unavailable"
        server.start()
        assert (await record.get_run("run", None)).status == "accepted", "an acknowledged acceptance is kept"
        assert await record.finalise_run("run", "done", output="kept")
        server.stop("immediate")
        server.start()
        assert (await record.get_run("run", None)).output == "kept", "a restart that nobody met is not noticed"
        await database.close()
    finally:
        server.remove()


async def test_a_full_disk_has_a_name(record: Record, address: str):
    await accept(record)
    if record.database.dialect == "sqlite":
        # The limit of pages gives the same error as a full disk does; it holds for the one connection that writes.
        def limit(connection, pages: int = 1) -> None:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

        await record.database.write_together(limit)
        restore = record.database.write_together(lambda connection: limit(connection, 1_000_000))
    else:
        # The server itself raises the error that it raises when its disk is full.
        postgres.execute(
            address,
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$",
            "CREATE TRIGGER full_disk BEFORE INSERT ON blank FOR EACH ROW EXECUTE FUNCTION full_disk()",
        )
        restore = asyncio.to_thread(postgres.execute, address, "DROP TRIGGER full_disk ON blank")
    big = [FilledBlank(0, "[gMASK]", "x" * 1_000_000)]
    assert await refused(record.finalise_run("run", "done", output="x", blanks=big)) == "disk_full"
    run = await record.get_run("run", "ann")
    assert (run.status, run.output, run.blanks) == ("accepted", None, []), (
        "reading goes on, and nothing is half written"
    )
    await restore
    assert await record.finalise_run("run", "done", output="x", blanks=big), "it recovers by itself"


READ_ONLY = """
import asyncio, os, sys
from pathlib import Path
from storage import Database, Record, StorageError

async def main():
    record = Record(Database(sys.argv[1]))
    await record.database.migrate()  # also loads every module, before rights are given up
    await record.database.close()
    folder = Path(sys.argv[1]).parent
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)
    for attempt in (record.interrupt_unfinished, record.database.migrate):
        try:
            await attempt()
        except StorageError as error:
            print(error.kind, error)
        else:
            print("no error")
    await record.database.close()

asyncio.run(main())
"""


async def test_a_read_only_sqlite_file_has_a_name():
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path, which only its owner can enter
        os.chmod(folder, 0o755)
        arguments = [sys.executable, "-c", READ_ONLY, f"{folder}/glm.sqlite3"]
        result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=60)
        os.chmod(folder, 0o755)
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["database_unavailable"] * 2, result.stdout


SMALL_DISK = """
import asyncio, errno, os, sys
from storage import Database, FilledBlank, Record, StorageError

def fill(path):
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC

async def kind(awaitable):
    try:
        return await awaitable
    except StorageError as error:
        return error.kind

async def main():
    folder = sys.argv[1]
    record = Record(Database(f"{folder}/glm.sqlite3"))
    await record.database.migrate()
    run = dict(visitor="v", mode="chat", prompt="p" * 10_000, parameters={})
    await record.accept_run("before", **run)
    fill(f"{folder}/filler")
    blanks = [FilledBlank(0, "[gMASK]", "x" * 500_000)]
    print("finalise", await kind(record.finalise_run("before", "done", blanks=blanks)))
    print("accept", await kind(record.accept_run("after", **run)))
    print("migrate", await kind(Database(f"{folder}/other.sqlite3").migrate()))
    print("read", (await record.get_run("before", "v")).status)
    os.remove(f"{folder}/filler")
    print("finalise again", await kind(record.finalise_run("before", "done", blanks=blanks)))
    await record.database.close()

asyncio.run(main())
"""


async def test_a_really_full_disk(tmp_path: Path):
    result = subprocess.run(
        [*databases.small_disk(tmp_path, "2m"), sys.executable, "-c", SMALL_DISK, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "finalise disk_full",
        "accept disk_full",
        "migrate disk_full",
        "read accepted",
        "finalise again True",
    ]


async def test_a_read_only_server_has_a_name():
    address = postgres.new_database()
    database = Database(address)
    await database.migrate()
    await database.close()
    name = database.address.server.database
    postgres.execute(address, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    assert await refused(accept(Record(database))) == "database_unavailable"
    assert (await Record(database).counts())["runs"] == 0
    await database.close()
    postgres.drop_database(address)


async def test_what_is_not_there_has_a_name(tmp_path: Path, record: Record):
    missing = Record(Database(tmp_path / "none" / "glm.sqlite3"))
    assert await refused(missing.counts()) == "database_unavailable"
    assert not (tmp_path / "none").exists(), "reading makes no file"
    empty = tmp_path / "empty.sqlite3"
    empty.touch()
    unmigrated = Record(Database(empty))
    assert await refused(unmigrated.counts()) == "database_unavailable"
    await unmigrated.database.close()
    damaged = tmp_path / "damaged.sqlite3"
    damaged.write_bytes(b"not a database at all" * 1000)
    assert await refused(Database(damaged).migrate()) == "database_unavailable"
    assert await refused(Database("postgresql://nobody@/none?host=/nonexistent").migrate()) == "database_unavailable"
    for address in ("mysql://host/name", "sqlite://", "sqlite:///:memory:", "", "://"):
        with pytest.raises(StorageError) as caught:
            Database(address)
        assert caught.value.kind == "database_unavailable"


async def test_a_forgotten_close_does_not_keep_the_process(address: str):
    program = """if True:
        import asyncio, sys
        from storage import Database, Record
        async def main():
            record = Record(Database(sys.argv[1]))
            await record.database.migrate()
            print(await record.interrupt_unfinished(), (await record.counts())["runs"])
        asyncio.run(main())
    """
    result = subprocess.run(
        [sys.executable, "-c", program, address], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert (result.returncode, result.stdout) == (0, "0 0\n"), result.stderr


async def test_sqlite_held_by_another_program_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("storage.database.BUSY_SECONDS", 0.05)
    database = Database(tmp_path / "glm.sqlite3")
    await database.migrate()
    holder = sqlite3.connect(tmp_path / "glm.sqlite3", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    assert await refused(accept(Record(database))) == "database_unavailable"
    assert (await Record(database).counts())["runs"] == 0, "readers wait for nobody"
    holder.execute("ROLLBACK")
    holder.close()
    await accept(Record(database))
    await database.close()
