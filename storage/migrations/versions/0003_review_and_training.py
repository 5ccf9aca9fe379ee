"""Staff with keys, invitations and an audit; reviews with corrected spans; datasets, training runs, service, evaluations."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "audit_entry",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("moment", MOMENT, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.Text(), nullable=False),
        sa.Column("details", sa.JSON()),
        sa.PrimaryKeyConstraint("id", name="pk_audit_entry"),
    )
    op.create_index("ix_audit_entry_moment_id", "audit_entry", ["moment", "id"])
    op.create_index("ix_audit_entry_subject_subject_id", "audit_entry", ["subject", "subject_id"])
    op.create_table(
        "staff",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("password", sa.Text()),
        sa.Column("created", MOMENT, nullable=False),
        sa.Column("disabled", MOMENT),
        sa.CheckConstraint("role IN ('reviewer', 'admin')", name=op.f("ck_staff_role")),
        sa.PrimaryKeyConstraint("id", name="pk_staff"),
        sa.UniqueConstraint("name", name="uq_staff_name"),
    )
    op.create_table(
        "dataset",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("filters", sa.JSON(), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("created", MOMENT, nullable=False),
        sa.Column("created_by", sa.Text()),
        sa.ForeignKeyConstraint(["created_by"], ["staff.id"], name="fk_dataset_created_by_staff"),
        sa.PrimaryKeyConstraint("id", name="pk_dataset"),
        sa.UniqueConstraint("name", "version", name="uq_dataset_name_version"),
    )
    op.create_table(
        "invitation",
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("staff_id", sa.Text()),
        sa.Column("created_by", sa.Text()),
        sa.Column("created", MOMENT, nullable=False),
        sa.Column("expires", MOMENT, nullable=False),
        sa.Column("used", MOMENT),
        sa.CheckConstraint("role IN ('reviewer', 'admin')", name=op.f("ck_invitation_role")),
        sa.ForeignKeyConstraint(["created_by"], ["staff.id"], name="fk_invitation_created_by_staff"),
        sa.ForeignKeyConstraint(["staff_id"], ["staff.id"], name="fk_invitation_staff_id_staff", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("hash", name="pk_invitation"),
    )
    op.create_table(
        "staff_key",
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("staff_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("created", MOMENT, nullable=False),
        sa.Column("expires", MOMENT),
        sa.CheckConstraint("kind IN ('session', 'key')", name=op.f("ck_staff_key_kind")),
        sa.ForeignKeyConstraint(["staff_id"], ["staff.id"], name="fk_staff_key_staff_id_staff", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("hash", name="pk_staff_key"),
    )
    op.create_index("ix_staff_key_staff_id", "staff_key", ["staff_id"])
    op.create_table(
        "deployment",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_version_id", sa.Integer(), nullable=False),
        sa.Column("since", MOMENT, nullable=False),
        sa.Column("until", MOMENT),
        sa.Column("staff_id", sa.Text()),
        sa.ForeignKeyConstraint(
            ["model_version_id"], ["model_version.id"], name="fk_deployment_model_version_id_model_version"
        ),
        sa.ForeignKeyConstraint(["staff_id"], ["staff.id"], name="fk_deployment_staff_id_staff"),
        sa.PrimaryKeyConstraint("id", name="pk_deployment"),
    )
    op.create_index("ix_deployment_since_id", "deployment", ["since", "id"])
    op.create_table(
        "training_run",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("dataset_id", sa.Text(), nullable=False),
        sa.Column("base_version_id", sa.Integer(), nullable=False),
        sa.Column("result_version_id", sa.Integer()),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("process", sa.JSON()),
        sa.Column("progress", sa.JSON()),
        sa.Column("error", sa.Text()),
        sa.Column("created", MOMENT, nullable=False),
        sa.Column("created_by", sa.Text()),
        sa.Column("started", MOMENT),
        sa.Column("finished", MOMENT),
        sa.CheckConstraint("kind IN ('lora', 'full')", name=op.f("ck_training_run_kind")),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'stopping', 'stopped', 'done', 'failed')",
            name=op.f("ck_training_run_state"),
        ),
        sa.ForeignKeyConstraint(
            ["base_version_id"], ["model_version.id"], name="fk_training_run_base_version_id_model_version"
        ),
        sa.ForeignKeyConstraint(["created_by"], ["staff.id"], name="fk_training_run_created_by_staff"),
        sa.ForeignKeyConstraint(["dataset_id"], ["dataset.id"], name="fk_training_run_dataset_id_dataset"),
        sa.ForeignKeyConstraint(
            ["result_version_id"], ["model_version.id"], name="fk_training_run_result_version_id_model_version"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_training_run"),
    )
    op.create_index("ix_training_run_created_id", "training_run", ["created", "id"])
    op.create_table(
        "dataset_row",
        sa.Column("dataset_id", sa.Text(), nullable=False),
        sa.Column("index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("run_id", sa.Text()),
        sa.Column("reviewer_id", sa.Text()),
        sa.Column("part", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("content", sa.JSON()),
        sa.Column("removed", MOMENT),
        sa.CheckConstraint("part IN ('train', 'held_out')", name=op.f("ck_dataset_row_part")),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["dataset.id"], name="fk_dataset_row_dataset_id_dataset", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["reviewer_id"], ["staff.id"], name="fk_dataset_row_reviewer_id_staff"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_dataset_row_run_id_run"),
        sa.PrimaryKeyConstraint("dataset_id", "index", name="pk_dataset_row"),
    )
    op.create_index("ix_dataset_row_run_id", "dataset_row", ["run_id"])
    op.create_table(
        "evaluation",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("model_version_id", sa.Integer(), nullable=False),
        sa.Column("other_version_id", sa.Integer()),
        sa.Column("training_run_id", sa.Text()),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("results", sa.JSON()),
        sa.Column("created", MOMENT, nullable=False),
        sa.Column("created_by", sa.Text()),
        sa.Column("finished", MOMENT),
        sa.CheckConstraint("state IN ('running', 'stopped', 'done', 'failed')", name=op.f("ck_evaluation_state")),
        sa.ForeignKeyConstraint(["created_by"], ["staff.id"], name="fk_evaluation_created_by_staff"),
        sa.ForeignKeyConstraint(
            ["model_version_id"], ["model_version.id"], name="fk_evaluation_model_version_id_model_version"
        ),
        sa.ForeignKeyConstraint(
            ["other_version_id"], ["model_version.id"], name="fk_evaluation_other_version_id_model_version"
        ),
        sa.ForeignKeyConstraint(
            ["training_run_id"], ["training_run.id"], name="fk_evaluation_training_run_id_training_run"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_evaluation"),
    )
    op.create_index("ix_evaluation_model_version_id_created", "evaluation", ["model_version_id", "created"])
    op.create_table(
        "review",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("rating", sa.Integer()),
        sa.Column("flagged", sa.Boolean(), nullable=False),
        sa.Column("corrected", sa.Text()),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("reviewer_id", sa.Text()),
        sa.Column("created", MOMENT, nullable=False),
        sa.Column("updated", MOMENT, nullable=False),
        sa.CheckConstraint("status IN ('open', 'done')", name=op.f("ck_review_status")),
        sa.CheckConstraint("rating BETWEEN 1 AND 5", name=op.f("ck_review_rating")),
        sa.ForeignKeyConstraint(["reviewer_id"], ["staff.id"], name="fk_review_reviewer_id_staff"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_review_run_id_run", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", name="pk_review"),
    )
    op.create_index("ix_review_rating_run_id", "review", ["rating", "run_id"])
    op.create_index("ix_review_reviewer_id_updated", "review", ["reviewer_id", "updated"])
    op.create_index("ix_review_updated_run_id", "review", ["updated", "run_id"])
    op.create_table(
        "review_tag",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("tag", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["review.run_id"], name="fk_review_tag_run_id_review", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "tag", name="pk_review_tag"),
    )
    op.create_index("ix_review_tag_tag_run_id", "review_tag", ["tag", "run_id"])
    op.create_table(
        "span_correction",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("start", sa.Integer(), nullable=False),
        sa.Column("end", sa.Integer(), nullable=False),
        sa.Column("rejected", sa.Text(), nullable=False),
        sa.Column("chosen", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("alternatives", sa.JSON()),
        sa.Column("logprob", sa.Float(precision=53)),
        sa.Column("reviewer_id", sa.Text()),
        sa.Column("created", MOMENT, nullable=False),
        sa.CheckConstraint("source IN ('model', 'typed')", name=op.f("ck_span_correction_source")),
        sa.ForeignKeyConstraint(["reviewer_id"], ["staff.id"], name="fk_span_correction_reviewer_id_staff"),
        sa.ForeignKeyConstraint(
            ["run_id"], ["review.run_id"], name="fk_span_correction_run_id_review", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_span_correction"),
    )
    op.create_index("ix_span_correction_run_id_start", "span_correction", ["run_id", "start"])
    with op.batch_alter_table("model_version") as batch_op:
        batch_op.add_column(sa.Column("dataset_id", sa.Text()))
        batch_op.add_column(sa.Column("folder", sa.Text()))
        batch_op.add_column(sa.Column("tainted", MOMENT))
        batch_op.create_foreign_key("fk_model_version_dataset_id_dataset", "dataset", ["dataset_id"], ["id"])


def downgrade() -> None:
    with op.batch_alter_table("model_version") as batch_op:
        batch_op.drop_constraint("fk_model_version_dataset_id_dataset", type_="foreignkey")
        batch_op.drop_column("tainted")
        batch_op.drop_column("folder")
        batch_op.drop_column("dataset_id")
    for table in (
        "span_correction",
        "review_tag",
        "review",
        "evaluation",
        "dataset_row",
        "training_run",
        "deployment",
        "staff_key",
        "invitation",
        "dataset",
        "staff",
        "audit_entry",
    ):
        op.drop_table(table)
