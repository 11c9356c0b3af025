"""uvicorn inside a process that has its own idea of signals."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn


class Server(uvicorn.Server):
    """Ends when told to; signals are the process's (libs/runtime/process.py)."""

    def __init__(self, app: Any, *, host: str, port: int) -> None:
        logging.getLogger("uvicorn.error").addFilter(_is_an_error)
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                interface="asgi3",  # a bound method would be taken for an older one
                http="httptools",
                ws="websockets-sansio",
                ws_max_size=64 * 1024,  # nobody has to say anything there
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # uvicorn would believe X-Forwarded-For from any local process
                timeout_graceful_shutdown=1,
                h11_max_incomplete_event_size=64 * 1024,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        self.should_exit = True


def _is_an_error(record: logging.LogRecord) -> bool:
    """uvicorn complains of every handshake that is refused with an answer as if there were none."""
    return record.msg != "ASGI callable returned without completing handshake."
