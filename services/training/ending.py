"""Why a training does not simply go on: what its worker raises, and is told."""

import asyncio


class Over(Exception):
    """The job has ended, or a higher attempt was read in its story: nothing more is ours to write."""


class Moved(Exception):
    """Somebody wrote before us: what we wanted to write rests on an older story."""


class Lost(Exception):
    """A child ended without a word, or our own machinery broke down: to be tried again."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause
        self.message = message


class Hopeless(Exception):
    """However often it is tried, it will not come about: a stable code, and words for who asked for it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class GivenBack(Exception):
    """This process ends: somebody else goes on at once."""


class Signals:
    """What a run is told while it goes on. `hard` ones leave no time to finish anything, not even a cancel."""

    def __init__(self) -> None:
        self.any = asyncio.Event()
        self.hard = asyncio.Event()
        self.cancel = asyncio.Event()
        self.stop = asyncio.Event()
        self.failure: Exception | None = None

    def ask_cancel(self) -> None:
        """Somebody wants the job to end."""
        self.cancel.set()
        self.any.set()

    def ask_stop(self) -> None:
        """This process ends; the job goes on elsewhere."""
        self.stop.set()
        self.hard.set()
        self.any.set()

    def fail(self, failure: Exception) -> None:
        """Something that goes on beside the run broke down, or read that the job is not ours any more."""
        self.failure = self.failure or failure
        self.hard.set()
        self.any.set()

    def taken_failure(self) -> Exception | None:
        """Told once; then the other signals count again."""
        failure, self.failure = self.failure, None
        if not self.stop.is_set():
            self.hard.clear()
            if not self.cancel.is_set():
                self.any.clear()
        return failure
