"""storage.migration: up, down and up again, from several processes at once, and never over a newer program's database."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

from storage import Database, FilledBlank, Record, StorageError, migration
from storage.models import Base
from tests import databases
from tests.databases import accept, refused

ROOT = Path(__file__).parent.parent
VISITORS = {"conversation", "run", "blank", "feedback", "model_version", "share", "share_report", "vote"}
STAFF = {"staff", "staff_key", "invitation", "audit_entry"}
REVIEW = {"review", "review_tag", "span_correction"}
TRAINING = {"dataset", "dataset_row", "training_run", "deployment", "evaluation"}
SEARCH = {"run_search"}  # of storage.search, which no model stands for
TABLES = VISITORS | STAFF | REVIEW | TRAINING | SEARCH

# The fixtures of this file, each on SQLite and on PostgreSQL.
address, record = databases.address, databases.record


async def look(database: Database, see):
    """What `see(connection)` tells about the database."""

    async def work(session):
        return await (await session.connection()).run_sync(see)

    return await database.read(work)


def tables(connection: Connection) -> set[str]:
    found = set(inspect(connection).get_table_names()) - {"alembic_version"}
    return {name for name in found if not name.startswith("run_search_")}  # the parts of a table of SQLite's FTS5


async def test_up_down_and_up_again(address: str):
    database = Database(address)
    assert await database.migrate() == migration.newest()
    assert await look(database, tables) == TABLES
    record = Record(database)
    conversation = await record.create_conversation("ann", "chat")
    version = await record.ensure_model_version("sha", "embedded", {})
    await accept(record, conversation=conversation, model_version=version)
    await record.finalise_run("run", "done", blanks=[FilledBlank(0, "[gMASK]", "text", (1,), (-1.0,))])
    await record.add_feedback("run", "ann", rating=1)
    assert await database.migrate() == migration.newest()
    assert len((await record.get_run("run", "ann")).blanks) == 1, "migrating again keeps everything"
    await database.close()

    assert migration.downgrade(database.address, "base") == ""
    assert await look(database, tables) == set()
    assert await database.migrate() == migration.newest()
    assert await look(database, tables) == TABLES
    assert (await record.counts())["runs"] == 0
    await accept(record)
    await database.close()


async def test_the_migrations_make_exactly_the_models(record: Record):
    def differences(connection: Connection) -> list:
        opts = {"compare_type": True, "include_name": lambda name, kind, _: kind != "table" or name in TABLES - SEARCH}
        return compare_metadata(MigrationContext.configure(connection, opts=opts), Base.metadata)

    assert await look(record.database, differences) == []

    def constraints(connection: Connection) -> dict[str, list[str]]:
        found = inspect(connection)
        return {name: sorted(str(check["name"]) for check in found.get_check_constraints(name)) for name in TABLES}

    # Alembic doesn't compare these.
    names = {
        name: [check for check in found if check != "None"]
        for name, found in (await look(record.database, constraints)).items()
    }
    assert {name: found for name, found in names.items() if found} == {
        "conversation": ["ck_conversation_kind"],
        "run": ["ck_run_status"],
        "feedback": ["ck_feedback_rating"],
        "vote": ["ck_vote_choice"],
        "staff": ["ck_staff_role"],
        "staff_key": ["ck_staff_key_kind"],
        "invitation": ["ck_invitation_role"],
        "review": ["ck_review_rating", "ck_review_status"],
        "span_correction": ["ck_span_correction_source"],
        "dataset_row": ["ck_dataset_row_part"],
        "training_run": ["ck_training_run_kind", "ck_training_run_state"],
        "evaluation": ["ck_evaluation_state"],
    }


async def test_the_database_itself_refuses_what_must_not_be(record: Record):
    await accept(record)
    wrong = {
        "a status": "UPDATE run SET status = 'finished'",
        "a rating": "INSERT INTO feedback VALUES ('run', 'ann', 5, '', '2024-01-01', '2024-01-01')",
        "a kind": "INSERT INTO conversation VALUES ('id', 'ann', 'talk', '', '2024-01-01', '2024-01-01', NULL)",
        "no visitor": "UPDATE run SET visitor = NULL",
        "a foreign key": "UPDATE run SET conversation_id = 'none'",
    }
    for what, statement in wrong.items():

        async def work(session, statement: str = statement) -> None:
            await session.execute(text(statement))

        with pytest.raises(Exception, match="(?i)constraint|does not exist"):
            await record.database.write(work)
            pytest.fail(f"{what} was let in")
    assert (await record.get_run("run", None)).status == "accepted"


async def test_several_processes_at_once(address: str):
    program = "import sys; from storage.__main__ import main; sys.stdin.readline(); sys.exit(main(['migrate']))"
    environment = {**os.environ, "GLM_DATABASE": address}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:  # all have been started: let them go together
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0 and errors == "", errors
        assert output.endswith(f"is at revision {migration.newest()}\n")
    database = Database(address)
    assert await look(database, tables) == TABLES
    await accept(Record(database))
    await database.close()


async def test_a_newer_database_is_refused_untouched(record: Record):
    await accept(record)

    async def future(session) -> None:
        await session.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    await record.database.write(future)
    with pytest.raises(StorageError, match="newer than this program.*9999.*" + migration.newest()) as caught:
        await record.database.migrate()
    assert caught.value.kind == "database_newer"
    with pytest.raises(StorageError):
        migration.downgrade(record.database.address, "base")
    assert (await record.get_run("run", None)).prompt == "Hello"


async def test_a_migration_that_fails_leaves_the_former_state(address: str):
    database = Database(address)
    await database.migrate()
    migration.downgrade(database.address, "base")

    # The last table is there already, made by hand: the tables before it must not stay.
    async def by_hand(session) -> None:
        await session.execute(text("CREATE TABLE feedback (id INTEGER)"))

    await database.write(by_hand)
    with pytest.raises(Exception, match="feedback"):
        await database.migrate()
    assert await look(database, tables) == {"feedback"}
    await database.close()


def test_every_revision_has_one_parent_and_a_way_back():
    files = sorted((ROOT / "storage" / "migrations" / "versions").glob("*.py"))
    parent = None
    for file in files:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert (module.down_revision, file.name.split("_")[0]) == (parent, module.revision)
        assert callable(module.upgrade) and callable(module.downgrade)
        parent = module.revision
    assert parent == migration.newest()


def command(*arguments: str, address: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "GLM_DATABASE"}
    if address is not None:
        environment["GLM_DATABASE"] = address
    line = [sys.executable, "-m", "storage", *arguments]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


async def test_the_command_line(address: str, tmp_path: Path):
    first = command("migrate", "--database", address)
    assert first.returncode == 0 and f"revision {migration.newest()}" in first.stdout, first.stderr
    database = Database(address)
    record = Record(database)
    await accept(record)
    await record.finalise_run("run", "done", new_tokens=1234)
    await database.close()
    stats = command("stats", address=address)
    assert stats.returncode == 0, stats.stderr
    lines = {line[:20].strip(): line[20:].strip() for line in stats.stdout.splitlines()}
    assert (lines["runs"], lines["runs done"], lines["runs error"], lines["new tokens"]) == ("1", "1", "0", "1,234")


def test_the_command_line_explains_itself(tmp_path: Path):
    for arguments in (["--help"], ["migrate", "--help"], ["stats", "--help"]):
        shown = command(*arguments)
        assert shown.returncode == 0 and len(shown.stdout) > 200
    missing = command("stats", "--database", str(tmp_path / "none.sqlite3"))
    assert missing.returncode == 1 and missing.stdout == ""
    assert missing.stderr == "The database file is missing or not accessible.\n"
    unsaid = command("migrate")
    assert unsaid.returncode == 2 and "GLM_DATABASE" in unsaid.stderr


async def test_refusals_are_sentences(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    assert await refused(Database(tmp_path / "file" / "glm.sqlite3").migrate()) == "database_unavailable"
