"""The same users as datagen's clients know them."""

from typing import Any

import asyncpg
import msgspec
from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from services.gateway.accounts import Accounts
from services.gateway.api.auth import Login, address, person
from services.gateway.api.datagen.paging import Limit, Offset, Page, listed, window
from services.gateway.api.requests import AnyRequest
from services.gateway.domain.errors import NotFound
from services.gateway.tokens import LIFETIME
from services.gateway.views import users


class Tokens(msgspec.Struct, kw_only=True):
    """Also under the names that deep-learning-platform has for them."""

    access: str
    refresh: str
    access_token: str
    refresh_token: str
    token_type: str = "bearer"  # noqa: S105
    expires_in: int = LIFETIME


class UserOut(msgspec.Struct, kw_only=True):
    id: str
    username: str
    email: str
    first_name: str
    last_name: str
    full_name: str
    role: str
    is_staff: bool
    is_active: bool = True
    date_joined: str


class Authenticated(msgspec.Struct, kw_only=True):
    is_authenticated: bool = True


@post("/api/v1/auth/token/", status_code=200, summary="Log in")
async def token(request: AnyRequest, data: JSONBody[Login], accounts: NamedDependency[Accounts]) -> Tokens:
    entered = await accounts.log_in(data.username, data.password, address=address(request))
    return Tokens(access=entered.access, refresh=entered.refresh, access_token=entered.access, refresh_token=entered.refresh)


@get("/api/v1/auth/user/", summary="You")
async def own_user(request: AnyRequest, db: NamedDependency[asyncpg.Pool], accounts: NamedDependency[Accounts]) -> UserOut:
    id = person(request).id
    user = await users.get(db, id) or await accounts.user(id)
    if user is None:
        raise NotFound(what="User", id=id)
    return _out(user)


@get("/api/v1/auth/users/", summary="An admin sees all users, others those of their workspaces")
async def list_users(request: AnyRequest, db: NamedDependency[asyncpg.Pool], page: Page = None, limit: Limit = None, offset: Offset = None) -> Response[Any]:
    principal, wanted = person(request), window(page=page, limit=limit, offset=offset)
    within = None if principal.role == "admin" else principal.everywhere
    rows, total = await users.page(db, within=within, limit=wanted.limit, offset=wanted.offset)
    return Response(listed(request, [_out(row, shown=row.id == principal.id) for row in rows], total, wanted))


@get("/api/v1/auth/is_authenticated/", summary="Whether your token is good")
async def is_authenticated(request: AnyRequest) -> Authenticated:
    """401 when it is not."""
    person(request)
    return Authenticated()


handlers: list[Any] = [token, own_user, list_users, is_authenticated]


def _out(user: Any, *, shown: bool = True) -> UserOut:
    """`shown`: with the address, which is for oneself only."""
    first, _, last = user.full_name.partition(" ")
    joined = user.created_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return UserOut(
        id=user.id,
        username=user.username,
        email=user.email if shown else "",
        first_name=first,
        last_name=last,
        full_name=user.full_name,
        role=user.role,
        is_staff=user.role == "admin",
        date_joined=joined,
    )
