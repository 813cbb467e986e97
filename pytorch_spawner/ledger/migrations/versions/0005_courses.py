"""Courses: their manifests, how far they are, whose copy is where, and orders to those copies."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "courses",
        sa.Column("hub", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("manifest", sa.JSON, nullable=False),
        sa.Column("by", sa.String(255), nullable=False),
        sa.Column("changed_at", sa.Float, nullable=False),
        sa.Column("task", sa.String(16), nullable=False),
        sa.Column("task_by", sa.String(255), nullable=False),
        sa.Column("asked_at", sa.Float, nullable=False),
        sa.Column("is_running", sa.Boolean, nullable=False),
        sa.Column("stop_asked", sa.Boolean, nullable=False),
        sa.Column("steps", sa.JSON, nullable=False),
        sa.Column("preloaded_at", sa.Float, nullable=True),
        sa.Column("candidate", sa.String(64), nullable=False),
        sa.Column("candidate_served", sa.String(64), nullable=False),
        sa.Column("candidate_says", sa.Text, nullable=False),
        sa.Column("commit_id", sa.String(64), nullable=False),
        sa.Column("served", sa.String(64), nullable=False),
        sa.Column("published_at", sa.Float, nullable=True),
        sa.Column("published_by", sa.String(255), nullable=False),
        sa.Column("serial", sa.Integer, nullable=False),
    )
    op.create_table(
        "course_students",
        sa.Column("hub", sa.String(64), primary_key=True),
        sa.Column("course", sa.String(64), primary_key=True),
        sa.Column("username", sa.String(255), primary_key=True),
        sa.Column("served", sa.String(64), nullable=False),
        sa.Column("commit_id", sa.String(64), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("level", sa.String(16), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("kept", sa.JSON, nullable=False),
        sa.Column("conflicts", sa.JSON, nullable=False),
    )
    op.create_table(
        "course_orders",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("hub", sa.String(64), nullable=False),
        sa.Column("course", sa.String(64), nullable=False),
        sa.Column("username", sa.String(255), nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("by", sa.String(255), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("done_at", sa.Float, nullable=True),
        sa.Column("message", sa.Text, nullable=False),
    )
    op.create_index("course_orders_by_person", "course_orders", ["hub", "course", "username"])


def downgrade() -> None:
    op.drop_index("course_orders_by_person", "course_orders")
    op.drop_table("course_orders")
    op.drop_table("course_students")
    op.drop_table("courses")
