"""Users, and what lets them in: their tables, what fills them, what reads them. Hashes are in here: no event feed and no answer shows these rows."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import asyncpg
import msgspec

from libs.events import (
    Recorded,
    UserDeleted,
    UserKeyCreated,
    UserKeyRevoked,
    UserLoggedIn,
    UserLoggedOut,
    UserPasswordChanged,
    UserRegistered,
    UserRoleChanged,
)
from services.gateway.domain.user import Key, Principal, Session, User
from services.gateway.views.rows import Change, Drop, Operation, Put
from services.gateway.views.schema import BigInteger, Column, DateTime, Index, Table, Text, views

users = Table(
    "users",
    views,
    Column("id", Text, primary_key=True),
    Column("username", Text, nullable=False),
    Column("email", Text, nullable=False),
    Column("full_name", Text, nullable=False),
    Column("password_hash", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("version", BigInteger, nullable=False),
    Index("users_oldest", "created_at", "id"),
)
sessions = Table(
    "sessions",
    views,
    Column("id", Text, primary_key=True),
    Column("user_id", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Index("sessions_of_user", "user_id"),
)
api_keys = Table(
    "api_keys",
    views,
    Column("id", Text, primary_key=True),
    Column("user_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Index("api_keys_of_user", "user_id"),
)


def project(recorded: Recorded) -> Iterator[Operation]:
    match recorded.event:
        case UserRegistered() as event:
            yield Put(
                users,
                {
                    "id": event.user_id,
                    "username": event.username,
                    "email": event.email,
                    "full_name": event.full_name,
                    "password_hash": event.password_hash,
                    "role": event.role,
                    "created_at": recorded.at,
                    "version": recorded.seq,
                },
            )
        case UserPasswordChanged(user_id=id, password_hash=password_hash):
            yield _changed(recorded, id, password_hash=password_hash)
            yield Drop(sessions, "user_id", [id])
        case UserRoleChanged(user_id=id, role=role):
            yield _changed(recorded, id, role=role)
        case UserLoggedIn() as event:
            yield _changed(recorded, event.user_id)
            if event.ended:
                yield Drop(sessions, "id", event.ended)
            row = {"user_id": event.user_id, "sha256": event.token_sha256, "expires_at": event.expires_at, "seq": recorded.seq}
            yield Put(sessions, {"id": event.session_id, **row})
        case UserLoggedOut(user_id=id, session_id=session):
            yield _changed(recorded, id)
            yield Drop(sessions, "id", [session])
        case UserKeyCreated() as event:
            yield _changed(recorded, event.user_id)
            row = {"user_id": event.user_id, "name": event.name, "sha256": event.key_sha256, "created_at": recorded.at}
            yield Put(api_keys, {"id": event.key_id, **row})
        case UserKeyRevoked(user_id=id, key_id=key):
            yield _changed(recorded, id)
            yield Drop(api_keys, "id", [key])
        case UserDeleted(user_id=id):
            for table in (sessions, api_keys):
                yield Drop(table, "user_id", [id])
            yield Drop(users, "id", [id])
        case _:
            return


def _changed(recorded: Recorded, user_id: str, **columns: Any) -> Change:
    return Change(users, user_id, {**columns, "version": recorded.seq})


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A user as people see one."""

    id: str
    username: str
    email: str
    full_name: str
    role: str
    created_at: datetime


_SEEN = "id, username, email, full_name, role, created_at"


async def get(db: asyncpg.Pool, user_id: str) -> Row | None:
    row = await db.fetchrow(f"select {_SEEN} from users where id = $1", user_id)
    return Row(**row) if row else None


async def page(db: asyncpg.Pool, *, within: list[str] | None = None, limit: int, offset: int = 0) -> tuple[list[Row], int]:
    """The oldest first, with the number of all. `within`: only who is in one of these workspaces; each has its owner's id."""
    if within is None:
        rows = await db.fetch(f"select {_SEEN} from users order by created_at, id limit $1 offset $2", limit, offset)
        return [Row(**row) for row in rows], await db.fetchval("select count(*) from users")
    among = "id = any(array(select unnest($1::text[]) union select user_id from memberships where workspace_id = any($1)))"  # an or would read all users
    rows = await db.fetch(f"select {_SEEN} from users where {among} order by created_at, id limit $2 offset $3", within, limit, offset)
    return [Row(**row) for row in rows], await db.fetchval(f"select count(*) from users where {among}", within)


async def by_session(db: asyncpg.Pool, user_id: str, session_id: str) -> tuple[Principal, Session] | None:
    row = await db.fetchrow(
        f"select u.role, s.sha256, s.expires_at, {_WORKSPACES} from sessions s join users u on u.id = s.user_id where s.id = $2 and u.id = $1",
        user_id,
        session_id,
    )
    if row is None:
        return None
    principal = Principal(id=user_id, tenant=user_id, role=row["role"], credential=session_id, workspaces=_roles(row["workspaces"]))
    return principal, Session(sha256=row["sha256"], expires_at=row["expires_at"])


async def by_key(db: asyncpg.Pool, user_id: str, key_id: str) -> tuple[Principal, str] | None:
    """Who enters with it, and its hash."""
    row = await db.fetchrow(
        f"select u.role, k.sha256, {_WORKSPACES} from api_keys k join users u on u.id = k.user_id where k.id = $2 and u.id = $1", user_id, key_id
    )
    if row is None:
        return None
    return Principal(id=user_id, tenant=user_id, role=row["role"], credential=key_id, workspaces=_roles(row["workspaces"])), row["sha256"]


_OPEN = "memberships m join workspaces w on w.id = m.workspace_id"
"""Whoever was let in while the owner was being deleted is a member of nothing."""
_WORKSPACES = f"(select json_object_agg(m.workspace_id, m.role) from {_OPEN} where m.user_id = u.id) as workspaces"


async def workspaces_of(db: asyncpg.Pool, user_id: str) -> dict[str, str]:
    """Those of others, with the role in each."""
    return dict(await db.fetch(f"select m.workspace_id, m.role from {_OPEN} where m.user_id = $1", user_id))


def _roles(found: Any) -> dict[str, str]:
    return msgspec.json.decode(found, type=dict[str, str]) if found else {}


async def load(db: asyncpg.Pool, tenant: str, user_id: str) -> tuple[User | None, int]:
    """A user's workspace has the user's id, so nobody is found in another one."""
    row = await db.fetchrow(
        """select u.*,
                  (select json_agg(json_build_object('id', s.id, 'sha256', s.sha256, 'expires_at', s.expires_at) order by s.seq)
                     from sessions s where s.user_id = u.id) as sessions,
                  (select json_agg(json_build_object('id', k.id, 'name', k.name, 'sha256', k.sha256, 'created_at', k.created_at) order by k.created_at, k.id)
                     from api_keys k where k.user_id = u.id) as keys
             from users u where u.id = $1 and $1 = $2""",
        user_id,
        tenant,
    )
    if row is None:
        return None, 0

    def held(column: str, kind: Any) -> dict[str, Any]:
        found = msgspec.json.decode(row[column]) if row[column] else []
        return {item["id"]: msgspec.convert(item, kind) for item in found}

    state = User(
        id=row["id"],
        username=row["username"],
        email=row["email"],
        full_name=row["full_name"],
        password_hash=row["password_hash"],
        role=row["role"],
        created_at=row["created_at"],
        sessions=held("sessions", Session),
        keys=held("keys", Key),
    )
    return state, row["version"]
