"""Shared pages with their reports, and votes between two answers."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "share",
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("conversation_id", sa.Text()),
        sa.Column("visitor", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("content", sa.JSON()),
        sa.Column("created", MOMENT, nullable=False),
        sa.Column("expires", MOMENT),
        sa.Column("revoked", MOMENT),
        sa.PrimaryKeyConstraint("token", name="pk_share"),
        sa.ForeignKeyConstraint(["conversation_id"], ["conversation.id"], name="fk_share_conversation_id_conversation"),
    )
    op.create_index("ix_share_visitor_created", "share", ["visitor", "created"])
    op.create_index("ix_share_conversation_id", "share", ["conversation_id"])
    op.create_table(
        "share_report",
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("visitor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("token", "visitor", name="pk_share_report"),
        sa.ForeignKeyConstraint(["token"], ["share.token"], name="fk_share_report_token_share", ondelete="CASCADE"),
    )
    op.create_table(
        "vote",
        sa.Column("first_run_id", sa.Text(), nullable=False),
        sa.Column("second_run_id", sa.Text(), nullable=False),
        sa.Column("visitor", sa.Text(), nullable=False),
        sa.Column("choice", sa.Text(), nullable=False),
        sa.Column("blind", sa.Boolean(), nullable=False),
        sa.Column("created", MOMENT, nullable=False),
        sa.Column("updated", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("first_run_id", "second_run_id", "visitor", name="pk_vote"),
        sa.ForeignKeyConstraint(["first_run_id"], ["run.id"], name="fk_vote_first_run_id_run", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["second_run_id"], ["run.id"], name="fk_vote_second_run_id_run", ondelete="CASCADE"),
        sa.CheckConstraint("choice IN ('first', 'second', 'tie', 'neither')", name=op.f("ck_vote_choice")),
    )


def downgrade() -> None:
    for table in ("vote", "share_report", "share"):
        op.drop_table(table)
