"""What is to be sent to webhook endpoints, and how far each has come."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("since", sa.BigInteger, nullable=False),
        sa.Column("cursor", sa.BigInteger, nullable=False),
        sa.Column("newest", sa.BigInteger, nullable=False),
        sa.Column("replay_from", sa.BigInteger),
        sa.Column("replay_until", sa.BigInteger),
        sa.Column("holder", sa.Text),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()")),
        sa.Column("fails", sa.Integer, nullable=False, server_default="0"),
        sa.Column("failing_since", sa.DateTime(timezone=True)),
        sa.Column("reported", sa.BigInteger, nullable=False),
        sa.Column("reported_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()")),
        schema="core",
    )
    op.create_index("webhook_endpoints_of_tenant", "webhook_endpoints", ["tenant"], schema="core")
    op.create_table(
        "webhook_deliveries",
        sa.Column("endpoint", sa.Text, primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("state", sa.Text, nullable=False, server_default="pending"),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("status", sa.Integer),
        sa.Column("error", sa.Text, nullable=False, server_default=""),
        sa.Column("response", sa.Text, nullable=False, server_default=""),
        sa.Column("milliseconds", sa.Integer),
        sa.Column("attempted_at", sa.DateTime(timezone=True)),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()")),
        schema="core",
    )
    op.create_index("webhook_deliveries_by_age", "webhook_deliveries", ["created_at"], schema="core")
    op.create_table(
        "webhook_milestones",
        sa.Column("job_id", sa.Text, primary_key=True),
        sa.Column("decile", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        schema="core",
    )
    op.create_index("webhook_milestones_by_seq", "webhook_milestones", ["seq"], schema="core")
