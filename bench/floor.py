"""The least a server could do for a project: ASGI, the same queries, the same append. What the gateway costs beyond it is ours. Run by bench.commands."""

import asyncio
import sys
import uuid
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec
import uvloop
from nats.aio.client import Client

from libs.events import Origin, ProjectCreated, encode
from libs.events.catalog import envelope
from libs.events.subjects import address
from libs.runtime import bus
from libs.runtime.http import Server
from services.gateway.views import projects
from services.gateway.views.database import pool

_encode = msgspec.json.Encoder().encode


class Floor:
    def __init__(self, nc: Client, db: asyncpg.Pool, tenant: str) -> None:
        self._nc = nc
        self._db = db
        self._tenant = tenant

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        path = scope["path"]
        if scope["method"] == "POST":
            status, body = 201, await self._create((await receive())["body"])
        elif path == "/projects":
            rows, total = await projects.page(self._db, [self._tenant], status=None, limit=50, offset=0)
            status, body = 200, _encode({"items": rows, "total": total})
        else:
            status, body = 200, _encode(await projects.get(self._db, self._tenant, path.rpartition("/")[2]))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _create(self, body: bytes) -> bytes:
        """What an append and its projection do for one project: a guarded publish, a row."""
        id = str(uuid.uuid4())
        event = ProjectCreated(project_id=id, **msgspec.json.decode(body))
        where = address("floor", event)
        fact = encode(envelope(event, origin=Origin(tenant="floor"), source="/floor", id=id, at=datetime.now(UTC)))
        guard = {"Nats-Msg-Id": id, "Nats-Expected-Last-Subject-Sequence": "0", "Nats-Expected-Last-Subject-Sequence-Subject": where.guard}
        await self._nc.request(where.under("created"), fact, headers=guard)
        await self._db.execute("insert into core.floor (id, body) values ($1, $2)", id, fact)
        return _encode({"id": id, "name": event.name})


async def serve(port: int, nats_url: str, database_url: str, tenant: str) -> None:
    nc, db = await bus.connect(nats_url, name="floor"), await pool(database_url)
    await db.execute("create table if not exists core.floor (id text primary key, body bytea not null)")
    await Server(Floor(nc, db, tenant), host="127.0.0.1", port=port).serve()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1]), *sys.argv[2:]))
