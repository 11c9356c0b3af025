"""A disk that is full, as the many who write to it say it."""

import errno

DISK_FULL = (
    "The disk of the machine that trains is full: its operator has to make room there, or give runs another folder (TRAINYARD_RUNS_FOLDER). "
    "Then start the training again."
)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SAID = tuple(f"(os error {number})" for number in _FULL)
"""By libraries written in Rust."""


def is_disk_full(error: BaseException | None) -> bool:
    """Also where a library made something else of it: PyTorch complains of an unexpected position."""
    while error is not None:
        if (isinstance(error, OSError) and error.errno in _FULL) or str(error).endswith(_SAID):
            return True
        error = error.__cause__ or error.__context__
    return False
