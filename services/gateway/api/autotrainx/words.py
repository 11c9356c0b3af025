"""This family's words for what the platform calls otherwise."""

from datetime import UTC, datetime

from services.gateway.domain.jobs import Status

STATUS = {
    Status.QUEUED: "in_queue",
    Status.PREPARING: "preparing_dataset",
    Status.RUNNING: "training",
    Status.SUCCEEDED: "completed",
    Status.FAILED: "failed",
    Status.CANCELLED: "cancelled",
}
MESSAGES = {
    Status.QUEUED: "Waiting in the queue",
    Status.PREPARING: "Preparing the data set",
    Status.RUNNING: "Running",
    Status.SUCCEEDED: "Completed",
    Status.FAILED: "Failed",
    Status.CANCELLED: "Cancelled",
}
"""Where the facts have nothing to say of their own."""


def percentage(status: Status, percent: int) -> int:
    """What is prepared before the work itself doesn't count, and all of it is done only at the end."""
    if status in (Status.QUEUED, Status.PREPARING):
        return 0
    return 100 if status is Status.SUCCEEDED else min(99, percent)


def stamp(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
