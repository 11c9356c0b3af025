"""The copy of the log, the checkpoints, the leases and what was parked."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "event_log",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("aggregate", sa.Text, nullable=False),
        sa.Column("id", sa.Uuid),
        sa.Column("body", sa.LargeBinary, nullable=False),
        schema="core",
    )
    op.create_index("event_log_aggregate", "event_log", ["aggregate"], schema="core")
    op.create_index("event_log_id", "event_log", ["id"], schema="core")
    op.create_table(
        "checkpoints",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("log", sa.Text, nullable=False),
        schema="core",
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        schema="core",
    )
    op.create_table(
        "parked",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        schema="core",
    )
    op.create_table("versions", sa.Column("schema", sa.Text, primary_key=True), sa.Column("fingerprint", sa.Text, nullable=False), schema="core")
    op.execute("create view core.events as select seq, subject, id, convert_from(body, 'UTF8')::json as event from core.event_log")
