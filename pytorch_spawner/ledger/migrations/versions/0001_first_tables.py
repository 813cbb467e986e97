"""Identities, homes, devices, starts, leases, holdings and the journal."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "identities",
        sa.Column("username", sa.String(255), primary_key=True),
        sa.Column("uid", sa.BigInteger, nullable=False, unique=True),
        sa.Column("gid", sa.BigInteger, nullable=False),
        sa.Column("source", sa.String(32), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_table(
        "homes",
        sa.Column("place", sa.String(512), primary_key=True),
        sa.Column("born", sa.String(64), nullable=False),
        sa.Column("uid", sa.BigInteger, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_table(
        "devices",
        sa.Column("hub", sa.String(64), primary_key=True),
        sa.Column("uuid", sa.String(160), primary_key=True),
        sa.Column("facts", sa.JSON, nullable=False),
        sa.Column("seen_at", sa.Float, nullable=False),
    )
    op.create_table(
        "starts",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("hub", sa.String(64), nullable=False),
        sa.Column("username", sa.String(255), nullable=False),
        sa.Column("servername", sa.String(255), nullable=False),
        sa.Column("image", sa.String(512), nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("ended_at", sa.Float, nullable=True),
        sa.Column("outcome", sa.String(16), nullable=False),
    )
    op.create_index("starts_by_server", "starts", ["hub", "username", "servername", "created_at"])
    op.create_table(
        "leases",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("hub", sa.String(64), nullable=False),
        sa.Column("start_id", sa.String(32), nullable=False),
        sa.Column("username", sa.String(255), nullable=False),
        sa.Column("servername", sa.String(255), nullable=False),
        sa.Column("gpus", sa.JSON, nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("released_at", sa.Float, nullable=True),
        sa.Column("reason", sa.String(255), nullable=False),
    )
    op.create_index("ix_leases_hub", "leases", ["hub"])
    op.create_table(
        "holdings",
        sa.Column("hub", sa.String(64), primary_key=True),
        sa.Column("gpu", sa.String(160), primary_key=True),
        sa.Column("slot", sa.Integer, primary_key=True),
        sa.Column("lease_id", sa.String(32), sa.ForeignKey("leases.id"), nullable=False),
    )
    op.create_index("ix_holdings_lease_id", "holdings", ["lease_id"])
    op.create_table(
        "journal",
        sa.Column("start_id", sa.String(32), primary_key=True),
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("data", sa.Text, nullable=False),
    )


def downgrade() -> None:
    for table in ("journal", "holdings", "leases", "starts", "devices", "homes", "identities"):
        op.drop_table(table)
