"""What an admin does to users, and anybody to the own account."""

from typing import Any, Literal
from uuid import UUID

import msgspec
from litestar import delete, patch
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from services.gateway.accounts import Accounts
from services.gateway.api.auth import admin, person
from services.gateway.api.requests import AnyRequest
from services.gateway.domain.errors import NotFound
from services.gateway.domain.user import ChangeRole, DeleteUser


class UserPatch(msgspec.Struct, kw_only=True):
    role: Literal["user", "annotator", "admin"]


class UserOut(msgspec.Struct, kw_only=True):
    id: str
    username: str
    role: str


@patch("/v2/users/{user_id:uuid}", summary="Change a user's role")
async def change_user(request: AnyRequest, user_id: FromPath[UUID], data: JSONBody[UserPatch], accounts: NamedDependency[Accounts]) -> UserOut:
    """Only an admin may."""
    actor = admin(request)
    user = (await accounts.run(ChangeRole(user_id=str(user_id), role=data.role), actor=actor.id)).state
    return UserOut(id=user.id, username=user.username, role=user.role)


@delete("/v2/users/{user_id:uuid}", status_code=204, summary="Delete a user")
async def delete_user(request: AnyRequest, user_id: FromPath[UUID], accounts: NamedDependency[Accounts]) -> None:
    """Yourself, or, as an admin, anybody. Sessions and keys end and both names are free again; what is in the workspace stays."""
    actor = person(request)
    if actor.role != "admin" and actor.id != str(user_id):
        raise NotFound(what="User", id=str(user_id))
    await accounts.run(DeleteUser(user_id=str(user_id)), actor=actor.id)


handlers: list[Any] = [change_user, delete_user]
