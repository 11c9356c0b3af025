"""How soon a fact reaches a watcher: append until a server-sent event arrives, against publish and acknowledgement; with one stream, and with a thousand open of which ten watch."""

import sys
import uuid

from bench.http import Connection
from bench.watching import Show, Watcher, run
from infra.embedded import Process
from libs.events import ProjectUpdated
from libs.events.log import EventLog


class Stream(Watcher):
    """About one thing."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    async def open(self, about: str, *, after: int) -> None:
        self._connection.send("GET", f"/v2/events?about={about}&after={after}", b"", "Accept: text/event-stream")
        await self._connection.head()
        await self._connection.reader.readuntil(b"retry: 1000\n\n")

    async def read(self) -> None:
        while True:
            line = await self._connection.reader.readline()
            if line.startswith(b"data: "):
                self.heard()

    async def close(self) -> None:
        self._connection.writer.close()


class Live(Show):
    name, seat = "live", "stream"

    def __init__(self, process: Process, log: EventLog) -> None:
        super().__init__(process, log)
        self._project = str(uuid.uuid4())

    def change(self) -> ProjectUpdated:
        return ProjectUpdated(project_id=self._project, name="n")

    async def watcher(self) -> Stream:
        return await self._stream(self._project)

    async def others(self, count: int) -> list[Watcher]:
        return [await self._stream(str(uuid.uuid4())) for _ in range(count)]

    async def _stream(self, about: str) -> Stream:
        stream = Stream(await Connection(self.process.part.address).__aenter__())
        await stream.open(about, after=self.position)
        return stream


if __name__ == "__main__":
    sys.exit(run(Live, description=__doc__))
