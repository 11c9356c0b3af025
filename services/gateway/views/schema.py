"""Two schemas: `core` outlives every version of the code and is migrated; `views` can be built again and never is."""

import hashlib

from sqlalchemy import JSON, BigInteger, Boolean, Column, Computed, DateTime, Index, Integer, LargeBinary, MetaData, Table, Text, Uuid
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

views = MetaData()
core = MetaData(schema="core")

event_log = Table(
    "event_log",
    core,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("subject", Text, nullable=False),
    Column("aggregate", Text, nullable=False),
    Column("id", Uuid),
    Column("body", LargeBinary, nullable=False),
    Index("event_log_aggregate", "aggregate"),
    Index("event_log_id", "id"),
)
checkpoints = Table("checkpoints", core, Column("name", Text, primary_key=True), Column("seq", BigInteger, nullable=False), Column("log", Text, nullable=False))
leases = Table(
    "leases", core, Column("name", Text, primary_key=True), Column("holder", Text, nullable=False), Column("until", DateTime(timezone=True), nullable=False)
)
parked = Table(
    "parked",
    core,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("subject", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False),
)
webhook_endpoints = Table(
    "webhook_endpoints",
    core,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("since", BigInteger, nullable=False),
    Column("cursor", BigInteger, nullable=False),
    Column("newest", BigInteger, nullable=False),
    Column("replay_from", BigInteger),
    Column("replay_until", BigInteger),
    Column("holder", Text),
    Column("next_at", DateTime(timezone=True), nullable=False),
    Column("fails", Integer, nullable=False),
    Column("failing_since", DateTime(timezone=True)),
    Column("reported", BigInteger, nullable=False),
    Column("reported_at", DateTime(timezone=True), nullable=False),
    Index("webhook_endpoints_of_tenant", "tenant"),
)
webhook_deliveries = Table(
    "webhook_deliveries",
    core,
    Column("endpoint", Text, primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("status", Integer),
    Column("error", Text, nullable=False),
    Column("response", Text, nullable=False),
    Column("milliseconds", Integer),
    Column("attempted_at", DateTime(timezone=True)),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Index("webhook_deliveries_by_age", "created_at"),
)
webhook_milestones = Table(
    "webhook_milestones",
    core,
    Column("job_id", Text, primary_key=True),
    Column("decile", Integer, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False),
    Index("webhook_milestones_by_seq", "seq"),
)
versions = Table("versions", core, Column("schema", Text, primary_key=True), Column("fingerprint", Text, nullable=False))


def ddl() -> list[str]:
    """The statements that make the views, in whatever schema comes first in the search path."""
    tables = views.sorted_tables
    dialect = postgresql.dialect()
    made = [str(CreateTable(table).compile(dialect=dialect)) for table in tables]
    indexes = [index for table in tables for index in sorted(table.indexes, key=lambda index: str(index.name))]
    return made + SEEN + [str(CreateIndex(index).compile(dialect=dialect)) for index in indexes]


SEEN: list[str] = []
"""SQL views over the tables; each file of this room adds its own."""

REVISION = 2
"""Raised when a projection means something new although its tables look the same: the views are built again."""


def fingerprint() -> str:
    return hashlib.sha256("\n".join([str(REVISION), *ddl()]).encode()).hexdigest()[:16]


__all__ = ["JSON", "BigInteger", "Boolean", "Column", "Computed", "DateTime", "Index", "Integer", "Table", "Text", "Uuid", "views"]
