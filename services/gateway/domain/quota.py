"""How many runs a user may have at once, and what a start carries besides: the money and the place that it takes."""

import msgspec

from libs.events import Event, QuotaTaken, Recorded
from services.gateway.domain import credit
from services.gateway.domain.credit import Purse
from services.gateway.domain.errors import TooManyActiveJobs

CONCURRENT = 5
"""Runs of a user that deep-learning-platform allows at once, whoever started them."""


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    user_id: str
    active: frozenset[str] = frozenset()
    """Jobs that may still run: one that is known to have ended is not among them, and never will be again."""


class Starter(msgspec.Struct, frozen=True, kw_only=True):
    """Who starts a run, and so pays for it and has it among his own: nobody when it is the owner of this machine.

    `most`: how many he may have with it; 0 is any number.
    """

    user_id: str = ""
    price: int = 0
    most: int = 0
    what: str = ""
    """That he pays for, as his history tells."""

    @property
    def payer(self) -> str:
        return self.user_id if self.price else ""


def evolve(quota: Quota | None, recorded: Recorded) -> Quota | None:
    match recorded.event:
        case QuotaTaken(user_id=user, job_id=job):
            return Quota(user_id=user, active=(quota.active if quota else frozenset[str]()) | {job})
        case _:
            return quota


def take(quota: Quota | None, *, user_id: str, job_id: str, most: int = 0) -> list[Event]:
    """To stand in one batch with the job."""
    active = quota.active if quota else frozenset[str]()
    if most and len(active) >= most:
        raise TooManyActiveJobs(most=most, job_ids=sorted(active))
    return [QuotaTaken(user_id=user_id, job_id=job_id, most=most)]


def charged(starter: Starter, purse: Purse | None, quota: Quota | None, *, job_id: str) -> list[Event]:
    """What a start carries besides its job."""
    if not starter.user_id:
        return []
    reserved = credit.reserve(purse, user_id=starter.user_id, job_id=job_id, amount=starter.price, reason=starter.what)
    return [*reserved, *take(quota, user_id=starter.user_id, job_id=job_id, most=starter.most)]
