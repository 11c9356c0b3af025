"""`python -m infra.restore`: append to the log what it has lost, from the copy of it in the database.

For the day when the stream is gone or ends before the views do; gateways refuse to start then, and say so.
Needs TRAINYARD_NATS_URL with the user `infra`, and TRAINYARD_DATABASE_URL. `python -m infra.embedded restore` knows both.
"""

import argparse
import asyncio
import json
import os
import sys
from typing import Any

import asyncpg
import nats
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import APIError

PAGE = 500
STREAM = "EV"


class Refused(Exception):
    """Nothing was appended, or nothing more: the message says why."""


async def restore(nats_url: str, database_url: str) -> int:
    """How many facts were brought back. What the log still has must be the same as in the copy."""
    nc = await nats.connect(nats_url.split(","), inbox_prefix="_INBOX_infra", connect_timeout=2, max_reconnect_attempts=2)
    database = await asyncpg.connect(database_url, server_settings={"search_path": "core"})
    try:
        count, copied = await database.fetchrow("select count(*), coalesce(max(seq), 0) from event_log")
        if count != copied:
            raise Refused(f"the copy itself has gaps: it holds {count} facts and ends at {copied}")
        info = json.loads((await nc.request(f"$JS.API.STREAM.INFO.{STREAM}", timeout=5)).data)
        if "error" in info:
            raise Refused(f"stream {STREAM}: {info['error']['description']}; make it first: python -m infra.nats.provision")
        last = info["state"]["last_seq"]
        if last > copied:
            raise Refused(f"the log ends at {last}, after the copy ({copied}): it has lost nothing that the copy could bring back")
        await _same(nc, database, last)
        for start in range(last, copied, PAGE):
            await _append(nc, await database.fetch("select seq, subject, id, body from event_log where seq > $1 order by seq limit $2", start, PAGE))
        await database.execute("update checkpoints set log = $1", info["created"])
        return copied - last
    finally:
        await database.close()
        await nc.close()


async def _same(nc: Client, database: asyncpg.Connection, last: int) -> None:
    """The last fact of the log stands at the same place in the copy, or they are two different stories."""
    if last == 0:
        return
    kept = await nc.jetstream().get_msg(STREAM, last)
    if kept.data != await database.fetchval("select body from event_log where seq = $1", last):
        raise Refused(f"fact {last} differs between the log and the copy: these are two different logs")


async def _append(nc: Client, rows: list[Any]) -> None:
    """In order and at its old position, each; the first that fails ends it."""
    acknowledged = [
        nc.request(
            row["subject"], row["body"], timeout=10, headers={"Nats-Msg-Id": str(row["id"] or row["seq"]), "Nats-Expected-Last-Sequence": str(row["seq"] - 1)}
        )
        for row in rows
    ]
    for answer in await asyncio.gather(*acknowledged):
        ack = json.loads(answer.data)
        if "error" in ack:
            raise Refused(f"the log refused a fact: {ack['error']['description']}")


def main() -> int:
    argparse.ArgumentParser(prog="python -m infra.restore", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    try:
        count = asyncio.run(restore(os.environ["TRAINYARD_NATS_URL"], os.environ["TRAINYARD_DATABASE_URL"]))
    except KeyError as missing:
        sys.stderr.write(f"restore: {missing.args[0]} is not set\n")
        return 1
    except (Refused, APIError, NatsError, OSError, asyncpg.PostgresError) as problem:
        sys.stderr.write(f"restore: {problem}\n")
        return 1
    sys.stdout.write(f"{count} facts brought back\n" if count else "the log has lost nothing\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
