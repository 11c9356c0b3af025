"""Workspaces: your own, those that you were let into, and who else is there."""

from typing import Any, Literal
from uuid import UUID

import asyncpg
import msgspec
from litestar import Response, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from services.gateway.accounts import Accounts
from services.gateway.api.auth import Username, address, person
from services.gateway.api.requests import AnyRequest, Limit, Offset, answered, if_match, need, origin
from services.gateway.commands import Commands
from services.gateway.domain.errors import NotFound, UnknownUser
from services.gateway.domain.user import User
from services.gateway.domain.workspace import MANAGE, READ, AddMember, ChangeMember, Power, RemoveMember, Workspace
from services.gateway.views import workspaces

Role = Literal["editor", "annotator", "viewer"]


class MemberNew(msgspec.Struct, kw_only=True):
    """`editor` may change everything but members and webhooks, `annotator` reads and annotates, `viewer` reads."""

    username: Username
    role: Role


class MemberPatch(msgspec.Struct, kw_only=True):
    role: Role


class MemberOut(msgspec.Struct, kw_only=True):
    user_id: str
    username: str
    role: str
    since: str


class MemberPage(msgspec.Struct, kw_only=True):
    """The owner first."""

    members: list[MemberOut]
    total: int
    limit: int
    offset: int


class WorkspaceOut(msgspec.Struct, kw_only=True):
    """`role` is yours, `members` counts the owner too."""

    id: str
    owner_id: str
    owner: str
    role: str
    members: int
    created_at: str


class WorkspaceList(msgspec.Struct, kw_only=True):
    workspaces: list[WorkspaceOut]


@get("/v2/workspaces", summary="The workspaces that you are in")
async def list_workspaces(request: AnyRequest, db: NamedDependency[asyncpg.Pool]) -> WorkspaceList:
    """Your own and those of others. The header X-Workspace names the one in which something new is made, or of which a list is; without it that is your own, and all."""
    principal = person(request)
    rows = await workspaces.some(db, principal.everywhere)
    return WorkspaceList(workspaces=[_out(row, principal.role_in(row.id)) for row in rows])


@get("/v2/workspaces/{workspace_id:uuid}", summary="One workspace")
async def get_workspace(request: AnyRequest, workspace_id: FromPath[UUID], db: NamedDependency[asyncpg.Pool]) -> Response[WorkspaceOut]:
    id = _entered(request, workspace_id)
    if not (rows := await workspaces.some(db, [id])):
        raise NotFound(what="Workspace", id=id)
    return Response(_out(rows[0], person(request).role_in(id)), headers={"ETag": f'"{rows[0].version}"'})


@get("/v2/workspaces/{workspace_id:uuid}/members", summary="Who is in a workspace")
async def list_members(
    request: AnyRequest, workspace_id: FromPath[UUID], db: NamedDependency[asyncpg.Pool], limit: Limit = 100, offset: Offset = 0
) -> Response[MemberPage]:
    id = _entered(request, workspace_id)
    if (found := await workspaces.members(db, id, limit=limit, offset=offset)) is None:
        raise NotFound(what="Workspace", id=id)
    rows, total, version = found
    members = [MemberOut(user_id=row.user_id, username=row.username, role=row.role, since=row.since.isoformat()) for row in rows]
    return Response(MemberPage(members=members, total=total, limit=limit, offset=offset), headers={"ETag": f'"{version}"'})


@post("/v2/workspaces/{workspace_id:uuid}/members", status_code=201, summary="Let somebody into your workspace")
async def add_member(
    request: AnyRequest,
    workspace_id: FromPath[UUID],
    data: JSONBody[MemberNew],
    db: NamedDependency[asyncpg.Pool],
    commands: NamedDependency[Commands],
    accounts: NamedDependency[Accounts],
) -> Response[MemberOut]:
    """Only its owner may. It holds at every gateway within two seconds; whoever is let in may leave."""
    id, principal = _entered(request, workspace_id, MANAGE), person(request)
    if (user := await accounts.introduced(data.username, address=address(request))) is None:
        raise UnknownUser
    command = AddMember(workspace_id=id, by=principal.id, user_id=user.id, role=data.role, memberships=await workspaces.count(db, user.id))
    outcome = await commands.run(command, origin=origin(request, place=id), if_match=if_match(request))
    accounts.forget(user.id)
    return answered(outcome, _member(outcome.state, user), status=201, location=f"/v2/workspaces/{id}/members/{user.id}")


@patch("/v2/workspaces/{workspace_id:uuid}/members/{user_id:uuid}", summary="Change what a member may do")
async def change_member(
    request: AnyRequest,
    workspace_id: FromPath[UUID],
    user_id: FromPath[UUID],
    data: JSONBody[MemberPatch],
    commands: NamedDependency[Commands],
    accounts: NamedDependency[Accounts],
) -> Response[MemberOut]:
    """Only its owner may."""
    id = _entered(request, workspace_id, MANAGE)
    command = ChangeMember(workspace_id=id, by=person(request).id, user_id=str(user_id), role=data.role)
    outcome = await commands.run(command, origin=origin(request, place=id), if_match=if_match(request))
    accounts.forget(command.user_id)
    if (user := await accounts.user(command.user_id)) is None:
        raise NotFound(what="Member", id=command.user_id)
    return answered(outcome, _member(outcome.state, user), status=200)


@delete("/v2/workspaces/{workspace_id:uuid}/members/{user_id:uuid}", status_code=204, summary="Remove a member, or leave")
async def remove_member(
    request: AnyRequest, workspace_id: FromPath[UUID], user_id: FromPath[UUID], commands: NamedDependency[Commands], accounts: NamedDependency[Accounts]
) -> Response[None]:
    """The owner removes others, and whoever is no owner may leave. Within two seconds no gateway lets him in any more; open streams end within a minute."""
    id = _entered(request, workspace_id)
    command = RemoveMember(workspace_id=id, by=person(request).id, user_id=str(user_id))
    outcome = await commands.run(command, origin=origin(request, place=id), if_match=if_match(request))
    accounts.forget(command.user_id)
    return answered(outcome, None, status=204)


handlers: list[Any] = [list_workspaces, get_workspace, list_members, add_member, change_member, remove_member]


def _entered(request: AnyRequest, workspace_id: UUID, power: Power = READ) -> str:
    id = str(workspace_id)
    need(person(request), id, power)
    return id


def _out(row: workspaces.Row, role: str | None) -> WorkspaceOut:
    return WorkspaceOut(id=row.id, owner_id=row.owner_id, owner=row.owner, role=role or "", members=1 + row.members, created_at=row.created_at.isoformat())


def _member(workspace: Workspace, user: User) -> MemberOut:
    member = workspace.members[user.id]
    return MemberOut(user_id=user.id, username=user.username, role=member.role, since=member.since.isoformat())
