"""Credits that an admin grants."""

from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Response, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import Meta

from services.gateway.accounts import Accounts
from services.gateway.api.auth import admin
from services.gateway.api.requests import AnyRequest, fingerprint, new_id
from services.gateway.domain.credit import MOST, Grant, Purse
from services.gateway.domain.errors import NotFound


class GrantNew(msgspec.Struct, kw_only=True):
    amount: Annotated[int, Meta(ge=1, le=MOST)]
    reason: Annotated[str, Meta(max_length=200)] = ""


class Granted(msgspec.Struct, kw_only=True):
    """`balance` is what the user could spend right afterwards."""

    id: str
    user_id: str
    amount: int
    balance: int


@post("/v2/users/{user_id:uuid}/credits", status_code=201, summary="Grant credits to a user")
async def grant_credits(request: AnyRequest, user_id: FromPath[UUID], data: JSONBody[GrantNew], accounts: NamedDependency[Accounts]) -> Response[Granted]:
    """Only an admin may; who it was is kept with the grant. The user's history shows the reason."""
    actor, id = admin(request), new_id(request)
    if (user := await accounts.user(str(user_id))) is None:
        raise NotFound(what="User", id=str(user_id))
    wanted = Grant(user_id=user.id, grant_id=id, amount=data.amount, reason=data.reason, request=fingerprint(data))
    outcome = await accounts.run(wanted, actor=actor.id)
    purse: Purse = outcome.state
    given = Granted(id=id, user_id=user.id, amount=data.amount, balance=purse.grants[id].balance)
    return Response(given, status_code=201, headers={} if outcome.visible else {"X-Event-Seq": str(outcome.seq)})


handlers: list[Any] = [grant_credits]
