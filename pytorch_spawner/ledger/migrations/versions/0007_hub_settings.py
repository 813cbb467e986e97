"""A hub's own settings, which lay among its counters."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "hub_settings",
        sa.Column("hub", sa.String(64), primary_key=True),
        sa.Column("class_share", sa.Float, nullable=False),
    )
    op.execute(
        "INSERT INTO hub_settings (hub, class_share) "
        "SELECT hub, value FROM counters WHERE name = 'class_share'"
    )
    op.execute("DELETE FROM counters WHERE name = 'class_share'")


def downgrade() -> None:
    op.execute(
        "INSERT INTO counters (hub, name, value) "
        "SELECT hub, 'class_share', class_share FROM hub_settings"
    )
    op.drop_table("hub_settings")
