"""Registering, entering and leaving."""

from typing import Annotated, Any

import msgspec
from litestar import Response, post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from msgspec import Meta

from libs.config import Gateway
from services.gateway.accounts import Accounts, WrongCredentials
from services.gateway.api.auth import Email, FullName, Login, Password, Username, address, person
from services.gateway.api.problems import Refused
from services.gateway.api.requests import AnyRequest, asked_by
from services.gateway.domain.user import LogOut
from services.gateway.tokens import LIFETIME


class Registration(msgspec.Struct, kw_only=True):
    username: Username
    email: Email
    password: Password
    full_name: FullName = ""


class UserOut(msgspec.Struct, kw_only=True):
    id: str
    username: str
    email: str
    full_name: str
    created_at: str


class Tokens(msgspec.Struct, kw_only=True):
    access_token: str
    refresh_token: str
    token_type: str = "bearer"  # noqa: S105  # the document's word
    expires_in: int = LIFETIME


class Refresh(msgspec.Struct, kw_only=True):
    refresh_token: Annotated[str, Meta(min_length=1, max_length=4096)]


class Access(msgspec.Struct, kw_only=True):
    access_token: str
    token_type: str = "bearer"  # noqa: S105
    expires_in: int = LIFETIME


class PasswordChange(msgspec.Struct, kw_only=True):
    current_password: Password
    new_password: Password


@post("/auth/register", status_code=201, summary="Register a user")
async def register(
    request: AnyRequest, data: JSONBody[Registration], accounts: NamedDependency[Accounts], settings: NamedDependency[Gateway]
) -> Response[UserOut]:
    """Usernames and e-mail addresses are the same in whatever case they are written."""
    if settings.registration == "closed":
        raise Refused(403, "Registration is closed: ask the operator for an account")
    user = await accounts.register(username=data.username, email=data.email, password=data.password, full_name=data.full_name, address=address(request))
    created = user.created_at.isoformat(timespec="seconds").replace("+00:00", "Z")
    return Response(UserOut(id=user.id, username=user.username, email=user.email, full_name=user.full_name, created_at=created), status_code=201)


@post("/auth/login", status_code=200, summary="Log in")
async def log_in(request: AnyRequest, data: JSONBody[Login], accounts: NamedDependency[Accounts]) -> Tokens:
    entered = await accounts.log_in(data.username, data.password, address=address(request))
    return Tokens(access_token=entered.access, refresh_token=entered.refresh)


@post("/auth/refresh", status_code=200, summary="A new access token")
async def refresh(request: AnyRequest, data: JSONBody[Refresh], accounts: NamedDependency[Accounts]) -> Access:
    """The refresh token stays good until it ends, is logged out, or the password is changed."""
    principal, access = await accounts.refreshed(data.refresh_token)
    await asked_by(request, principal)
    return Access(access_token=access)


@post("/auth/logout", status_code=204, summary="End this session")
async def log_out(request: AnyRequest, accounts: NamedDependency[Accounts]) -> None:
    """Its refresh token is revoked, and its access token within two seconds. A key is revoked elsewhere: DELETE /v2/keys/{id}."""
    principal = person(request)
    await accounts.run(LogOut(user_id=principal.id, session_id=principal.credential))


@post("/auth/password", status_code=204, summary="Change your password")
async def change_password(request: AnyRequest, data: JSONBody[PasswordChange], accounts: NamedDependency[Accounts]) -> None:
    """All your sessions end, this one too; keys stay."""
    try:
        await accounts.change_password(person(request).id, data.current_password, data.new_password, address=address(request))
    except WrongCredentials as wrong:  # no 401: the token is good
        raise Refused(400, "This is not your password", field="current_password") from wrong


handlers: list[Any] = [register, log_in, refresh, log_out, change_password]
