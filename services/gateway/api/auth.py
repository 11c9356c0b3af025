"""What the families' rooms of people share: who asks, from where, and a body that can hold a password."""

from typing import Annotated

import msgspec
from msgspec import Meta

from services.gateway.api.problems import Refused
from services.gateway.api.requests import AnyRequest
from services.gateway.domain.user import LOCAL, NOBODY, Principal

Username = Annotated[str, Meta(min_length=1, max_length=150)]
Password = Annotated[str, Meta(min_length=1, max_length=1024)]
Email = Annotated[str, Meta(min_length=1, max_length=254)]
FullName = Annotated[str, Meta(max_length=200)]


class Login(msgspec.Struct, kw_only=True):
    username: Username
    password: Password


def person(request: AnyRequest) -> Principal:
    """Somebody who has shown a token. The owner of this machine, who needs none, has no account."""
    principal: Principal = request.scope["principal"]  # pyright: ignore[reportTypedDictNotRequiredAccess, reportGeneralTypeIssues]  # put there by the edge
    if principal in (LOCAL, NOBODY):
        raise Refused(401, "A token is needed: send it as Authorization: Bearer <token>")
    return principal


def admin(request: AnyRequest) -> Principal:
    principal = person(request)
    if principal.role != "admin":
        raise Refused(403, "Only an admin may do this")
    return principal


def address(request: AnyRequest) -> str:
    """Of the other end of the connection, whatever its headers say."""
    return request.client.host if request.client else ""
