"""The workshop: one process with torch and peft for all tests of exports; and a bus and an object store for those that need them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.place import log, nc, own_log, own_nc, place, storage

__all__ = ["log", "nc", "own_log", "own_nc", "place", "storage"]


class Workshop:
    """Tiny models under `folder`, made when the first test asks for one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        root = Path(__file__).parents[2]
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(root)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.export.workshop"],
            cwd=root,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.ask("make", folder=str(folder))

    def ask(self, do: str, **order: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"do": do, **order}).encode() + b"\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def files(self, folder: str) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in sorted((self.folder / folder).iterdir()) if file.is_file()}

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    workshop = Workshop(tmp_path_factory.mktemp("workshop"))
    yield workshop
    workshop.close()
