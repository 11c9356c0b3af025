"""Real servers from PyPI wheels as children of one process: for `make up` and for tests."""

from infra.embedded.process import Process
from infra.embedded.servers import Cluster, Servers, Store
from infra.embedded.settings import Settings

__all__ = ["Cluster", "Process", "Servers", "Settings", "Store"]
