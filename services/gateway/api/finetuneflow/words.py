"""This family's words for what the platform calls otherwise."""

from datetime import UTC, datetime

STATUS = {"queued": "queued", "preparing": "queued", "running": "running", "succeeded": "success", "failed": "failed", "cancelled": "cancelled"}
SYNONYMS: dict[str, tuple[str, ...]] = {
    "queued": ("queued", "preparing"),
    "pending": ("queued", "preparing"),
    "in_queue": ("queued",),
    "preparing": ("preparing",),
    "preparing_dataset": ("preparing",),
    "running": ("running",),
    "training": ("running",),
    "processing": ("running",),
    "success": ("succeeded",),
    "succeeded": ("succeeded",),
    "completed": ("succeeded",),
    "failed": ("failed",),
    "error": ("failed",),
    "cancelled": ("cancelled",),
    "canceled": ("cancelled",),
    "stopped": ("cancelled",),
}
"""Every family's word for a status is understood in a filter."""


def word(status: str | None) -> str | None:
    return STATUS.get(status or "")


def stamp(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def stamp_or_none(at: datetime | None) -> str | None:
    return stamp(at) if at else None
