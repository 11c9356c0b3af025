"""How the four Python services start, and with which settings."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from infra.embedded.probe import http_status
from infra.embedded.process import Command, Part

GATEWAY, DATASETS, TRAINING = "gateway", "datasets", "training"
NAMES = (GATEWAY, DATASETS, TRAINING, "export")
REPOSITORY = Path(__file__).parents[2]
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Service(Part):
    patience = 60.0

    def __init__(self, *, name: str, label: str, host: str, port: int, environ: Mapping[str, str]) -> None:
        self.name = label
        self._service = name
        self._host = reachable(host)
        self._port = port
        self._environ = environ
        self.address = f"{self._host}:{port}"

    def command(self) -> Command:
        # -P: what is imported comes from the repository, not from wherever we happen to stand.
        environ = {**self._environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), self._environ.get("PYTHONPATH", "")]))}
        return Command([sys.executable, "-P", "-m", f"services.{self._service}"], environ=environ)

    def ready(self, pid: int) -> bool:
        return http_status(self._host, self._port, "/readyz") == 200


def reachable(host: str) -> str:
    """Where to reach somebody who listens on every address."""
    return EVERY_ADDRESS.get(host, host)
