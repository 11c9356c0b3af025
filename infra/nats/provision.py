"""Create the streams, or bring them to their definition; running it again changes nothing."""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
import nats
from msgspec import Meta
from nats.aio.client import Client
from nats.errors import Error as BusError
from nats.errors import NoRespondersError

from infra.nats.streams import definitions
from libs.config import Refused, load

Outcome = Literal["created", "updated", "unchanged"]

NOT_FOUND = 10059
NOT_YET = {10008, 10009, 10039}  # a cluster that has no leader for a moment
GIB = 1024**3


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What provisioning needs."""

    nats_url: Annotated[str, Meta(description="The bus, with the user `infra`: `nats://infra:password@host:4222`, several servers divided by commas.")]


async def provision(nats_url: str, replicas: int = 1, max_bytes: int = 10 * GIB, patience: float = 10.0) -> dict[str, Outcome]:
    """What happened to each stream. `max_bytes` is the room for facts; a server refuses streams that together exceed its max_file_store."""
    denied: list[Exception] = []

    async def remember(error: Exception) -> None:
        denied.append(error)

    try:
        client = await nats.connect(nats_url.split(","), inbox_prefix=b"_INBOX_infra", allow_reconnect=False, connect_timeout=2, error_cb=remember)
    except (OSError, BusError) as error:
        raise Refused(f"TRAINYARD_NATS_URL: no connection to the bus: {str(error).strip()}") from error
    try:
        ask = partial(_ask, client, deadline=time.monotonic() + patience, denied=denied)
        return {stream["name"]: await _bring(stream, ask=ask) for stream in definitions(replicas=replicas, max_bytes=max_bytes)}
    finally:
        await client.close()


async def _bring(stream: dict[str, Any], *, ask: Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]) -> Outcome:
    name = stream["name"]
    before = await ask(f"STREAM.INFO.{name}", {})
    verb = "CREATE" if _code(before) == NOT_FOUND else "UPDATE"
    after = await ask(f"STREAM.{verb}.{name}", stream)
    if "error" in after:
        raise Refused(f"stream {name} can't be {verb.lower()}d: {after['error'].get('description')} (error {_code(after)})")
    if verb == "CREATE":
        return "created"
    return "unchanged" if _comparable(before) == _comparable(after) else "updated"


async def _ask(client: Client, subject: str, body: dict[str, Any], *, deadline: float, denied: list[Exception]) -> dict[str, Any]:
    """Asked again until the deadline: each of these requests may be repeated."""
    while time.monotonic() < deadline:
        try:
            reply = await client.request(f"$JS.API.{subject}", json.dumps(body).encode(), timeout=1)
        except (TimeoutError, NoRespondersError):
            if denied:  # a refused request looks like one that nobody answers
                raise Refused(f"TRAINYARD_NATS_URL: this needs the user `infra`: {str(denied[-1]).strip()}") from None
        else:
            answer: dict[str, Any] = json.loads(reply.data)
            if _code(answer) not in NOT_YET:
                return answer
        await asyncio.sleep(0.1)
    raise Refused("the bus does not answer: is JetStream enabled there, and has its cluster a leader?")


def _code(answer: dict[str, Any]) -> int | None:
    return answer.get("error", {}).get("err_code")


def _comparable(answer: dict[str, Any]) -> dict[str, Any]:
    """The server's own notes in the metadata change with its version."""
    return {key: value for key, value in answer["config"].items() if key != "metadata"}


def size(text: str) -> int:
    """`500MiB`, `64GiB` or plain bytes."""
    for suffix, factor in {"KiB": 1024, "MiB": 1024**2, "GiB": GIB, "TiB": 1024 * GIB}.items():
        if text.endswith(suffix):
            return int(float(text.removesuffix(suffix)) * factor)
    return int(text)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m infra.nats.provision", description=__doc__, epilog="TRAINYARD_NATS_URL names the bus, with the user `infra`."
    )
    parser.add_argument("--replicas", type=int, choices=(1, 3), default=1, help="copies of each stream; 3 needs a cluster of three servers")
    parser.add_argument(
        "--max-bytes", type=size, default=10 * GIB, metavar="SIZE", help="room for facts, e.g. 64GiB; stay below 70 %% of the servers' max_file_store"
    )
    arguments = parser.parse_args()
    try:
        outcomes = asyncio.run(provision(load(Settings).nats_url, replicas=arguments.replicas, max_bytes=arguments.max_bytes))
    except Refused as refused:
        sys.stderr.write(f"{refused}\n")
        return 1
    for name, outcome in outcomes.items():
        sys.stdout.write(f"{name:<5} {outcome}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
