"""What the log says of a job, as far as its training needs to know."""

import msgspec

from libs.events import (
    Claim,
    JobCancelRequested,
    JobCreated,
    PreparationCancelled,
    PreparationCompleted,
    PreparationFailed,
    Recorded,
    TrainingAttemptLost,
    TrainingCancelled,
    TrainingCheckpointed,
    TrainingCompleted,
    TrainingFailed,
    TrainingStarted,
)

GIVEN_BACK = "given_back"
"""The cause of an attempt that nobody lost: its worker was asked to end."""


class Story(msgspec.Struct, kw_only=True):
    """Told twice it is the same."""

    created: Recorded | None = None
    prepared: bool = False
    snapshot: Claim | None = None
    guard: int = 0
    """Position of the last training fact: what the next one must stand right after."""
    attempt: int = 0
    """The highest that was started: all lower ones are fenced."""
    in_vain: int = 0
    """Attempts since the last checkpoint, but for those that were given back."""
    cause: str = ""
    """Of the last attempt that was lost, in words."""
    checkpoints: list[TrainingCheckpointed] = []
    cancel_requested: bool = False
    ended: bool = False

    def tell(self, recorded: Recorded) -> None:
        if of_training(recorded):
            if recorded.seq <= self.guard:
                return
            self.guard = recorded.seq
        match recorded.event:
            case JobCreated():
                self.created = recorded
            case PreparationCompleted(snapshot=snapshot):
                self.prepared, self.snapshot = True, snapshot
            case JobCancelRequested():
                self.cancel_requested = True
            case TrainingStarted(attempt=attempt):
                self.attempt = max(self.attempt, attempt)
                self.in_vain += 1
            case TrainingCheckpointed() as checkpoint:
                self.checkpoints.append(checkpoint)
                self.in_vain = 0
            case TrainingAttemptLost(cause=cause, message=message):
                self.cause = message or cause
                if cause == GIVEN_BACK:
                    self.in_vain = max(0, self.in_vain - 1)
            case TrainingCompleted() | TrainingFailed() | TrainingCancelled() | PreparationFailed() | PreparationCancelled():
                self.ended = True
            case _:
                return

    @property
    def job(self) -> JobCreated:
        assert self.created
        assert isinstance(self.created.event, JobCreated)
        return self.created.event

    @property
    def last(self) -> TrainingCheckpointed | None:
        return self.checkpoints[-1] if self.checkpoints else None


def of_training(recorded: Recorded) -> bool:
    return recorded.envelope.type.startswith("training.")
