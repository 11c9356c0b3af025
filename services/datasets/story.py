"""What the log says of a job, as far as its preparation needs to know."""

import msgspec

from libs.events import (
    Claim,
    JobCancelRequested,
    PreparationCancelled,
    PreparationCompleted,
    PreparationFailed,
    PreparationProduced,
    PreparationStarted,
    Recorded,
)


class Story(msgspec.Struct, kw_only=True):
    """Told twice it is the same."""

    guard: int = 0
    """Position of the last preparation fact: what the next one must stand right after."""
    started: bool = False
    ended: bool = False
    cancel_requested: bool = False
    parts: dict[int, Claim] = {}

    def tell(self, recorded: Recorded) -> None:
        if of_preparation(recorded):
            self.guard = max(self.guard, recorded.seq)
        match recorded.event:
            case PreparationStarted():
                self.started = True
            case PreparationProduced(part=part, content=content):
                self.parts[part] = content
            case JobCancelRequested():
                self.cancel_requested = True
            case PreparationCompleted() | PreparationFailed() | PreparationCancelled():
                self.ended = True
            case _:
                return


def of_preparation(recorded: Recorded) -> bool:
    return recorded.envelope.type.startswith("preparation.")
