"""Which jobs wait for a worker, and whose turn it is: a fold of the log, the same in every replica."""

from collections import Counter
from typing import Any

import msgspec

from libs.events import (
    JobCancelRequested,
    JobCreated,
    PreparationCancelled,
    PreparationCompleted,
    PreparationFailed,
    Recorded,
    TrainingCancelled,
    TrainingCompleted,
    TrainingFailed,
    TrainingStarted,
)

from .orders import KINDS

FACTS = tuple(
    f"ev.*.{kind}.*"
    for kind in (
        "job.created",
        "job.cancel_requested",
        "preparation.completed",
        "preparation.failed",
        "preparation.cancelled",
        "training.started",
        "training.completed",
        "training.failed",
        "training.cancelled",
    )
)
"""All that the fold needs to be told."""


class Entry(msgspec.Struct, kw_only=True):
    """A job that has not ended."""

    tenant: str
    job_id: str
    seq: int
    """Where it was created: its age."""
    priority: int = 0
    ready: bool = False
    """The stage before has passed the baton."""
    released: bool = False
    started: bool = False
    cancel_requested: bool = False

    @property
    def waits(self) -> bool:
        return self.ready and not self.released and not self.started and not self.cancel_requested

    @property
    def to_cancel(self) -> bool:
        return self.ready and not self.started and self.cancel_requested


class Queue:
    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], Entry] = {}

    def tell(self, recorded: Recorded) -> None:
        tenant = recorded.tenant
        match recorded.event:
            case JobCreated(job_id=job_id, kind=kind, stages=stages, spec=spec):
                if kind in KINDS and "training" in stages:
                    entry = Entry(tenant=tenant, job_id=job_id, seq=recorded.seq, priority=_priority(spec), ready=stages[0] == "training")
                    self.entries.setdefault((tenant, job_id), entry)
            case PreparationCompleted(job_id=job_id):
                if entry := self.entries.get((tenant, job_id)):
                    entry.ready = True
            case JobCancelRequested(job_id=job_id):
                if entry := self.entries.get((tenant, job_id)):
                    entry.cancel_requested = True
            case TrainingStarted(job_id=job_id):
                if entry := self.entries.get((tenant, job_id)):
                    entry.started = True
            case (
                TrainingCompleted(job_id=job_id)
                | TrainingFailed(job_id=job_id)
                | TrainingCancelled(job_id=job_id)
                | PreparationFailed(job_id=job_id)
                | PreparationCancelled(job_id=job_id)
            ):
                self.entries.pop((tenant, job_id), None)
            case _:
                return

    def forget(self, entry: Entry) -> None:
        self.entries.pop((entry.tenant, entry.job_id), None)

    @property
    def waiting(self) -> list[Entry]:
        """Ready, and no worker has started on it."""
        return [entry for entry in self.entries.values() if entry.ready and not entry.started]

    @property
    def to_cancel(self) -> list[Entry]:
        return [entry for entry in self.entries.values() if entry.to_cancel]

    @property
    def in_work(self) -> list[Entry]:
        """Those for which there must be a lease."""
        return [entry for entry in self.entries.values() if entry.ready and (entry.released or entry.started)]

    def next_to_release(self) -> Entry | None:
        """By priority, then for who has the fewest in work, then by age."""
        busy = Counter(entry.tenant for entry in self.in_work)
        return min(
            (entry for entry in self.entries.values() if entry.waits),
            key=lambda entry: (-entry.priority, busy[entry.tenant], entry.seq),
            default=None,
        )


def _priority(spec: dict[str, Any]) -> int:
    priority = spec.get("priority", 0)
    return priority if isinstance(priority, int) else 0
