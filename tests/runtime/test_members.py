"""Processes from outside: what their probes say, and how they end."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from infra.embedded import Servers
from libs.runtime.health import Check, report
from libs.runtime.member import starting
from tests.kit.eventually import eventually
from tests.kit.servers import revive

CUT_SHORT = """
import asyncio, time
from concurrent.futures import ThreadPoolExecutor
from libs.config import Service
from libs.runtime import process

async def main(settings, stop):
    asyncio.get_running_loop().run_in_executor(ThreadPoolExecutor(1), time.sleep, 30)
    print("up", flush=True)
    await asyncio.Event().wait()

process.GRACE = 0.3
process.run("stubborn", Service, main)
"""


@contextmanager
def program(*argv: str, environ: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen([sys.executable, *argv], env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


@pytest.mark.alone
@pytest.mark.parametrize(("name", "own"), [("datasets", "reactions"), ("training", "children"), ("export", "reactions")])
async def test_a_service_takes_part_and_says_how_its_parts_are(servers: Servers, name: str, own: str):
    service = servers.service(name)
    await revive(service)
    port = servers.home.ports[name]
    async with httpx.AsyncClient() as client:
        ready = (await client.get(f"http://127.0.0.1:{port}/readyz")).json()
    service.signal(signal.SIGTERM)
    asked = time.monotonic()
    await eventually(lambda: service.ended() is not None)

    assert ready == {"ready": True, "parts": {"bus": "ok", "log": "ok", "storage": "ok", own: "ok"}}
    assert time.monotonic() - asked < 2
    assert json.loads(service.last_words().splitlines()[-1])["message"] == "stopped"


async def test_without_a_bus_it_lives_isnt_ready_and_ends_when_asked(servers: Servers):
    port = servers.home.ports["export"]
    environ = {**servers.environ("export", port=port), "TRAINYARD_NATS_URL": "nats://export:x@127.0.0.1:9"}
    with program("-m", "services.export", environ=environ) as child:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            alive = await eventually(lambda: _get(client, "/livez"))
            ready = await client.get("/readyz")
        child.send_signal(signal.SIGTERM)
        ended = await asyncio.to_thread(child.wait, 3)

    assert alive.status_code == 200
    assert (ready.status_code, ready.json()["parts"]) == (503, {"bus": "not reached yet"})
    assert ended == 0


async def test_what_is_added_while_the_parts_are_asked_is_told_the_next_time():
    checks: dict[str, Check] = {}

    async def bus() -> str:
        checks["log"] = starting
        return ""

    checks["bus"] = bus

    assert await report(checks) == {"bus": ""}
    assert await report(checks) == {"bus": "", "log": "not reached yet"}


async def test_an_end_that_takes_too_long_is_cut_short(servers: Servers):
    """Also when a thread hangs: the interpreter would wait for it."""
    with program("-c", CUT_SHORT, environ=servers.environ("datasets", port=0)) as child:
        assert child.stdout
        await asyncio.to_thread(child.stdout.readline)
        child.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(child.wait, 5) == 0


async def _get(client: httpx.AsyncClient, path: str) -> Any:
    try:
        return await client.get(path)
    except httpx.TransportError:
        return None
