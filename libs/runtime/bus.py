"""The connection to NATS, with time-outs and reconnects that suit a log of truth."""

import logging
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any
from urllib.parse import unquote, urlsplit

from nats.aio.client import Client

log = logging.getLogger(__name__)


def options(url: str, *, name: str) -> dict[str, Any]:
    """For nats-py and for FastStream alike: reconnect for ever, notice a dead link in seconds, keep to one's own inbox."""
    user = urlsplit(url.split(",")[0]).username or name
    return {
        "servers": url.split(","),
        "name": name,
        "inbox_prefix": f"_INBOX_{user}".encode(),
        "connect_timeout": 2,
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": 0.2,
        "ping_interval": 5,
        "max_outstanding_pings": 2,
    }


async def connect(url: str, *, name: str, **callbacks: Any) -> Client:
    async def told(error: Exception) -> None:
        """Permission errors arrive only here; to the caller they look like time-outs."""
        log.warning("bus: %s", str(error) or type(error).__name__)

    settings = options(url, name=name)
    settings["inbox_prefix"] = settings["inbox_prefix"].decode()
    first = urlsplit(settings["servers"][0])
    if first.username:  # in the address alone they would be missing for servers that a cluster tells of
        settings |= {"user": unquote(first.username), "password": unquote(first.password or "")}
    nc = Connection()
    await nc.connect(**settings, error_cb=told, pending_size=16 * 1024 * 1024, **callbacks)
    return nc


class Connection(Client):
    """nats-py reads the headers of every message, and slowly: half of what a fact costs whoever follows the log, and he needs none of them."""

    async def _process_headers(self, headers: bytes | None) -> Mapping[str, str] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if headers and headers.startswith(b"NATS/1.0\r\n"):
            return Headers(headers)
        return await super()._process_headers(headers)


class Headers(Mapping[str, str]):
    """Read when somebody asks."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def __getitem__(self, name: str) -> str:
        return self._pairs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    @cached_property
    def _pairs(self) -> dict[str, str]:
        pairs = (line.partition(":") for line in self._raw.decode("utf-8", "replace").split("\r\n")[1:] if line)
        return {name: value.strip() for name, _, value in pairs}
