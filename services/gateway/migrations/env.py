"""Brings `core` to the version that this code knows. Run by every gateway at its start; one at a time."""

from alembic import context
from sqlalchemy import Connection

from services.gateway.views.schema import core


def migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=core, version_table="alembic_version", version_table_schema="core", transactional_ddl=True)
    context.run_migrations()


migrate(context.config.attributes["connection"])
