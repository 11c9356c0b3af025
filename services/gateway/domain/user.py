"""What a user can do with what lets him in: sessions, keys, the password, the role; and who somebody is while he asks."""

from datetime import datetime

import msgspec

from libs.events import (
    Event,
    NameReleased,
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
from services.gateway.domain.account import EMAIL, USERNAME, name_id
from services.gateway.domain.errors import NotFound, PasswordChangedMeanwhile, TooManyKeys
from services.gateway.domain.workspace import OWNER

SESSIONS, KEYS = 20, 50
"""Most that a user has at once. One more login ends the oldest session; one more key is refused."""


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks. `tenant` is his own workspace; `credential` is the session or key that lets him in; the owner of this machine needs none."""

    id: str
    tenant: str
    role: str
    credential: str = ""
    workspaces: dict[str, str] = {}
    """Those of others that he is in, and as what."""

    @property
    def everywhere(self) -> list[str]:
        return [self.tenant, *self.workspaces]

    def role_in(self, workspace: str) -> str | None:
        return OWNER if workspace == self.tenant else self.workspaces.get(workspace)


LOCAL = Principal(id="local", tenant="local", role="admin")
"""Local mode: whoever reaches the loopback address is its owner."""
NOBODY = Principal(id="anonymous", tenant="anonymous", role="")
"""At the few doors that are open to all."""


class Session(msgspec.Struct, frozen=True, kw_only=True):
    sha256: str
    expires_at: int


class Key(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    sha256: str
    created_at: datetime


class User(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    username: str
    email: str
    full_name: str
    password_hash: str
    role: str
    created_at: datetime
    sessions: dict[str, Session] = {}
    """The oldest first."""
    keys: dict[str, Key] = {}
    deleted: bool = False


class LogIn(msgspec.Struct, frozen=True, kw_only=True):
    """`password_hash` is the one that the password was found to fit."""

    user_id: str
    password_hash: str
    session_id: str
    token_sha256: str
    now: int
    expires_at: int


class LogOut(msgspec.Struct, frozen=True, kw_only=True):
    user_id: str
    session_id: str


class ChangePassword(msgspec.Struct, frozen=True, kw_only=True):
    """`old_hash` is the one that the old password was found to fit; empty when an admin does it."""

    user_id: str
    old_hash: str
    new_hash: str


class ChangeRole(msgspec.Struct, frozen=True, kw_only=True):
    user_id: str
    role: str


class CreateKey(msgspec.Struct, frozen=True, kw_only=True):
    user_id: str
    key_id: str
    name: str
    key_sha256: str


class RevokeKey(msgspec.Struct, frozen=True, kw_only=True):
    user_id: str
    key_id: str


class DeleteUser(msgspec.Struct, frozen=True, kw_only=True):
    user_id: str


Command = LogIn | LogOut | ChangePassword | ChangeRole | CreateKey | RevokeKey | DeleteUser


def evolve(user: User | None, recorded: Recorded) -> User | None:
    event = recorded.event
    if isinstance(event, UserRegistered):
        return User(
            id=event.user_id,
            username=event.username,
            email=event.email,
            full_name=event.full_name,
            password_hash=event.password_hash,
            role=event.role,
            created_at=recorded.at,
        )
    if user is None:
        return None
    change = msgspec.structs.replace
    match event:
        case UserPasswordChanged(password_hash=new):
            return change(user, password_hash=new, sessions={})
        case UserRoleChanged(role=role):
            return change(user, role=role)
        case UserLoggedIn(session_id=id, token_sha256=sha256, expires_at=until, ended=ended):
            left = {other: session for other, session in user.sessions.items() if other not in ended}
            return change(user, sessions={**left, id: Session(sha256=sha256, expires_at=until)})
        case UserLoggedOut(session_id=id):
            return change(user, sessions={other: session for other, session in user.sessions.items() if other != id})
        case UserKeyCreated(key_id=id, name=name, key_sha256=sha256):
            return change(user, keys={**user.keys, id: Key(name=name, sha256=sha256, created_at=recorded.at)})
        case UserKeyRevoked(key_id=id):
            return change(user, keys={other: key for other, key in user.keys.items() if other != id})
        case UserDeleted():
            return change(user, deleted=True, sessions={}, keys={})
        case _:
            return user


def decide(user: User | None, command: Command) -> list[Event]:
    if user is None or user.deleted:
        raise NotFound(what="User", id=command.user_id)
    match command:
        case LogIn():
            return _log_in(user, command)
        case LogOut(session_id=session):
            return [UserLoggedOut(user_id=user.id, session_id=session)] if session in user.sessions else []
        case ChangePassword():
            if command.old_hash and command.old_hash != user.password_hash:
                raise PasswordChangedMeanwhile
            return [UserPasswordChanged(user_id=user.id, password_hash=command.new_hash)]
        case ChangeRole(role=role):
            return [UserRoleChanged(user_id=user.id, role=role)] if role != user.role else []
        case CreateKey():
            if len(user.keys) >= KEYS:
                raise TooManyKeys(most=KEYS)
            return [UserKeyCreated(user_id=user.id, key_id=command.key_id, name=command.name, key_sha256=command.key_sha256)]
        case RevokeKey(key_id=key):
            if key not in user.keys:
                raise NotFound(what="Key", id=key)
            return [UserKeyRevoked(user_id=user.id, key_id=key)]
        case DeleteUser():
            names = [NameReleased(name_id=name_id(USERNAME, user.username)), NameReleased(name_id=name_id(EMAIL, user.email))]
            return [*names, UserDeleted(user_id=user.id)]


def _log_in(user: User, command: LogIn) -> list[Event]:
    if command.password_hash != user.password_hash:
        raise PasswordChangedMeanwhile
    expired = [id for id, session in user.sessions.items() if session.expires_at <= command.now]
    rest = [id for id in user.sessions if id not in expired]
    pushed_out = rest[: max(0, len(rest) - SESSIONS + 1)]
    begun = UserLoggedIn(
        user_id=user.id,
        session_id=command.session_id,
        token_sha256=command.token_sha256,
        expires_at=command.expires_at,
        ended=expired + pushed_out,
    )
    return [begun]
