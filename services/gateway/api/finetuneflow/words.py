"""This family's words for what the platform calls otherwise."""

from datetime import UTC, datetime

import msgspec

from services.gateway.views.jobs import Paced

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

TYPES = {"chunk": "chunking", "preview": "dataset_preview", "generate": "dataset_generate"}
"""Kinds of jobs that are called otherwise here."""


class Queued(msgspec.Struct, kw_only=True):
    job_id: str
    status: str = "queued"
    message: str


def progress(status: str, percent: int) -> int:
    """What is prepared before the work itself doesn't count, and all of it is done only at the end."""
    if status in ("queued", "preparing"):
        return 0
    return min(99, percent) if status == "running" else percent


def eta(status: str, cancel_requested: bool, paced: Paced, now: datetime) -> int | None:
    """Seconds until the end; None while nothing is known, and before the work itself has begun."""
    return paced.until_done(now) if status == "running" and not cancel_requested else None


def word(status: str | None) -> str | None:
    return STATUS.get(status or "")


def stamp(at: datetime) -> str:
    text = msgspec.json.encode(at.astimezone(UTC)).decode()  # a quarter of what isoformat takes, and a list has a hundred of them
    return f"{text[1:24]}Z" if text[20] == "." else f"{text[1:20]}.000Z"


def stamp_of_text(at: str) -> str:
    """Of a time as PostgreSQL writes it, in UTC: it leaves zeros at the end away."""
    return f"{at[:10]}T{at[11:19]}.{at[20:-3]:0<3.3}Z"


def stamp_or_none(at: datetime | None) -> str | None:
    return stamp(at) if at else None
