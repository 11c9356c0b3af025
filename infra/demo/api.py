"""The few calls of the API that the demo makes: what any client does, with the standard library alone."""

import http.client
import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

WAIT = 0.3


class Refused(Exception):
    """The platform said no, in its own words."""


class Api:
    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self._host, self._port = where.hostname or "127.0.0.1", where.port or 80

    def get(self, path: str) -> Any:
        return json.loads(self._send("GET", path))

    def post(self, path: str, body: Any = None) -> Any:
        return json.loads(self._send("POST", path, json.dumps({} if body is None else body).encode(), "application/json"))

    def upload(self, path: str, file: Path, **fields: str) -> Any:
        border = uuid.uuid4().hex
        parts = [f'--{border}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
        head = f'--{border}\r\nContent-Disposition: form-data; name="files"; filename="{file.name}"\r\nContent-Type: application/octet-stream\r\n\r\n'
        body = b"".join(parts) + head.encode() + file.read_bytes() + f"\r\n--{border}--\r\n".encode()
        return json.loads(self._send("POST", path, body, f"multipart/form-data; boundary={border}"))

    def download(self, path: str, to: Path) -> Path:
        to.write_bytes(self._send("GET", path))
        return to

    def job(self, job_id: str) -> dict[str, Any]:
        """As it is once it has ended."""
        while (job := self.get(f"/jobs/{job_id}"))["status"] in ("queued", "running"):
            time.sleep(WAIT)
        if job["status"] != "success":
            raise Refused(job["error_message"] or f"the {job['type']} job is {job['status']}")
        return job

    def stream(self, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Server-sent events until the stream ends; a broken connection goes on where it was."""
        last = ""
        while True:
            try:
                connection = self._connection(timeout=60)
                connection.request("GET", path, headers={"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})})
                answer = connection.getresponse()
                if answer.status == 204:
                    return
                if answer.status != 200:
                    raise Refused(_said(answer.read(), answer.status))
                event = ""
                for raw in answer:
                    name, _, value = raw.decode().rstrip("\n").partition(": ")
                    if name == "id":
                        last = value
                    elif name == "event":
                        event = value
                    elif name == "data":
                        yield event, json.loads(value)
            except (OSError, http.client.HTTPException):
                time.sleep(WAIT)

    def _send(self, method: str, path: str, body: bytes | None = None, kind: str = "") -> bytes:
        connection = self._connection(timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": kind} if kind else {})
            answer = connection.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Refused(f"the platform at {self._host}:{self._port} does not answer ({error})") from error
        if answer.status >= 400:
            raise Refused(_said(said, answer.status))
        return said

    def _connection(self, *, timeout: float) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._host, self._port, timeout=timeout)


def _said(body: bytes, status: int) -> str:
    try:
        return f"{json.loads(body)['detail']} ({status})"
    except (ValueError, KeyError, TypeError):
        return f"status {status}"
