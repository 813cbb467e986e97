"""Alembic's entry: runs on the connection that the store hands over, in the store's transaction."""

from alembic import context

from pytorch_spawner.ledger.models import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
context.run_migrations()
