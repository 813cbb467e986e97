"""Removed courses whose files servers still have, and which manifest a preload tried."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "removed_courses",
        sa.Column("hub", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("staff", sa.JSON, nullable=False),
        sa.Column("by", sa.String(255), nullable=False),
        sa.Column("removed_at", sa.Float, nullable=False),
    )
    op.add_column("courses", sa.Column("tried_at", sa.Float, nullable=True))
    op.execute("UPDATE courses SET tried_at = preloaded_at")


def downgrade() -> None:
    op.drop_column("courses", "tried_at")
    op.drop_table("removed_courses")
