"""Conversations, runs, blanks, feedback, model versions.

The types are written out: a migration must go on making the same tables however `storage.models` changes later.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
UNFINISHED = "status IN ('accepted', 'running')"


def upgrade() -> None:
    op.create_table(
        "model_version",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("weights_hash", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("parent_id", sa.Integer()),
        sa.Column("created", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_model_version"),
        sa.UniqueConstraint("weights_hash", name="uq_model_version_weights_hash"),
        sa.ForeignKeyConstraint(["parent_id"], ["model_version.id"], name="fk_model_version_parent_id_model_version"),
    )
    op.create_table(
        "conversation",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("visitor", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("created", MOMENT, nullable=False),
        sa.Column("updated", MOMENT, nullable=False),
        sa.Column("deleted", MOMENT),
        sa.PrimaryKeyConstraint("id", name="pk_conversation"),
        sa.CheckConstraint("kind IN ('chat', 'blanks', 'complete', 'api')", name=op.f("ck_conversation_kind")),
    )
    op.create_index("ix_conversation_visitor_updated_id", "conversation", ["visitor", "updated", "id"])
    op.create_table(
        "run",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("conversation_id", sa.Text()),
        sa.Column("model_version_id", sa.Integer()),
        sa.Column("visitor", sa.Text(), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("server", sa.Text(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("prompt", sa.JSON()),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("seed", sa.BigInteger()),
        sa.Column("fingerprint", sa.JSON()),
        sa.Column("repaired", sa.Boolean(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("output", sa.Text()),
        sa.Column("finish_reason", sa.Text()),
        sa.Column("error_kind", sa.Text()),
        sa.Column("error_message", sa.Text()),
        sa.Column("prompt_tokens", sa.Integer()),
        sa.Column("new_tokens", sa.Integer()),
        sa.Column("largest_batch", sa.Integer()),
        sa.Column("mean_logprob", sa.Float(53)),
        sa.Column("created", MOMENT, nullable=False),
        sa.Column("started", MOMENT),
        sa.Column("finished", MOMENT),
        sa.Column("deleted", MOMENT),
        sa.Column("queue_milliseconds", sa.Float(53)),
        sa.Column("first_token_milliseconds", sa.Float(53)),
        sa.Column("total_milliseconds", sa.Float(53)),
        sa.PrimaryKeyConstraint("id", name="pk_run"),
        sa.ForeignKeyConstraint(["conversation_id"], ["conversation.id"], name="fk_run_conversation_id_conversation"),
        sa.ForeignKeyConstraint(
            ["model_version_id"], ["model_version.id"], name="fk_run_model_version_id_model_version"
        ),
        sa.CheckConstraint(
            "status IN ('accepted', 'running', 'done', 'cancelled', 'error', 'interrupted')", name=op.f("ck_run_status")
        ),
    )
    op.create_index("ix_run_conversation_id_created", "run", ["conversation_id", "created"])
    op.create_index("ix_run_visitor_created", "run", ["visitor", "created"])
    op.create_index("ix_run_created_id", "run", ["created", "id"])
    op.create_index("ix_run_model_version_id_created", "run", ["model_version_id", "created"])
    op.create_index(
        "ix_run_unfinished", "run", ["status"], sqlite_where=sa.text(UNFINISHED), postgresql_where=sa.text(UNFINISHED)
    )
    op.create_table(
        "blank",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("token_ids", sa.LargeBinary(), nullable=False),
        sa.Column("logprobs", sa.LargeBinary(), nullable=False),
        sa.Column("alternatives", sa.JSON()),
        sa.PrimaryKeyConstraint("run_id", "index", name="pk_blank"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_blank_run_id_run", ondelete="CASCADE"),
    )
    op.create_table(
        "feedback",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("visitor", sa.Text(), nullable=False),
        sa.Column("rating", sa.Integer()),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("created", MOMENT, nullable=False),
        sa.Column("updated", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "visitor", name="pk_feedback"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_feedback_run_id_run", ondelete="CASCADE"),
        sa.CheckConstraint("rating IN (-1, 1)", name=op.f("ck_feedback_rating")),
    )


def downgrade() -> None:
    for table in ("feedback", "blank", "run", "conversation", "model_version"):
        op.drop_table(table)
