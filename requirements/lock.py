"""Pins all that runs and tests trainyard, with the hash of every wheel: `make lock`, or `make lock UPGRADE=1` for the newest of everything."""

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

UV = "uv==0.13.8"
EXTRAS = ("gateway", "datasets", "training", "export", "dev")
PEERS = "peers"
"""What benches compare with, and nothing else needs: a file of its own, installed by `make bench`."""
APART = ("torch==", "triton==", "cuda-", "nvidia-cu", "nvidia-nccl", "nvidia-nv")
"""torch and what it brings for NVIDIA's cards are installed by themselves (torch.txt): each machine takes the build that fits it."""
ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements" / "lock.txt"
TORCH = ROOT / "requirements" / "torch.txt"
PEERS_LOCK = ROOT / "requirements" / "peers.txt"


def main(arguments: list[str]) -> int:
    return check() if "--check" in arguments else lock(arguments)


def lock(arguments: list[str]) -> int:
    """Pins that pyproject.toml still allows stay. One file for every Python and machine: where they differ, a line has a marker."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", folder, UV], check=True)
        status = _compile(folder, EXTRAS, LOCK, arguments) or _compile(folder, (*EXTRAS, PEERS), PEERS_LOCK, ["--constraint", str(LOCK), *arguments])
    LOCK.write_text(without(_pins(LOCK), APART))
    PEERS_LOCK.write_text(without(_pins(PEERS_LOCK), (*APART, *(_name(pin) + "==" for pin in _pins(LOCK)))))
    return status


def _compile(folder: str, extras: Iterable[str], to: Path, arguments: list[str]) -> int:
    named = [argument for extra in extras for argument in ("--extra", extra)]
    how = ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-annotate", "--custom-compile-command", "make lock"]
    command = [f"{folder}/bin/uv", "pip", "compile", "--quiet", *named, *how, "--output-file", str(to), *arguments, "pyproject.toml"]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def _pins(file: Path) -> list[str]:
    """A pin is a line with its name and the indented ones below it."""
    return re.split(r"^(?=\S)", file.read_text(), flags=re.MULTILINE)


def _name(pin: str) -> str:
    return pin.partition("==")[0]


def without(pins: list[str], names: tuple[str, ...]) -> str:
    return "".join(pin for pin in pins if not pin.startswith(names))


def check() -> int:
    """Without a network: does each dependency that pyproject.toml names have a pin that it allows?"""
    pins = dict(re.findall(r"^([a-z0-9-]+)==([^ ;\n]+)", "\n".join(file.read_text() for file in (LOCK, TORCH, PEERS_LOCK)), re.MULTILINE))
    stale = [str(wanted) for wanted in _wanted() if not wanted.specifier.contains(pins.get(canonicalize_name(wanted.name), "0"), prereleases=True)]
    if stale:
        sys.stderr.write(f"requirements/lock.txt has no pin for {', '.join(stale)}: run `make lock`\n")
    return 1 if stale else 0


def _wanted() -> Iterator[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for group in (project["dependencies"], *(project["optional-dependencies"][extra] for extra in (*EXTRAS, PEERS))):
        yield from map(Requirement, group)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
