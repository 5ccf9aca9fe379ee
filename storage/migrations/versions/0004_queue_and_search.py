"""What the review desk orders and filters runs by, and the full-text index, filled from the runs that are there.

Columns and indexes stand on `run` itself; the index's table is FTS5 on SQLite and a column of tsvectors on PostgreSQL. Triggers
take a run's entry away when its texts are erased.
"""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

from storage.run_numbers import run_number
from storage.search import entry, language_of, texts_of

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

BATCH = 500
QUEUED = "finished IS NOT NULL AND deleted IS NULL"
DESK = [
    "mode",
    "language",
    "status",
    "client",
    "model_version_id",
    "created",
    "stars",
    "flagged",
    "reviewed",
    "corrected",
    "thumbs_up",
    "thumbs_down",
    "disagreement",
    "touched",
    "id",
]
COLUMNS = [
    sa.Column("number", sa.BigInteger()),
    sa.Column("language", sa.Text()),
    sa.Column("uncertainty", sa.Float(53), nullable=False, server_default=sa.text("-1")),
    sa.Column("thumbs_up", sa.Integer(), nullable=False, server_default=sa.text("0")),
    sa.Column("thumbs_down", sa.Integer(), nullable=False, server_default=sa.text("0")),
    sa.Column("disagreement", sa.Integer(), nullable=False, server_default=sa.text("0")),
    sa.Column("stars", sa.Integer()),
    sa.Column("flagged", sa.Boolean(), nullable=False, server_default=sa.false()),
    sa.Column("reviewed", sa.Boolean(), nullable=False, server_default=sa.false()),
    sa.Column("corrected", sa.Boolean(), nullable=False, server_default=sa.false()),
    sa.Column("touched", sa.Boolean(), nullable=False, server_default=sa.false()),
]
INDEXES = {
    "ix_run_newest": (["number", *DESK], QUEUED, QUEUED),
    "ix_run_uncertainty": (["uncertainty", "number", *DESK], QUEUED, QUEUED),
    "ix_run_touched": (["number", "uncertainty", *DESK], f"{QUEUED} AND touched IS 1", f"{QUEUED} AND touched IS TRUE"),
}
SQLITE_SEARCH = [
    "CREATE VIRTUAL TABLE run_search USING fts5(words, characters, tokenize='ascii', columnsize=0)",
    "CREATE TRIGGER run_search_erased AFTER UPDATE OF deleted, prompt ON run "
    "WHEN new.deleted IS NOT NULL OR new.prompt IS NULL "
    "BEGIN DELETE FROM run_search WHERE rowid = new.number; END",
    "CREATE TRIGGER run_search_removed AFTER DELETE ON run BEGIN DELETE FROM run_search WHERE rowid = old.number; END",
]
POSTGRES_SEARCH = [
    "CREATE TABLE run_search (number BIGINT NOT NULL, terms TSVECTOR NOT NULL, CONSTRAINT pk_run_search PRIMARY KEY (number))",
    "CREATE FUNCTION run_search_erased() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN DELETE FROM run_search WHERE number = old.number; RETURN NULL; END $$",
    "CREATE TRIGGER run_search_erased AFTER UPDATE OF deleted, prompt ON run FOR EACH ROW "
    "WHEN (new.deleted IS NOT NULL OR new.prompt IS NULL) EXECUTE FUNCTION run_search_erased()",
    "CREATE TRIGGER run_search_removed AFTER DELETE ON run FOR EACH ROW EXECUTE FUNCTION run_search_erased()",
]
# The opinions of a run that are there already. Of A/B votes and thumbs: how many think otherwise than the most.
TALLY = """
    UPDATE run SET
        thumbs_up = (SELECT count(*) FROM feedback WHERE run_id = run.id AND rating = 1),
        thumbs_down = (SELECT count(*) FROM feedback WHERE run_id = run.id AND rating = -1),
        stars = (SELECT rating FROM review WHERE run_id = run.id),
        flagged = EXISTS (SELECT 1 FROM review WHERE run_id = run.id AND review.flagged),
        reviewed = EXISTS (SELECT 1 FROM review WHERE run_id = run.id AND review.status = 'done'),
        corrected = EXISTS (SELECT 1 FROM review WHERE run_id = run.id AND review.corrected IS NOT NULL),
        touched = true
    WHERE id IN (
        SELECT run_id FROM feedback UNION SELECT run_id FROM review UNION SELECT first_run_id FROM vote
        UNION SELECT second_run_id FROM vote
    )
"""
OPINIONS = """
    SELECT run_id, rating FROM feedback WHERE rating IS NOT NULL
    UNION ALL SELECT run_id, CASE WHEN rating > 3 THEN 1 ELSE -1 END FROM review WHERE rating <> 3
    UNION ALL SELECT first_run_id, CASE choice WHEN 'first' THEN 1 ELSE -1 END FROM vote WHERE choice <> 'tie'
    UNION ALL SELECT second_run_id, CASE choice WHEN 'second' THEN 1 ELSE -1 END FROM vote WHERE choice <> 'tie'
"""


def upgrade() -> None:
    for column in COLUMNS:
        op.add_column("run", column.copy())
    connection = op.get_bind()
    for statement in SQLITE_SEARCH if connection.dialect.name == "sqlite" else POSTGRES_SEARCH:
        op.execute(statement)
    op.create_index("ix_vote_second_run_id", "vote", ["second_run_id"])
    _fill(connection)
    op.execute("UPDATE run SET uncertainty = -mean_logprob WHERE mean_logprob IS NOT NULL")
    op.execute(TALLY)
    _fill_disagreement(connection)
    if connection.dialect.name == "postgresql":
        op.execute("CREATE INDEX ix_run_search_terms ON run_search USING gin (terms)")
    op.create_index("ix_run_number", "run", ["number"], unique=True)
    for name, (columns, sqlite, postgresql) in INDEXES.items():
        op.create_index(name, "run", columns, sqlite_where=sa.text(sqlite), postgresql_where=sa.text(postgresql))


def _fill(connection: sa.Connection) -> None:
    """Numbers for all runs, languages and entries of the index for those that have ended, in constant memory."""
    some = sa.text(
        "SELECT id, created, finished, deleted, prompt, output, "
        "(SELECT review.corrected FROM review WHERE run_id = run.id) AS correction "
        "FROM run WHERE number IS NULL ORDER BY created, id LIMIT :batch"
    ).columns(created=sa.DateTime(timezone=True), prompt=sa.JSON())
    number = sa.text("UPDATE run SET number = :number, language = :language WHERE id = :id")
    op.create_index("ix_run_unnumbered", "run", ["created", "id"], **_unnumbered())
    while rows := connection.execute(some, {"batch": BATCH}).all():
        for row in rows:
            created: datetime = row.created if row.created.tzinfo else row.created.replace(tzinfo=UTC)
            texts = texts_of(row.prompt, row.output, row.correction)
            given = run_number(created)
            indexed = row.finished is not None and row.deleted is None
            values = {"number": given, "language": language_of(texts) if indexed else None, "id": row.id}
            connection.execute(number, values)
            if indexed:
                for statement, values in entry(connection.dialect.name, given, texts, new=True):
                    connection.execute(statement, values)
    op.drop_index("ix_run_unnumbered", "run")


def _unnumbered() -> dict[str, sa.TextClause]:
    where = sa.text("number IS NULL")
    return {"sqlite_where": where, "postgresql_where": where}


def _fill_disagreement(connection: sa.Connection) -> None:
    counted = sa.text(
        f"SELECT run_id, sum(CASE WHEN rating > 0 THEN 1 ELSE 0 END) AS good, sum(CASE WHEN rating < 0 THEN 1 ELSE 0 END) AS bad "
        f"FROM ({OPINIONS}) AS opinions GROUP BY run_id"
    )
    for row in connection.execute(counted).all():
        values = {"disagreement": min(row.good, row.bad), "id": row.run_id}
        connection.execute(sa.text("UPDATE run SET disagreement = :disagreement WHERE id = :id"), values)


def downgrade() -> None:
    for name in (*INDEXES, "ix_run_number"):
        op.drop_index(name, "run")
    op.drop_index("ix_vote_second_run_id", "vote")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER run_search_erased ON run")
        op.execute("DROP TRIGGER run_search_removed ON run")
        op.execute("DROP FUNCTION run_search_erased")
    else:
        op.execute("DROP TRIGGER run_search_erased")
        op.execute("DROP TRIGGER run_search_removed")
    op.execute("DROP TABLE run_search")
    for column in reversed(COLUMNS):
        op.drop_column("run", column.name)
