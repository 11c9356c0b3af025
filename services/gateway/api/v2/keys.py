"""API keys: for programs that act as you."""

from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import Meta

from services.gateway.accounts import Accounts
from services.gateway.api.auth import person
from services.gateway.api.requests import AnyRequest
from services.gateway.domain.errors import NotFound
from services.gateway.domain.user import Key, RevokeKey


class KeyNew(msgspec.Struct, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=100)]


class KeyOut(msgspec.Struct, kw_only=True):
    id: str
    name: str
    created_at: str


class KeyShown(KeyOut, kw_only=True):
    key: str


class KeyList(msgspec.Struct, kw_only=True):
    keys: list[KeyOut]


@post("/v2/keys", status_code=201, summary="Create an API key")
async def create_key(request: AnyRequest, data: JSONBody[KeyNew], accounts: NamedDependency[Accounts]) -> Response[KeyShown]:
    """`key` is shown here and never again: it is sent as Authorization: Bearer. It stays until it is revoked."""
    user, id, key = await accounts.create_key(person(request).id, data.name)
    shown = _out(id, user.keys[id])
    return Response(KeyShown(id=shown.id, name=shown.name, created_at=shown.created_at, key=key), status_code=201, headers={"Location": f"/v2/keys/{id}"})


@get("/v2/keys", summary="Your API keys")
async def list_keys(request: AnyRequest, accounts: NamedDependency[Accounts]) -> KeyList:
    id = person(request).id
    if (user := await accounts.user(id)) is None:
        raise NotFound(what="User", id=id)
    return KeyList(keys=[_out(id, key) for id, key in user.keys.items()])


@delete("/v2/keys/{key_id:uuid}", status_code=204, summary="Revoke an API key")
async def revoke_key(request: AnyRequest, key_id: FromPath[UUID], accounts: NamedDependency[Accounts]) -> None:
    await accounts.run(RevokeKey(user_id=person(request).id, key_id=str(key_id)))


handlers: list[Any] = [create_key, list_keys, revoke_key]


def _out(id: str, key: Key) -> KeyOut:
    return KeyOut(id=id, name=key.name, created_at=key.created_at.isoformat())
