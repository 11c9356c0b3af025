"""Jobs: anything that takes longer than a request. The gateway is the only writer."""

from typing import Any

from .envelope import Event


class JobCreated(Event, frozen=True, kw_only=True, tag="job.created"):
    """Carries all that the services need; `stages` are done in this order, each by its own service."""

    KEY = ("job_id",)
    FOUNDS = True
    job_id: str
    kind: str
    stages: list[str]
    inputs: dict[str, Any]
    spec: dict[str, Any] = {}
    project_id: str = ""
    request: str = ""
    """Fingerprint of the request, so that a repeated Idempotency-Key is told from a re-used one."""
    payer: str = ""
    """Who pays for it, wherever it is done; nobody when it costs nothing."""
    price: int = 0


class JobCancelRequested(Event, frozen=True, kw_only=True, tag="job.cancel_requested"):
    """Someone wants the job to end. Who holds the baton decides how it ends."""

    KEY = ("job_id",)
    job_id: str
    reason: str = ""
