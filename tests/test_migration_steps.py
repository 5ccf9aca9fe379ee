"""storage.migrations, one after the other: what a database of the first version holds is there in each later one, and on the way
back."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, MetaData, NullPool, create_engine, select

from storage import Database, FilledBlank, Record, compact, migration
from storage.address import Address
from tests import databases
from tests.databases import accept

REVISIONS = sorted(
    path.name.partition("_")[0]
    for path in (Path(__file__).parent.parent / "storage" / "migrations" / "versions").glob("*.py")
)

# The fixture of this file, on SQLite and on PostgreSQL.
address = databases.address


def work_on(address: Address, work: Any) -> Any:
    """What `work(connection, tables)` gives; the tables are those that the database itself says it has."""
    engine = create_engine(address.server or f"sqlite:///{address.file}", poolclass=NullPool)
    with engine.begin() as connection:
        found = MetaData()
        found.reflect(connection)
        return work(connection, found.tables)


def fill(connection: Connection, tables: Any) -> None:
    """Rows as the first version wrote them."""
    moment = datetime(2024, 2, 29, 23, 59, 58, 123456, UTC)
    if connection.dialect.name == "sqlite":
        moment = moment.replace(tzinfo=None)
    ids, logprobs = compact.pack_ids((1, 150_000)), compact.pack_floats((-0.5, -2.0))
    rows: dict[str, list[dict[str, Any]]] = {
        "model_version": [{"id": 1, "weights_hash": "sha", "name": "embedded", "config": {}, "created": moment}],
        "conversation": [
            {"id": "talk", "visitor": "ann", "kind": "chat", "title": "雪", "created": moment, "updated": moment}
        ],
        "run": [
            {
                "id": id,
                "conversation_id": "talk",
                "model_version_id": 1,
                "visitor": "ann",
                "client": "web",
                "server": "",
                "mode": "chat",
                "prompt": [{"role": "user", "content": "今天天气好吗？ snow"}],
                "parameters": {"temperature": 0.5},
                "seed": -1,
                "repaired": False,
                "status": status,
                "output": output,
                "created": moment,
                "mean_logprob": -1.25 if output else None,
            }
            for id, status, output in (("one", "done", "下雪了 snowing"), ("two", "accepted", None))
        ],
        "blank": [
            {"run_id": "one", "index": 0, "kind": "[gMASK]", "text": "下雪了", "token_ids": ids, "logprobs": logprobs}
        ],
        "feedback": [
            {"run_id": "one", "visitor": "ann", "rating": -1, "comment": "冷", "created": moment, "updated": moment}
        ],
    }
    for table, some in rows.items():
        connection.execute(tables[table].insert(), some)


def seen(connection: Connection, tables: Any) -> list[Any]:
    run, blank, feedback = tables["run"], tables["blank"], tables["feedback"]
    return [
        tuple(row)
        for statement in (
            select(run.c.id, run.c.status, run.c.prompt, run.c.output, run.c.seed, run.c.mean_logprob)
            .where(run.c.id.in_(("one", "two")))
            .order_by(run.c.id),
            select(blank.c.text, blank.c.token_ids, blank.c.logprobs).where(blank.c.run_id == "one"),
            select(feedback.c.rating, feedback.c.comment).where(feedback.c.run_id == "one"),
            select(tables["conversation"].c.title).where(tables["conversation"].c.id == "talk"),
            select(tables["model_version"].c.name).where(tables["model_version"].c.weights_hash == "sha"),
        )
        for row in connection.execute(statement)
    ]


async def test_data_of_the_first_version_goes_all_the_way_up_and_down(address: str) -> None:
    database = Database(address)
    assert migration.upgrade(database.address, REVISIONS[0]) == REVISIONS[0]
    work_on(database.address, fill)
    before = work_on(database.address, seen)
    assert len(before) == 6
    for revision in REVISIONS[1:]:
        assert migration.upgrade(database.address, revision) == revision
        assert work_on(database.address, seen) == before, revision
    assert await database.migrate() == migration.newest() == REVISIONS[-1]

    record = Record(database)
    run = await record.get_run("one", "ann")
    assert (run.output, run.seed, run.blanks[0].token_ids) == ("下雪了 snowing", 2**64 - 1, (1, 150_000))
    assert await record.interrupt_unfinished() == 1
    await accept(record, "new", conversation="talk", model_version=1)
    assert await record.finalise_run("new", "done", output="新的", blanks=[FilledBlank(0, "[gMASK]", "新的")])
    await database.close()

    before = work_on(database.address, seen)
    for revision in reversed(REVISIONS[:-1]):
        assert migration.downgrade(database.address, revision) == revision
        assert work_on(database.address, seen) == before, revision
    assert await database.migrate() == migration.newest()
    assert (await record.get_run("new", "ann")).output == "新的", "what is newer than the first version too"
    assert (await record.get_run("two", "ann")).status == "interrupted"
    await database.close()
