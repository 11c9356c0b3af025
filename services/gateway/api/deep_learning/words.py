"""This family's words for what the platform calls otherwise, and how it pages."""

from datetime import UTC, datetime
from typing import Annotated

from litestar.params import QueryParameter

from services.gateway.domain.jobs import Status

STATUS = {
    Status.QUEUED: "queued",
    Status.PREPARING: "queued",
    Status.RUNNING: "running",
    Status.SUCCEEDED: "completed",
    Status.FAILED: "failed",
    Status.CANCELLED: "stopped",
}

Page = Annotated[int, QueryParameter(ge=1, le=1_000_000)]
Limit = Annotated[int, QueryParameter(ge=1, le=100)]


def stamp(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def stamp_or_none(at: datetime | None) -> str | None:
    return stamp(at) if at else None
