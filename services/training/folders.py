"""Where runs have their folders: one for each service, locked while it lives, so that the left-overs of a dead one can be told and removed."""

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = "lock"


@contextmanager
def workplace(root: Path) -> Iterator[Path]:
    _sweep(root)
    folder = root / uuid.uuid4().hex
    folder.mkdir(mode=0o700)
    handle = _locked(folder / _LOCK)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _sweep(root: Path) -> None:
    for folder in root.iterdir():
        if not (folder / _LOCK).exists():
            continue  # just being made; or none of ours
        if (handle := _locked(folder / _LOCK)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


def _locked(path: Path) -> int | None:
    handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle
