"""A process that ends when its parent does, however that ended."""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9


def die_with_parent(parent: int = 0) -> None:
    """Both the forkserver and each child must ask for this: a signal to the one isn't passed on to the other. Linux only; elsewhere a closed socket tells.

    The signal comes when the THREAD that made us ends. With `parent` it is noticed, too, when that one ended before we asked.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if parent and os.getppid() != parent:
        os._exit(1)
