"""When somebody stopped a course's preload, so that its timetable does not ask for it again."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("courses", sa.Column("stopped_at", sa.Float, nullable=True))


def downgrade() -> None:
    op.drop_column("courses", "stopped_at")
