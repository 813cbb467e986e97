"""The catalog of images: what each was found to be when it was run once."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "images",
        sa.Column("hub", sa.String(64), primary_key=True),
        sa.Column("reference", sa.String(512), primary_key=True),
        sa.Column("image_id", sa.String(128), nullable=False),
        sa.Column("facts", sa.JSON, nullable=False),
        sa.Column("scanned_at", sa.Float, nullable=False),
        sa.Column("by", sa.String(255), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("images")
