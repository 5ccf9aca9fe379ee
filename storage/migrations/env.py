"""Alembic's entry: runs the scripts of `versions/` on the connection that `storage.migration` holds and has locked."""

from alembic import context

from storage.models import Base

connection = context.config.attributes.get("connection")
if connection is None:
    raise RuntimeError("migrations run through `python -m storage migrate`, which takes the lock that they need")

context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite changes a table only by copying it
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
