"""Workspaces: what belongs together, and whose it is. The gateway is the only writer."""

from .envelope import Event


class WorkspaceCreated(Event, frozen=True, kw_only=True, tag="workspace.created"):
    """Every user has one, with the user's id."""

    KEY = ("workspace_id",)
    FOUNDS = True
    workspace_id: str
    owner_id: str


class WorkspaceMemberAdded(Event, frozen=True, kw_only=True, tag="workspace.member_added"):
    """From here on this user reaches what is in the workspace, as far as the role goes: editor, annotator or viewer. Its owner is no member."""

    KEY = ("workspace_id",)
    workspace_id: str
    user_id: str
    role: str


class WorkspaceMemberRoleChanged(Event, frozen=True, kw_only=True, tag="workspace.member_role_changed"):
    KEY = ("workspace_id",)
    workspace_id: str
    user_id: str
    role: str


class WorkspaceMemberRemoved(Event, frozen=True, kw_only=True, tag="workspace.member_removed"):
    """By the owner, or gone by himself. A member whose account is deleted (`user.deleted`) is none either, without this fact."""

    KEY = ("workspace_id",)
    workspace_id: str
    user_id: str
