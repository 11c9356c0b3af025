"""What all benches share: servers of their own, both sides measured in turns in one run, and judged by their ratio."""

import gc
import os
import shutil
import statistics
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from infra.embedded import Process, Servers, Settings

ELSEWHERE = "not-needed"
Round = Callable[[], Awaitable[Sequence[float]]]
"""Measures some, and answers the seconds that each took."""


class Promises:
    """Prints each figure beside what was promised of it, and remembers whether one was broken."""

    def __init__(self) -> None:
        self.broken = 0

    def at_most(self, name: str, value: float, limit: float, *, of: str = "", unit: str = "x") -> None:
        self._judge(name, value, f"<= {limit:,g}{unit}", of, unit, kept=value <= limit)

    def at_least(self, name: str, value: float, limit: float, *, of: str = "", unit: str = "x") -> None:
        self._judge(name, value, f">= {limit:,g}{unit}", of, unit, kept=value >= limit)

    def exit_code(self) -> int:
        return 1 if self.broken else 0

    def _judge(self, name: str, value: float, promise: str, of: str, unit: str, *, kept: bool) -> None:
        """`python -m bench` reads these lines again."""
        text = f"{name} {value:,.{2 if value < 100 else 0}f}{unit}{f' {of}' if of else ''} (promise {promise})"
        print(text if kept else f"{text}  BROKEN", flush=True)
        self.broken += not kept


async def in_turns(sides: Mapping[str, Round], *, rounds: int) -> dict[str, list[float]]:
    """Whatever else the machine does hits all sides alike. One more round, before the others, only warms up; who goes first changes."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            gc.collect()
            some = await sides[name]()
            if number:
                taken[name] += some
    return taken


def p50(values: Sequence[float]) -> float:
    return statistics.median(values)


def p99(values: Sequence[float]) -> float:
    return percentile(values, 99)


def percentile(values: Sequence[float], percent: float) -> float:
    return sorted(values)[round(percent / 100 * (len(values) - 1))]


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, ["-" * width for width in widths], *rows):
        print("  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]), flush=True)


@contextmanager
def fresh_servers(settings: Settings | None = None) -> Iterator[Servers]:
    """Not below a folder that only we may enter: PostgreSQL runs as a user of its own when we are root."""
    folder = Path(tempfile.mkdtemp(prefix="trainyard-bench-"))
    folder.chmod(0o711)
    try:
        with Servers(folder / "home", settings or Settings(port=0)) as servers:
            yield servers
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def bus_alone(nats_bin: str = "") -> Settings:
    """For `fresh_servers`: neither PostgreSQL nor an object store."""
    return Settings(nats_bin=nats_bin, database_url=ELSEWHERE, s3_endpoint=ELSEWHERE)


@contextmanager
def gateway(servers: Servers, **settings: str) -> Iterator[Process]:
    """A process of its own, ready, as people run it but for these settings."""
    process = servers.service("gateway", environ={f"TRAINYARD_{name.upper()}": value for name, value in settings.items()})
    process.start()
    try:
        yield process
    finally:
        process.stop()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(process: Process, field: str = "VmRSS") -> float:
    """What it has now; `VmHWM` is the most it had since `forget_peak`."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def forget_peak(process: Process) -> None:
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")
