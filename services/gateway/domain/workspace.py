"""Who may do what in a workspace: its owner, the people whom the owner lets in, and how that ends."""

from datetime import datetime
from typing import Literal

import msgspec

from libs.events import Event, Recorded, WorkspaceCreated, WorkspaceMemberAdded, WorkspaceMemberRemoved, WorkspaceMemberRoleChanged
from services.gateway.domain.errors import AlreadyMember, NotFound, OwnerStays, RoleMissing, TooManyMembers, TooManyMemberships

Power = Literal["read", "annotate", "change", "manage"]
READ, ANNOTATE, CHANGE, MANAGE = POWERS = ("read", "annotate", "change", "manage")
OWNER, EDITOR, ANNOTATOR, VIEWER = "owner", "editor", "annotator", "viewer"
MAY: dict[str, frozenset[str]] = {
    OWNER: frozenset(POWERS),
    EDITOR: frozenset({READ, ANNOTATE, CHANGE}),
    ANNOTATOR: frozenset({READ, ANNOTATE}),
    VIEWER: frozenset({READ}),
}
"""To manage is what would outlive a membership: other members, and webhooks, which go on telling whoever registered them."""

MEMBERS, MEMBERSHIPS = 1000, 100
"""Most that a workspace has, and most that a user has in the workspaces of others."""


class Member(msgspec.Struct, frozen=True, kw_only=True):
    role: str
    since: datetime


class Workspace(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    owner_id: str
    created_at: datetime
    members: dict[str, Member] = {}
    """By user, the owner not among them."""

    def role(self, user_id: str) -> str | None:
        if user_id == self.owner_id:
            return OWNER
        member = self.members.get(user_id)
        return member.role if member else None


class AddMember(msgspec.Struct, frozen=True, kw_only=True):
    """`by` is who wants it, `memberships` how many the new one has already."""

    workspace_id: str
    by: str
    user_id: str
    role: str
    memberships: int


class ChangeMember(msgspec.Struct, frozen=True, kw_only=True):
    workspace_id: str
    by: str
    user_id: str
    role: str


class RemoveMember(msgspec.Struct, frozen=True, kw_only=True):
    """The owner removes others; whoever is no owner may leave."""

    workspace_id: str
    by: str
    user_id: str


Command = AddMember | ChangeMember | RemoveMember


def may(role: str | None, power: str) -> bool:
    return role is not None and power in MAY[role]


def evolve(workspace: Workspace | None, recorded: Recorded) -> Workspace | None:
    event = recorded.event
    if isinstance(event, WorkspaceCreated):
        return Workspace(id=event.workspace_id, owner_id=event.owner_id, created_at=recorded.at)
    if workspace is None:
        return None
    members = workspace.members
    match event:
        case WorkspaceMemberAdded(user_id=id, role=role):
            members = {**members, id: Member(role=role, since=recorded.at)}
        case WorkspaceMemberRoleChanged(user_id=id, role=role) if id in members:
            members = {**members, id: Member(role=role, since=members[id].since)}
        case WorkspaceMemberRemoved(user_id=id):
            members = {other: member for other, member in members.items() if other != id}
        case _:
            return workspace
    return msgspec.structs.replace(workspace, members=members)


def decide(workspace: Workspace | None, command: Command) -> list[Event]:
    if workspace is None or (role := workspace.role(command.by)) is None:
        raise NotFound(what="Workspace", id=command.workspace_id)
    leaving = isinstance(command, RemoveMember) and command.by == command.user_id
    if not leaving and not may(role, MANAGE):
        raise RoleMissing(role=role, needs=MANAGE)
    match command:
        case AddMember():
            return _add(workspace, command)
        case ChangeMember(user_id=id, role=new):
            if _member(workspace, id).role == new:
                return []
            return [WorkspaceMemberRoleChanged(workspace_id=workspace.id, user_id=id, role=new)]
        case RemoveMember(user_id=id):
            _member(workspace, id)
            return [WorkspaceMemberRemoved(workspace_id=workspace.id, user_id=id)]


def assigned(workspace: Workspace, user_id: str) -> list[Event]:
    """Goes into the batch that gives somebody work here: without a membership his own work would be a 404 to him."""
    if workspace.role(user_id):
        return []
    _need_room(workspace)
    return [WorkspaceMemberAdded(workspace_id=workspace.id, user_id=user_id, role=ANNOTATOR)]


def _add(workspace: Workspace, command: AddMember) -> list[Event]:
    match workspace.role(command.user_id):
        case None:
            _need_room(workspace)
            if command.memberships >= MEMBERSHIPS:
                raise TooManyMemberships(most=MEMBERSHIPS)
            return [WorkspaceMemberAdded(workspace_id=workspace.id, user_id=command.user_id, role=command.role)]
        case role if role == command.role:
            return []  # the same request again
        case role:
            raise AlreadyMember(role=role)


def _member(workspace: Workspace, user_id: str) -> Member:
    if user_id == workspace.owner_id:
        raise OwnerStays
    if (member := workspace.members.get(user_id)) is None:
        raise NotFound(what="Member", id=user_id)
    return member


def _need_room(workspace: Workspace) -> None:
    if len(workspace.members) >= MEMBERS:
        raise TooManyMembers(most=MEMBERS)
