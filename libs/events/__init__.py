"""The contract between the services, and with everyone who listens: the facts, their envelope and the log."""

from .catalog import EVENTS, Unreadable, decode, encode, schema, uuid7
from .envelope import Claim, CloudEvent, Event, Origin, Recorded
from .examples import ExampleDeleted
from .exports import ExportCancelled, ExportCompleted, ExportedFile, ExportFailed, ExportProgressed, ExportStarted
from .jobs import JobCancelRequested, JobCreated
from .preparation import PreparationCancelled, PreparationCompleted, PreparationFailed, PreparationProduced, PreparationProgressed, PreparationStarted
from .projects import (
    File,
    ProjectCreated,
    ProjectDeleted,
    ProjectFileDeleted,
    ProjectFilesAdded,
    ProjectModelResolved,
    ProjectRunStarted,
    ProjectUpdated,
    ProjectWorkStarted,
)
from .specs import ExportInputs, FineTune, Source, TrainInputs
from .storable import NotStorable, why_not_storable
from .subjects import Address, address, kind, story
from .training import (
    TrainingAttemptLost,
    TrainingBatchReduced,
    TrainingCancelled,
    TrainingCheckpointed,
    TrainingCompleted,
    TrainingEvaluated,
    TrainingFailed,
    TrainingProgressed,
    TrainingSampled,
    TrainingStarted,
)

__all__ = [
    "EVENTS",
    "Address",
    "Claim",
    "CloudEvent",
    "Event",
    "ExampleDeleted",
    "ExportCancelled",
    "ExportCompleted",
    "ExportFailed",
    "ExportInputs",
    "ExportProgressed",
    "ExportStarted",
    "ExportedFile",
    "File",
    "FineTune",
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
    "ProjectModelResolved",
    "ProjectRunStarted",
    "ProjectUpdated",
    "ProjectWorkStarted",
    "Recorded",
    "Source",
    "TrainInputs",
    "TrainingAttemptLost",
    "TrainingBatchReduced",
    "TrainingCancelled",
    "TrainingCheckpointed",
    "TrainingCompleted",
    "TrainingEvaluated",
    "TrainingFailed",
    "TrainingProgressed",
    "TrainingSampled",
    "TrainingStarted",
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
