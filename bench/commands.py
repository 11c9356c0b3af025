"""Requests a second and CPU per request, sixteen connections at once, beside a raw ASGI program that does the same I/O. Figures only: nothing is promised of them yet."""

import argparse
import json
import subprocess
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import mean

from bench.kit import cpu_seconds, fresh_servers, gateway, ms, p50, table
from infra.embedded import Servers
from infra.embedded.probe import http_status
from infra.embedded.process import tied_to_us

CONNECTIONS = 16
BODY = json.dumps({"name": "Questions about our docs", "task_type": "qa"})


class Round:
    """One kind of request for some seconds, and the CPU that the server spent on it."""

    def __init__(self, pid: int, address: str, seconds: float, method: str, path: str) -> None:
        body = [BODY] if method == "POST" else []
        before = cpu_seconds(pid)
        done = subprocess.run(
            [sys.executable, "-m", "bench.load", address, str(seconds), str(CONNECTIONS), method, path, *body], capture_output=True, text=True, check=True
        )
        found = json.loads(done.stdout)
        assert found["statuses"] in (["200"], ["201"]), found
        self.rate = found["requests"] / found["seconds"]
        self.cpu = (cpu_seconds(pid) - before) / found["requests"]
        self.p50 = found["p50"]


@contextmanager
def floor(servers: Servers) -> Iterator[tuple[int, str]]:
    port = servers.home.ports["training"]  # nobody else listens there now
    command = [sys.executable, "-m", "bench.floor", str(port), servers.nats_url("gateway"), servers.database_url]
    process = subprocess.Popen(command, **tied_to_us(user=None))
    try:
        while http_status("127.0.0.1", port, "/projects") != 200:
            assert process.poll() is None, "the floor ended"
        yield process.pid, f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def some_projects(address: str, count: int) -> str:
    """The id of one of them."""
    request, id = urllib.request.Request(f"http://{address}/projects", data=BODY.encode(), headers={"Content-Type": "application/json"}), ""
    for _ in range(count):
        with urllib.request.urlopen(request, timeout=10) as answer:
            id = json.load(answer)["id"]
    return id


def measure(servers: Servers, *, rounds: int, seconds: float) -> None:
    taken: dict[tuple[str, str], list[Round]] = defaultdict(list)
    project = ""
    for _ in range(rounds):
        with gateway(servers) as process:
            assert process.pid
            project = project or some_projects(process.part.address, 200)
            asked = {"GET one": ("GET", f"/projects/{project}"), "list 50": ("GET", "/projects"), "POST": ("POST", "/projects")}
            for name, (method, path) in asked.items():
                taken[name, "gateway"].append(Round(process.pid, process.part.address, seconds, method, path))
        with floor(servers) as (pid, address):
            for name, (method, path) in asked.items():
                taken[name, "floor"].append(Round(pid, address, seconds, method, path))
    rows = []
    for name in ("GET one", "list 50", "POST"):
        ours, least = taken[name, "gateway"], taken[name, "floor"]
        for side, some in (("gateway", ours), ("floor", least)):
            rows.append([f"{name}, {side}", f"{mean(r.rate for r in some):,.0f}/s", ms(p50([r.p50 for r in some])), ms(mean(r.cpu for r in some))])
        rows[-2].append(f"{mean(r.cpu for r in ours) / mean(r.cpu for r in least):.2f}x")
        rows[-1].append("")
    table([f"{CONNECTIONS} connections", "requests", "p50", "CPU each", "of floor"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.commands", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    quick = parser.parse_args().quick
    with fresh_servers() as servers:
        measure(servers, rounds=1 if quick else 3, seconds=1 if quick else 4)
    return 0


if __name__ == "__main__":
    sys.exit(main())
