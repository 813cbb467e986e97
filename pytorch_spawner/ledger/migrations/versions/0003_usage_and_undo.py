"""GPU time in use by day, and which change takes back which."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("changes", sa.Column("undoes", sa.BigInteger, nullable=True))
    op.create_index("changes_by_subject", "changes", ["hub", "what", "subject", "id"])
    op.create_index("changes_by_undoes", "changes", ["undoes"])
    op.create_table(
        "busy",
        sa.Column("hub", sa.String(64), primary_key=True),
        sa.Column("day", sa.Float, primary_key=True),
        sa.Column("username", sa.String(255), primary_key=True),
        sa.Column("course", sa.String(255), primary_key=True),
        sa.Column("gpu", sa.String(160), primary_key=True),
        sa.Column("busy_s", sa.Float, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("busy")
    op.drop_index("changes_by_undoes", "changes")
    op.drop_index("changes_by_subject", "changes")
    op.drop_column("changes", "undoes")
