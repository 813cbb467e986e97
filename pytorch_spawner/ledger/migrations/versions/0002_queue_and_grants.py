"""Tickets, grants, device settings, usage, the audit log; slots and ends of leases."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("starts", sa.Column("groups", sa.JSON, nullable=False, server_default="[]"))
    for column in (
        sa.Column("slots", sa.JSON, nullable=False, server_default="[]"),
        sa.Column("weight", sa.Float, nullable=False, server_default="1"),
        sa.Column("grant_id", sa.String(96), nullable=False, server_default=""),
        sa.Column("until", sa.Float, nullable=True),
        sa.Column("kept_until", sa.Float, nullable=True),
        sa.Column("warned_at", sa.Float, nullable=True),
    ):
        op.add_column("leases", column)
    op.create_index("leases_in_force", "leases", ["hub", "released_at"])
    op.add_column("holdings", sa.Column("slots", sa.Integer, nullable=False, server_default="1"))
    op.create_table(
        "tickets",
        sa.Column("hub", sa.String(64), primary_key=True),
        sa.Column("username", sa.String(255), primary_key=True),
        sa.Column("servername", sa.String(255), primary_key=True),
        sa.Column("start_id", sa.String(32), nullable=False),
        sa.Column("groups", sa.JSON, nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("boost", sa.Integer, nullable=False),
        sa.Column("away_since", sa.Float, nullable=True),
        sa.Column("told", sa.JSON, nullable=True),
    )
    op.create_table(
        "grants",
        sa.Column("hub", sa.String(64), primary_key=True),
        sa.Column("id", sa.String(96), primary_key=True),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_table(
        "device_settings",
        sa.Column("hub", sa.String(64), primary_key=True),
        sa.Column("uuid", sa.String(160), primary_key=True),
        sa.Column("pool", sa.String(255), nullable=True),
        sa.Column("mode", sa.String(16), nullable=True),
        sa.Column("drained", sa.String(255), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_table(
        "usage",
        sa.Column("hub", sa.String(64), primary_key=True),
        sa.Column("username", sa.String(255), primary_key=True),
        sa.Column("gpu_s", sa.Float, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_table(
        "week_usage",
        sa.Column("hub", sa.String(64), primary_key=True),
        sa.Column("username", sa.String(255), primary_key=True),
        sa.Column("grant_id", sa.String(96), primary_key=True),
        sa.Column("week", sa.Float, primary_key=True),
        sa.Column("gpu_s", sa.Float, nullable=False),
    )
    op.create_table(
        "changes",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            primary_key=True,
            autoincrement=True,
        ),
        sa.Column("hub", sa.String(64), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("by", sa.String(255), nullable=False),
        sa.Column("what", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("before", sa.JSON, nullable=True),
        sa.Column("after", sa.JSON, nullable=True),
    )
    op.create_index("ix_changes_hub", "changes", ["hub"])
    op.create_table(
        "counters",
        sa.Column("hub", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(16), primary_key=True),
        sa.Column("value", sa.Float, nullable=False),
    )


def downgrade() -> None:
    for table in (
        "counters",
        "changes",
        "week_usage",
        "usage",
        "device_settings",
        "grants",
        "tickets",
    ):
        op.drop_table(table)
    op.drop_index("leases_in_force", "leases")
    op.drop_column("starts", "groups")
    op.drop_column("holdings", "slots")
    for name in ("slots", "weight", "grant_id", "until", "kept_until", "warned_at"):
        op.drop_column("leases", name)
