"""Credentials for the bus: for programs that listen to facts as they happen."""

from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import Meta

from services.gateway.api.requests import AnyRequest, InWorkspace, caller, tenant
from services.gateway.bus_access import Doorkeeper, bus_user, subject
from services.gateway.domain.bus import Credential
from services.gateway.domain.user import Principal
from services.gateway.domain.workspace import READ


class BusCredentialNew(msgspec.Struct, kw_only=True):
    """`workspace` is your own, or one that you are a member of; your own when it is left out."""

    name: Annotated[str, Meta(max_length=100)] = ""
    workspace: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None


class BusCredential(msgspec.Struct, kw_only=True):
    """`user` subscribes to `subject` at one of the `servers`."""

    id: str
    name: str
    workspace: str
    servers: list[str]
    user: str
    subject: str
    created_at: str


class BusCredentialShown(BusCredential, kw_only=True):
    password: str


class BusCredentialList(msgspec.Struct, kw_only=True):
    credentials: list[BusCredential]


@post("/v2/bus-credentials", status_code=201, summary="Create a credential for the bus", operation_class=InWorkspace)
async def create_bus_credential(request: AnyRequest, data: JSONBody[BusCredentialNew], doorkeeper: NamedDependency[Doorkeeper]) -> Response[BusCredentialShown]:
    """For a NATS client that listens to a workspace's facts as they happen. `password` is shown here and never again. What a client misses while it is away it reads from `/v2/events`."""
    owner = caller(request)
    id, credential, password = await doorkeeper.create(owner, data.workspace or tenant(request, needs=READ), data.name)
    shown = BusCredentialShown(**msgspec.structs.asdict(_out(doorkeeper, owner, id, credential)), password=password)
    return Response(shown, status_code=201, headers={"Location": f"/v2/bus-credentials/{id}"})


@get("/v2/bus-credentials", summary="Your credentials for the bus")
async def list_bus_credentials(request: AnyRequest, doorkeeper: NamedDependency[Doorkeeper]) -> BusCredentialList:
    owner = caller(request)
    held = await doorkeeper.held(owner)
    return BusCredentialList(credentials=[_out(doorkeeper, owner, id, credential) for id, credential in held.items()])


@delete("/v2/bus-credentials/{credential_id:uuid}", status_code=204, summary="Revoke a credential for the bus")
async def revoke_bus_credential(request: AnyRequest, credential_id: FromPath[UUID], doorkeeper: NamedDependency[Doorkeeper]) -> None:
    """Nobody connects with it any more, and who is connected is cut off within a minute."""
    await doorkeeper.revoke(caller(request), str(credential_id))


handlers: list[Any] = [create_bus_credential, list_bus_credentials, revoke_bus_credential]


def _out(doorkeeper: Doorkeeper, owner: Principal, id: str, credential: Credential) -> BusCredential:
    return BusCredential(
        id=id,
        name=credential.name,
        workspace=credential.workspace,
        servers=doorkeeper.servers,
        user=bus_user(owner.id, id),
        subject=subject(credential.workspace),
        created_at=credential.created_at.isoformat(),
    )
