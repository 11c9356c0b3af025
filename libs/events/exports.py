"""Export: a trained model becomes files that load anywhere. The export service is the only writer."""

import msgspec

from .envelope import Claim, Event


class ExportedFile(msgspec.Struct, frozen=True, kw_only=True):
    """`crc32` lets a ZIP of all files be laid out, and any range of it be sent, without reading them first."""

    name: str
    content: Claim
    crc32: int


class ExportStarted(Event, frozen=True, kw_only=True, tag="export.started"):
    KEY = ("job_id",)
    job_id: str
    merged: bool = False
    """What is exported was merged first, by another stage of this job."""


class ExportProgressed(Event, frozen=True, kw_only=True, tag="export.progress"):
    """`doing` is for people: which step of the work is under way."""

    KEY = ("job_id",)
    job_id: str
    done: int
    total: int
    doing: str = ""
    made: int = 0
    """Of `done`, what took the latest `seconds` of the work; 0: how fast it goes isn't known."""
    seconds: float = 0.0


class ExportCompleted(Event, frozen=True, kw_only=True, tag="export.completed"):
    KEY = ("job_id",)
    job_id: str
    files: list[ExportedFile]


class ExportFailed(Event, frozen=True, kw_only=True, tag="export.failed"):
    KEY = ("job_id",)
    job_id: str
    code: str
    message: str


class ExportCancelled(Event, frozen=True, kw_only=True, tag="export.cancelled"):
    KEY = ("job_id",)
    job_id: str
