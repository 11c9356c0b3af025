"""Workspaces: what belongs together, and whose it is. The gateway is the only writer."""

from .envelope import Event


class WorkspaceCreated(Event, frozen=True, kw_only=True, tag="workspace.created"):
    """Every user has one, with the user's id."""

    KEY = ("workspace_id",)
    FOUNDS = True
    workspace_id: str
    owner_id: str
