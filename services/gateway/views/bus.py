"""Credentials for event consumers on the bus: their tables, what fills them, what reads them."""

from collections.abc import Iterator, Sequence
from datetime import datetime

import asyncpg
import msgspec

from libs.events import BusCredentialCreated, BusCredentialRevoked, Recorded, UserDeleted
from services.gateway.domain.bus import BusAccess, Credential
from services.gateway.domain.user import LOCAL
from services.gateway.views.rows import Change, Drop, Operation, Put
from services.gateway.views.schema import BigInteger, Column, DateTime, Index, Table, Text, views

bus_access = Table("bus_access", views, Column("user_id", Text, primary_key=True), Column("version", BigInteger, nullable=False))
bus_credentials = Table(
    "bus_credentials",
    views,
    Column("id", Text, primary_key=True),
    Column("user_id", Text, nullable=False),
    Column("workspace", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Index("bus_credentials_of_user", "user_id"),
)


def project(recorded: Recorded) -> Iterator[Operation]:
    match recorded.event:
        case BusCredentialCreated() as event:
            yield Put(bus_access, {"user_id": event.user_id, "version": recorded.seq})
            yield Change(bus_access, event.user_id, {"version": recorded.seq})
            row = {"user_id": event.user_id, "workspace": event.workspace, "name": event.name, "sha256": event.password_sha256, "created_at": recorded.at}
            yield Put(bus_credentials, {"id": event.credential_id, **row})
        case BusCredentialRevoked(user_id=user, credential_id=id):
            yield Change(bus_access, user, {"version": recorded.seq})
            yield Drop(bus_credentials, "id", [id])
        case UserDeleted(user_id=user):
            for table in (bus_access, bus_credentials):
                yield Drop(table, "user_id", [user])
        case _:
            return


class Row(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    user_id: str
    workspace: str
    name: str
    sha256: str
    created_at: datetime


async def good(db: asyncpg.Pool, ids: Sequence[str]) -> list[Row]:
    """Those of them that let in now: whoever left the workspace takes nothing along, and one made while its user was being deleted is nobody's."""
    rows = await db.fetch(
        f"""select c.* from bus_credentials c where c.id = any($1) and (c.user_id = '{LOCAL.id}' or exists (select from users u where u.id = c.user_id))
               and (c.workspace = c.user_id
                    or exists (select from memberships m join workspaces w on w.id = m.workspace_id where m.user_id = c.user_id and m.workspace_id = c.workspace))""",
        ids,
    )
    return [Row(**row) for row in rows]


async def load(db: asyncpg.Pool, tenant: str, user_id: str) -> tuple[BusAccess | None, int]:
    """Only in the user's own workspace, where they belong."""
    version = await db.fetchval("select version from bus_access where user_id = $1 and $1 = $2", user_id, tenant)
    if version is None:
        return None, 0
    rows = await db.fetch("select * from bus_credentials where user_id = $1 order by created_at, id", user_id)
    held = {row["id"]: Credential(workspace=row["workspace"], name=row["name"], sha256=row["sha256"], created_at=row["created_at"]) for row in rows}
    return BusAccess(user_id=user_id, credentials=held), version
