"""`python -m services.export`: takes part in the platform and says so. It takes no kind of job yet."""

import asyncio
import logging

from libs.config import Service
from libs.runtime import process
from libs.runtime.member import member

KINDS: tuple[str, ...] = ()
"""Kinds of jobs whose export this version does."""

log = logging.getLogger(__name__)


async def serve(settings: Service, stop: asyncio.Event) -> None:
    async with member("export", settings, stop):
        log.info("ready; kinds of jobs taken: %s", ", ".join(KINDS) or "none yet")
        await stop.wait()


if __name__ == "__main__":
    process.run("export", Service, serve)
