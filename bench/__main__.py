"""Every promise of speed, measured in one run: `python -m bench`, or `make bench`."""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

BENCHES = {
    "append": ["--fsync-delay-ms", "2", "5"],
    "read_your_write": [],
    "live": [],
    "sockets": [],
    "replay": [],
    "upload": [],
    "shutdown": [],
    "commands": [],
    "around": [],
    "webhooks": [],
    "examples": [],
    "generation": [],
    "chunking": [],
    "predict": [],
    "tables": [],
    "llm": [],
    "tables_fit": [],
}
"""Each with the arguments that it is given here."""
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"
PROMISE = re.compile(r"^(?P<name>.+) (?P<value>-?[\d,.]+ ?\S*)(?: (?P<of>.+?))? \(promise (?P<limit>[^)]+)\)(?P<broken>  BROKEN)?$")


def run(name: str) -> tuple[int, list[str]]:
    """The bench's exit code and what it printed, passed on as it comes."""
    lines: list[str] = []
    with subprocess.Popen([sys.executable, "-m", f"bench.{name}", *BENCHES[name]], stdout=subprocess.PIPE, text=True) as bench:
        assert bench.stdout
        for line in bench.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            lines.append(line.rstrip())
    return bench.returncode, lines


def promises(lines: list[str]) -> list[str]:
    return [line for line in lines if " (promise " in line]


def fsync_ms() -> float:
    """What one fsync of a small file takes here: every durable figure rests on it."""
    with tempfile.TemporaryFile(dir=".") as file:
        taken = []
        for _ in range(200):
            file.write(b"x" * 512)
            file.flush()
            started = time.perf_counter()
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - started)
    return sorted(taken)[len(taken) // 2] * 1000


def written(found: dict[str, list[str]]) -> str:
    rows = ["| bench | what | measured | promise | |", "|---|---|---|---|---|"]
    for bench, lines in found.items():
        for line in promises(lines):
            match = PROMISE.match(line)
            assert match, line
            of = f" {match['of']}" if match["of"] else ""
            rows.append(
                f"| `bench.{bench}` | {match['name']} | {match['value']}{of} | {match['limit'].replace('<=', '≤').replace('>=', '≥')} | {'**broken**' if match['broken'] else 'kept'} |"
            )
    machine = f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {sys.version.split()[0]}, one fsync {fsync_ms():.2f} ms, load {os.getloadavg()[0]:.1f} at the end."
    printed = [line for bench, lines in found.items() for line in (f"{bench}:", *(line for line in lines if line not in promises(lines)), "")]
    return "\n".join([BEGIN, "", machine, "", *rows, "", "```text", *printed[:-1], "```", "", END])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", choices=BENCHES, action="append", help="just this one (may be given several times)")
    parser.add_argument("--write", action="store_true", help=f"put the figures into {PAGE.name}")
    arguments = parser.parse_args()
    found: dict[str, list[str]] = {}
    failed = []
    for name in arguments.only or BENCHES:
        print(f"\n== bench.{name}", flush=True)
        code, found[name] = run(name)
        if code:
            failed.append(name)
    print("\n== promises")
    for lines in found.values():
        print(*promises(lines), sep="\n")
    if arguments.write:
        page = PAGE.read_text()
        PAGE.write_text(page[: page.index(BEGIN)] + written(found) + page[page.index(END) + len(END) :])
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
