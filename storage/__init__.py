"""The record: every conversation, run, filled blank and rating, in SQLite or PostgreSQL.

    database = Database("sqlite:///var/glm.sqlite3")    # or postgresql://user@host/name
    await database.migrate()                             # safe from several processes at once
    record = Record(database)
    await record.interrupt_unfinished()
    run = await record.accept_run(...)                   # before generation starts
    await record.finalise_run(run, "done", ...)          # exactly once

Knows nothing of the web or of the model. Every failure that a person or a machine causes is a `StorageError`.
"""

# The tables that `models` refers to must be known before the first query.
from storage import review_tables, staff_tables, training_tables  # noqa: F401
from storage.conversations import Page
from storage.database import Database
from storage.errors import StorageError
from storage.record import FilledBlank, Record

__all__ = ["Database", "FilledBlank", "Page", "Record", "StorageError"]
