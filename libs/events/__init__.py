"""The contract between the services, and with everyone who listens: the facts, their envelope and the log."""

from .catalog import EVENTS, Unreadable, decode, encode, schema, uuid7
from .envelope import Claim, CloudEvent, Event, Origin, Recorded
from .examples import ExampleDeleted
from .jobs import JobCancelRequested, JobCreated
from .preparation import PreparationCancelled, PreparationCompleted, PreparationFailed, PreparationProduced, PreparationProgressed, PreparationStarted
from .projects import File, ProjectCreated, ProjectDeleted, ProjectFileDeleted, ProjectFilesAdded, ProjectUpdated
from .storable import NotStorable, why_not_storable
from .subjects import Address, address, kind, story

__all__ = [
    "EVENTS",
    "Address",
    "Claim",
    "CloudEvent",
    "Event",
    "ExampleDeleted",
    "File",
    "JobCancelRequested",
    "JobCreated",
    "NotStorable",
    "Origin",
    "PreparationCancelled",
    "PreparationCompleted",
    "PreparationFailed",
    "PreparationProduced",
    "PreparationProgressed",
    "PreparationStarted",
    "ProjectCreated",
    "ProjectDeleted",
    "ProjectFileDeleted",
    "ProjectFilesAdded",
    "ProjectUpdated",
    "Recorded",
    "Unreadable",
    "address",
    "decode",
    "encode",
    "kind",
    "schema",
    "story",
    "uuid7",
    "why_not_storable",
]
