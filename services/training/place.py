"""What the workers of one service share, and what each has for itself."""

from pathlib import Path

import msgspec
from nats.aio.client import Client

from libs.events.log import EventLog
from libs.storage import Storage

from .children import Children


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """All in seconds."""

    ack_wait: float = 10.0
    """After which the job of a worker that was killed or paused is given to another."""
    beat: float = 3.0
    """Between two signs of life of a lease, and looks at the story."""
    progress: float = 2.0
    """At least, between two facts about progress."""
    batch: float = 0.25
    """Between two batches of steps for those who look on."""
    heed: float = 10.0
    """For a child to stop when asked; then it gets a signal."""
    term: float = 10.0
    """For a child to end at that signal; then it is killed."""
    answer: float = 3.0
    """For what is stored before a cancel is answered, or a failure told."""
    leave: float = 1.8
    """For a child to stop when the service does."""
    farewell: float = 3.6
    """For all that is done before a service ends."""


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker trains on."""

    worker: str
    device: str = "cpu"
    """As the child sees it."""
    label: str = "cpu"
    """As people call it."""
    environ: dict[str, str] = {}
    threads: int = 1


class Place(msgspec.Struct, frozen=True, kw_only=True):
    nc: Client
    log: EventLog
    storage: Storage
    children: Children
    runs: Path
    models: Path
    timing: Timing = Timing()
