"""Warm caches: what was asked for, what came of it, and which of them starts are given."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "caches",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("hub", sa.String(64), nullable=False),
        sa.Column("scope", sa.String(255), nullable=False),
        sa.Column("image", sa.String(512), nullable=False),
        sa.Column("pool", sa.String(255), nullable=False),
        sa.Column("gpus", sa.Integer, nullable=False),
        sa.Column("suite", sa.JSON, nullable=False),
        sa.Column("suite_digest", sa.String(64), nullable=False),
        sa.Column("archive", sa.LargeBinary, nullable=False),
        sa.Column("by", sa.String(255), nullable=False),
        sa.Column("asked_at", sa.Float, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("stop_asked", sa.Boolean, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("ended_at", sa.Float, nullable=True),
        sa.Column("key", sa.JSON, nullable=True),
        sa.Column("torch", sa.String(64), nullable=False),
        sa.Column("triton", sa.String(64), nullable=False),
        sa.Column("volume", sa.String(255), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("files", sa.Integer, nullable=False),
        sa.Column("targets", sa.JSON, nullable=False),
        sa.Column("log", sa.Text, nullable=False),
        sa.Column("promoted_at", sa.Float, nullable=True),
        sa.Column("used_at", sa.Float, nullable=True),
    )
    op.create_index("caches_by_state", "caches", ["hub", "state", "asked_at"])


def downgrade() -> None:
    op.drop_index("caches_by_state", "caches")
    op.drop_table("caches")
