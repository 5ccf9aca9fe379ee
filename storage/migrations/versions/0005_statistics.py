"""An index with all that statistics read of a run, so that they look at no row with its long texts."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

COLUMNS = [
    "created",
    "client",
    "mode",
    "model_version_id",
    "status",
    "prompt_tokens",
    "new_tokens",
    "queue_milliseconds",
    "first_token_milliseconds",
    "total_milliseconds",
]


def upgrade() -> None:
    op.create_index("ix_run_statistics", "run", COLUMNS)


def downgrade() -> None:
    op.drop_index("ix_run_statistics", "run")
