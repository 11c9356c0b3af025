"""What preparing a table costs beside reading and writing it with polars alone."""

import argparse
import asyncio
import random
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import uvloop

from bench.kit import Promises, in_turns, p50, table
from services.datasets.confined import process
from services.datasets.confined.frames import Limits

ALONE = "import sys, polars; polars.scan_csv(sys.argv[1]).sink_parquet(sys.argv[2])"
NUMBERS, COUNTS = 10, 4
REPEATED = 100_000
"""Rows that are written again and again."""


def write(path: Path, *, size: int) -> int:
    """A table as people have them: mostly numbers, some categories, a date, a flag, some values missing."""
    draw = random.Random(7)
    header = [*(f"n{n}" for n in range(NUMBERS)), *(f"k{n}" for n in range(COUNTS)), "colour", "size", "day", "flag", "label"]
    lines = [
        ",".join(
            [
                *(f"{draw.gauss(0, 1):.5f}" if draw.random() > 0.02 else "" for _ in range(NUMBERS)),
                *(str(draw.randrange(1_000)) for _ in range(COUNTS)),
                draw.choice(["red", "green", "blue", "NA"]),
                draw.choice(["small", "medium", "large", ""]),
                f"20{draw.randrange(10, 25)}-{draw.randrange(1, 13):02d}-{draw.randrange(1, 29):02d}",
                draw.choice(["yes", "no"]),
                draw.choice(["cat", "dog", "bird"]),
            ]
        )
        for _ in range(REPEATED)
    ]
    body = "\n".join(lines).encode() + b"\n"
    times = max(1, size // len(body))
    with path.open("wb") as file:
        file.write(",".join(header).encode() + b"\n")
        for _ in range(times):
            file.write(body)
    return times * REPEATED


async def alone(path: Path, folder: Path) -> None:
    """With the environment that ours has: as many threads, a process of its own."""
    python = await asyncio.create_subprocess_exec(sys.executable, "-c", ALONE, str(path), str(folder / "alone.parquet"), env=process.environ())
    assert await python.wait() == 0


async def prepared(path: Path, rows: int) -> None:
    """All that is done with an uploaded table but for fetching and storing it: told what it is, checked, typed, described, written."""
    with path.open("rb") as file, tempfile.TemporaryFile() as draft, tempfile.TemporaryFile() as snapshot:
        made = await process.read(file, draft, snapshot, dataset_type="", target="", limits=Limits(), heard=lambda said: None)
    assert (made.valid, made.refused) == (rows, {}), made


async def compare(promises: Promises, *, size: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "table.csv"
        rows = write(path, size=size)
        megabytes = path.stat().st_size / 1e6
        spent: dict[str, list[float]] = {"alone": [], "prepared": []}

        def timed(side: str, work: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[Sequence[float]]]:
            async def one() -> Sequence[float]:
                before, began = _cpu(), time.perf_counter()
                await work()
                spent[side].append(_cpu() - before)
                return [time.perf_counter() - began]

            return one

        sides = {"alone": timed("alone", lambda: alone(path, folder)), "prepared": timed("prepared", lambda: prepared(path, rows))}
        taken = await in_turns(sides, rounds=rounds)
    speed = {side: megabytes / p50(times) for side, times in taken.items()}
    table(
        [f"{megabytes:.0f} MB, {rows:,} rows", "MB/s", "CPU-seconds"],
        [
            ["polars alone", f"{speed['alone']:.0f}", f"{p50(spent['alone'][1:]):.2f}"],
            ["preparation", f"{speed['prepared']:.0f}", f"{p50(spent['prepared'][1:]):.2f}"],
        ],
    )
    promises.at_least("preparing a CSV", speed["prepared"] / speed["alone"], 0.3, of="of reading and writing it with polars alone")


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


async def main_of(arguments: argparse.Namespace) -> int:
    promises = Promises()
    await compare(promises, size=arguments.size_mb * 1_000_000, rounds=arguments.rounds)
    return promises.exit_code()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tables", description=__doc__)
    parser.add_argument("--size-mb", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    return uvloop.run(main_of(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
