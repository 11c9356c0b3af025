"""Is an HTTP server on this machine ready?"""

import http.client
from contextlib import closing


def http_status(host: str, port: int, path: str = "/", timeout: float = 1.0) -> int | None:
    """Not urllib: it would ask a proxy that the environment names."""
    with closing(http.client.HTTPConnection(host, port, timeout=timeout)) as connection:
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
