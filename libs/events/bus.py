"""Credentials with which event consumers come onto the bus. Secret, since hashes are in them: never republished. The gateway is the only writer."""

from typing import ClassVar

from .envelope import Event


class BusCredentialCreated(Event, frozen=True, kw_only=True, tag="bus.credential_created"):
    """Lets a program listen to the facts of `workspace`, which is the user's own or one that he is a member of. The password is shown once and known here by its hash."""

    KEY = ("user_id",)
    HOME: ClassVar[str] = "user_id"
    user_id: str
    credential_id: str
    workspace: str
    name: str
    password_sha256: str


class BusCredentialRevoked(Event, frozen=True, kw_only=True, tag="bus.credential_revoked"):
    """Connections that it let in end within a minute."""

    KEY = ("user_id",)
    HOME: ClassVar[str] = "user_id"
    user_id: str
    credential_id: str
