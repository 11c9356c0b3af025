"""What a user can spend: granted, put aside for a job when it starts, and spent or given back when it has ended. And what things cost."""

import re
from functools import cache

import msgspec

from libs.events import (
    CreditCaptured,
    CreditGranted,
    CreditReleased,
    CreditReserved,
    Event,
    PreparationCancelled,
    Recorded,
    TrainingCancelled,
    TrainingCompleted,
)
from services.gateway.domain.errors import IdempotencyKeyReused, InsufficientCredits

FAMILIES = ("autotrainx", "deep-learning-platform", "datagen", "lora-training", "finetuneflow")
MOST = 1_000_000
"""Credits of one grant, or of one price."""

_ITEM = re.compile(r"([a-z-]+)(?::(\d{1,9}))?=(\d{1,7})")


class Purse(msgspec.Struct, frozen=True, kw_only=True):
    """Nobody's is missing: whoever was never granted anything has an empty one."""

    user_id: str
    balance: int = 0
    reserved: dict[str, int] = {}
    """By job, as long as it is not known how the job ended."""
    grants: dict[str, "Granted"] = {}


class Granted(msgspec.Struct, frozen=True, kw_only=True):
    """What a grant answered to which request, for who asks again."""

    request: str
    balance: int


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    user_id: str
    grant_id: str
    amount: int
    reason: str = ""
    request: str = ""


class Settle(msgspec.Struct, frozen=True, kw_only=True):
    """A job has ended: what was put aside for it is spent, or the user's again."""

    user_id: str
    job_id: str
    spent: bool
    reason: str


Command = Grant | Settle


def evolve(purse: Purse | None, recorded: Recorded) -> Purse | None:
    change = msgspec.structs.replace
    match recorded.event:
        case CreditGranted(user_id=user, grant_id=id, amount=amount, request=request):
            purse = purse or Purse(user_id=user)
            balance = purse.balance + amount
            return change(purse, balance=balance, grants={**purse.grants, id: Granted(request=request, balance=balance)})
        case CreditReserved(user_id=user, job_id=job, amount=amount):
            purse = purse or Purse(user_id=user)
            return change(purse, balance=purse.balance - amount, reserved={**purse.reserved, job: amount})
        case CreditCaptured(job_id=job) if purse:
            return change(purse, reserved=_without(purse, job))
        case CreditReleased(job_id=job, amount=amount) if purse:
            return change(purse, balance=purse.balance + amount, reserved=_without(purse, job))
        case _:
            return purse


def decide(purse: Purse | None, command: Command) -> list[Event]:
    purse = purse or Purse(user_id=command.user_id)
    match command:
        case Grant():
            return _grant(purse, command)
        case Settle(job_id=job, reason=reason):
            if (amount := purse.reserved.get(job)) is None:
                return []  # settled already
            if command.spent:
                return [CreditCaptured(user_id=purse.user_id, job_id=job, amount=amount, balance=purse.balance, reason=reason)]
            return [CreditReleased(user_id=purse.user_id, job_id=job, amount=amount, balance=purse.balance + amount, reason=reason)]


def reserve(purse: Purse | None, *, user_id: str, job_id: str, amount: int, reason: str) -> list[Event]:
    """To stand in one batch with the job. What costs nothing leaves no trace."""
    if amount == 0:
        return []
    purse = purse or Purse(user_id=user_id)
    if amount > purse.balance:
        raise InsufficientCredits(price=amount, balance=purse.balance, missing=amount - purse.balance)
    return [CreditReserved(user_id=user_id, job_id=job_id, amount=amount, balance=purse.balance - amount, reason=reason)]


def settlement(end: Event | None, *, begun: bool) -> tuple[bool, str]:
    """Whether what was put aside for a job is spent when it ends like this, and why. `begun`: a worker had taken it."""
    match end:
        case TrainingCompleted():
            return True, "completed"
        case TrainingCancelled() | PreparationCancelled() if begun:
            return True, "cancelled after its training had started"
        case TrainingCancelled() | PreparationCancelled():
            return False, "cancelled before its training started"
        case _:
            return False, "failed"


def welcome(user_id: str, amount: int) -> list[Event]:
    """What a new user begins with."""
    return decide(None, Grant(user_id=user_id, grant_id=user_id, amount=amount, reason="registration")) if amount else []


def price(text: str, family: str, *, steps: int = 0) -> int:
    """By a price list: of the family's tiers the first that has so many steps, or the last one. A family that isn't named costs nothing."""
    tiers = prices(text).get(family, [])
    return next((amount for most, amount in tiers if steps <= most), tiers[-1][1] if tiers else 0)


@cache
def prices(text: str) -> dict[str, list[tuple[int, int]]]:
    """`lora-training:600=10, lora-training:1200=20, finetuneflow=5`: family -> (steps, credits), the fewest steps first. Raises ValueError."""
    listed: dict[str, dict[int, int]] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        if (found := _ITEM.fullmatch(item)) is None:
            raise ValueError(f"'{item[:50]}' is no price: family=credits and family:steps=credits are")
        family, steps, amount = found[1], int(found[2] or 0), int(found[3])
        if family not in FAMILIES:
            raise ValueError(f"'{family}' is none of the families {', '.join(FAMILIES)}")
        if amount > MOST:
            raise ValueError(f"'{item}': {MOST} credits are the most")
        tiers = listed.setdefault(family, {})
        if steps in tiers or (tiers and 0 in (steps, *tiers)):
            raise ValueError(f"'{item}': {family} has another price already")
        tiers[steps] = amount
    return {family: sorted(tiers.items()) for family, tiers in listed.items()}


def _grant(purse: Purse, command: Grant) -> list[Event]:
    if before := purse.grants.get(command.grant_id):
        if before.request != command.request:
            raise IdempotencyKeyReused(id=command.grant_id)
        return []  # the same request again
    granted = CreditGranted(
        user_id=purse.user_id,
        grant_id=command.grant_id,
        amount=command.amount,
        balance=purse.balance + command.amount,
        reason=command.reason,
        request=command.request,
    )
    return [granted]


def _without(purse: Purse, job: str) -> dict[str, int]:
    return {other: amount for other, amount in purse.reserved.items() if other != job}
