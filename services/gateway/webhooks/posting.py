"""One request to an endpoint: where it goes is checked as it connects, what comes back is bounded in size and time."""

import asyncio
import ssl
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Self

import aiohttp
import certifi
import msgspec

from services.gateway.webhooks.addresses import Network, guard
from services.gateway.webhooks.bodies import retry_after

PATIENCE = 15.0
"""Seconds for a whole request."""
EXCERPT = 1024
"""Bytes of an answer that are read at all: they are for the delivery log."""
_ANSWER = 2.0
"""Seconds that an answer's body is waited for: its status has been heard already."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a request; `status` is None when there was no answer."""

    status: int | None = None
    error: str = ""
    response: str = ""
    seconds: float = 0.0
    retry_after: float = 0.0

    @property
    def ok(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


class Poster:
    def __init__(self, allowed: Sequence[Network], *, patience: float = PATIENCE) -> None:
        self._allowed = allowed
        self._patience = patience

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            limit=0,
            use_dns_cache=False,
            keepalive_timeout=15,
            socket_factory=guard(self._allowed),
            ssl=ssl.create_default_context(cafile=certifi.where()),
        )
        self._http = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=self._patience),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"User-Agent": "trainyard-webhooks"},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Attempt:
        """Never raises for what the other side does."""
        started = time.monotonic()
        try:
            async with self._http.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                excerpt = await _excerpt(answer)
                return Attempt(
                    status=answer.status,
                    error="" if 200 <= answer.status < 300 else f"answered {answer.status}",
                    response=excerpt.decode(errors="replace").replace("\0", "�"),
                    seconds=time.monotonic() - started,
                    retry_after=retry_after(answer.headers.get("Retry-After", ""), datetime.now(UTC)),
                )
        except TimeoutError:
            error = f"no answer within {self._patience:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as broken:
            error = str(broken) or type(broken).__name__
        return Attempt(error=error[:500].encode(errors="replace").decode().replace("\0", "�"), seconds=time.monotonic() - started)


async def _excerpt(answer: aiohttp.ClientResponse) -> bytes:
    """The rest of a longer or slower body is never read: its connection is closed."""
    read = b""
    try:
        async with asyncio.timeout(_ANSWER):
            while len(read) < EXCERPT and (some := await answer.content.read(EXCERPT - len(read))):
                read += some
    except (TimeoutError, aiohttp.ClientError):
        answer.close()
    return read
