"""What a user can do with credentials for event consumers on the bus."""

from datetime import datetime

import msgspec

from libs.events import BusCredentialCreated, BusCredentialRevoked, Event, Recorded
from services.gateway.domain.errors import NotFound, TooManyBusCredentials

MOST = 50
"""Credentials that a user has at once."""


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    workspace: str
    name: str
    sha256: str
    created_at: datetime


class BusAccess(msgspec.Struct, frozen=True, kw_only=True):
    """All credentials of a user, the oldest first."""

    user_id: str
    credentials: dict[str, Credential] = {}


class CreateCredential(msgspec.Struct, frozen=True, kw_only=True):
    """That the user may read the workspace has been looked at."""

    user_id: str
    credential_id: str
    workspace: str
    name: str
    password_sha256: str


class RevokeCredential(msgspec.Struct, frozen=True, kw_only=True):
    user_id: str
    credential_id: str


Command = CreateCredential | RevokeCredential


def evolve(access: BusAccess | None, recorded: Recorded) -> BusAccess | None:
    match recorded.event:
        case BusCredentialCreated() as event:
            held = access.credentials if access else {}
            new = Credential(workspace=event.workspace, name=event.name, sha256=event.password_sha256, created_at=recorded.at)
            return BusAccess(user_id=event.user_id, credentials={**held, event.credential_id: new})
        case BusCredentialRevoked(user_id=user, credential_id=revoked):
            held = access.credentials if access else {}
            return BusAccess(user_id=user, credentials={id: credential for id, credential in held.items() if id != revoked})
        case _:
            return access


def decide(access: BusAccess | None, command: Command) -> list[Event]:
    held = access.credentials if access else {}
    match command:
        case CreateCredential():
            if len(held) >= MOST:
                raise TooManyBusCredentials(most=MOST)
            return [
                BusCredentialCreated(
                    user_id=command.user_id,
                    credential_id=command.credential_id,
                    workspace=command.workspace,
                    name=command.name,
                    password_sha256=command.password_sha256,
                )
            ]
        case RevokeCredential(user_id=user, credential_id=id):
            if id not in held:
                raise NotFound(what="Credential", id=id)
            return [BusCredentialRevoked(user_id=user, credential_id=id)]
