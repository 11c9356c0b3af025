"""Workspaces and who is in them: their tables, what fills them, what reads them."""

from collections.abc import Iterator
from datetime import datetime

import asyncpg
import msgspec

from libs.events import Recorded, UserDeleted, WorkspaceCreated, WorkspaceMemberAdded, WorkspaceMemberRemoved, WorkspaceMemberRoleChanged
from services.gateway.domain.workspace import OWNER, Member, Workspace
from services.gateway.views.rows import Change, Drop, Operation, Put
from services.gateway.views.schema import BigInteger, Column, DateTime, Index, Table, Text, views

workspaces = Table(
    "workspaces",
    views,
    Column("id", Text, primary_key=True),
    Column("owner_id", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("version", BigInteger, nullable=False),
)
memberships = Table(
    "memberships",
    views,
    Column("id", Text, primary_key=True),
    Column("workspace_id", Text, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("since", DateTime(timezone=True), nullable=False),
    Index("memberships_of_user", "user_id"),
    Index("memberships_of_workspace", "workspace_id", "since", "user_id"),
)


def project(recorded: Recorded) -> Iterator[Operation]:
    match recorded.event:
        case WorkspaceCreated(workspace_id=id, owner_id=owner):
            yield Put(workspaces, {"id": id, "owner_id": owner, "created_at": recorded.at, "version": recorded.seq})
        case WorkspaceMemberAdded(workspace_id=workspace, user_id=user, role=role):
            yield Change(workspaces, workspace, {"version": recorded.seq})
            yield Put(memberships, {"id": _id(workspace, user), "workspace_id": workspace, "user_id": user, "role": role, "since": recorded.at})
        case WorkspaceMemberRoleChanged(workspace_id=workspace, user_id=user, role=role):
            yield Change(workspaces, workspace, {"version": recorded.seq})
            yield Change(memberships, _id(workspace, user), {"role": role})
        case WorkspaceMemberRemoved(workspace_id=workspace, user_id=user):
            yield Change(workspaces, workspace, {"version": recorded.seq})
            yield Drop(memberships, "id", [_id(workspace, user)])
        case UserDeleted(user_id=id):  # without its owner a workspace, which has his id, is closed
            for column in ("user_id", "workspace_id"):
                yield Drop(memberships, column, [id])
            yield Drop(workspaces, "id", [id])
        case _:
            return


def _id(workspace: str, user: str) -> str:
    return f"{workspace}/{user}"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A workspace as somebody in it sees it."""

    id: str
    owner_id: str
    owner: str
    members: int
    """Besides the owner."""
    created_at: datetime
    version: int


class MemberRow(msgspec.Struct, frozen=True, kw_only=True):
    user_id: str
    username: str
    role: str
    since: datetime


async def some(db: asyncpg.Pool, ids: list[str]) -> list[Row]:
    """The oldest first."""
    rows = await db.fetch(
        """select w.id, w.owner_id, u.username as owner, w.created_at, w.version,
                  (select count(*) from memberships m where m.workspace_id = w.id) as members
             from workspaces w join users u on u.id = w.owner_id where w.id = any($1) order by w.created_at, w.id""",
        ids,
    )
    return [Row(**row) for row in rows]


async def members(db: asyncpg.Pool, workspace_id: str, *, limit: int, offset: int) -> tuple[list[MemberRow], int, int] | None:
    """The owner first, then who has been in it the longest; with the number of all and the workspace's version."""
    found = await db.fetchrow(
        "select version, 1 + (select count(*) from memberships m where m.workspace_id = w.id) as total from workspaces w where w.id = $1", workspace_id
    )
    if found is None:
        return None
    rows = await db.fetch(
        f"""select m.user_id, u.username, m.role, m.since
              from (select owner_id as user_id, '{OWNER}' as role, created_at as since, 0 as place from workspaces where id = $1
                    union all select user_id, role, since, 1 from memberships where workspace_id = $1) m
              join users u on u.id = m.user_id order by m.place, m.since, m.user_id limit $2 offset $3""",
        workspace_id,
        limit,
        offset,
    )
    return [MemberRow(**row) for row in rows], found["total"], found["version"]


async def count(db: asyncpg.Pool, user_id: str) -> int:
    """In how many workspaces of others this user is."""
    return await db.fetchval("select count(*) from memberships where user_id = $1", user_id)


async def load(db: asyncpg.Pool, tenant: str, workspace_id: str) -> tuple[Workspace | None, int]:
    """A workspace is its own tenant, so it is found in no other."""
    row = await db.fetchrow(
        """select w.*, (select json_object_agg(m.user_id, json_build_object('role', m.role, 'since', m.since))
                          from memberships m where m.workspace_id = w.id) as members
             from workspaces w where w.id = $1 and $1 = $2""",
        workspace_id,
        tenant,
    )
    if row is None:
        return None, 0
    members = msgspec.json.decode(row["members"], type=dict[str, Member]) if row["members"] else {}
    return Workspace(id=row["id"], owner_id=row["owner_id"], created_at=row["created_at"], members=members), row["version"]
