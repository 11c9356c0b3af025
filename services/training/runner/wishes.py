"""What a run is asked for while it goes on."""

import threading
from collections.abc import Callable
from typing import TypeVar

from .outcome import Stop

T = TypeVar("T")

LOOK = 0.05
"""Seconds between two looks at whether to stop, while something else has the word."""


class Wishes:
    """Set from any thread; looked at before every micro-batch."""

    def __init__(self) -> None:
        self.stop = threading.Event()

    def heed(self) -> None:
        if self.stop.is_set():
            raise Stop

    def unless_stopped(self, work: Callable[[], T]) -> T:
        """For calls that may take minutes and can't be interrupted: when asked to stop they are left behind, and end with the process."""
        import torch

        done = threading.Event()
        outcome: list[T] = []
        errors: list[BaseException] = []
        threads = torch.get_num_threads()

        def worker() -> None:
            try:
                torch.set_num_threads(threads)  # OpenMP counts per thread
                outcome.append(work())
            except BaseException as error:  # noqa: BLE001 raised again by whoever waits
                errors.append(error)
            finally:
                done.set()

        threading.Thread(target=worker, daemon=True).start()
        while not done.wait(LOOK):
            self.heed()
        if errors:
            raise errors[0]
        return outcome[0]
