"""Credits and quotas: what a user has, has put aside for jobs and has spent, and which jobs count as his. In the user's own workspace, wherever the job is. The gateway is the only writer."""

from typing import ClassVar

from .envelope import Event


class CreditGranted(Event, frozen=True, kw_only=True, tag="credit.granted"):
    """`balance` is what the user can spend after this fact, here and in the facts below. Who granted is the envelope's actor."""

    KEY = ("user_id",)
    HOME: ClassVar[str] = "user_id"
    user_id: str
    grant_id: str
    amount: int
    balance: int
    reason: str = ""
    request: str = ""
    """Fingerprint of the request, so that a repeated Idempotency-Key is told from a re-used one."""


class CreditReserved(Event, frozen=True, kw_only=True, tag="credit.reserved"):
    """Put aside for a job, in one batch with it: of two starts with money for one, one can append it."""

    KEY = ("user_id",)
    HOME: ClassVar[str] = "user_id"
    user_id: str
    job_id: str
    amount: int
    balance: int
    reason: str = ""


class CreditCaptured(Event, frozen=True, kw_only=True, tag="credit.captured"):
    """What was put aside for the job is spent."""

    KEY = ("user_id",)
    HOME: ClassVar[str] = "user_id"
    user_id: str
    job_id: str
    amount: int
    balance: int
    reason: str = ""


class CreditReleased(Event, frozen=True, kw_only=True, tag="credit.released"):
    """What was put aside for the job is the user's again, all of it."""

    KEY = ("user_id",)
    HOME: ClassVar[str] = "user_id"
    user_id: str
    job_id: str
    amount: int
    balance: int
    reason: str = ""


class QuotaTaken(Event, frozen=True, kw_only=True, tag="quota.taken"):
    """One of the user's active jobs from here on, until it has ended: nothing is written then."""

    KEY = ("user_id",)
    HOME: ClassVar[str] = "user_id"
    user_id: str
    job_id: str
    most: int = 0
    """How many the user might have with it; 0: any number."""
