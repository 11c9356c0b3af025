"""Pins all that runs and tests trainyard, with the hash of every wheel: `make lock`, or `make lock UPGRADE=1` for the newest of everything."""

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

UV = "uv==0.13.8"
EXTRAS = ("gateway", "datasets", "training", "export", "dev")
APART = ("torch", "triton", "cuda-", "nvidia-")
"""torch and what it brings for NVIDIA's cards are installed by themselves (torch.txt): each machine takes the build that fits it."""
NVML = "nvidia-ml-py"
ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements" / "lock.txt"
TORCH = ROOT / "requirements" / "torch.txt"


def main(arguments: list[str]) -> int:
    return check() if "--check" in arguments else lock(arguments)


def lock(arguments: list[str]) -> int:
    """Pins that pyproject.toml still allows stay. One file for every Python and machine: where they differ, a line has a marker."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", folder, UV], check=True)
        extras = [argument for extra in EXTRAS for argument in ("--extra", extra)]
        how = ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-annotate", "--custom-compile-command", "make lock"]
        command = [f"{folder}/bin/uv", "pip", "compile", "--quiet", *extras, *how, "--output-file", str(LOCK), *arguments, "pyproject.toml"]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
    LOCK.write_text(without(LOCK.read_text()))
    return status


def without(pins: str) -> str:
    """A pin is a line with its name and the indented ones below it."""
    kept = [pin for pin in re.split(r"^(?=\S)", pins, flags=re.MULTILINE) if pin.startswith(NVML) or not pin.startswith(APART)]
    return "".join(kept)


def check() -> int:
    """Without a network: does each dependency that pyproject.toml names have a pin that it allows?"""
    pins = dict(re.findall(r"^([a-z0-9-]+)==([^ ;\n]+)", LOCK.read_text() + TORCH.read_text(), re.MULTILINE))
    stale = [str(wanted) for wanted in _wanted() if not wanted.specifier.contains(pins.get(canonicalize_name(wanted.name), "0"), prereleases=True)]
    if stale:
        sys.stderr.write(f"requirements/lock.txt has no pin for {', '.join(stale)}: run `make lock`\n")
    return 1 if stale else 0


def _wanted() -> Iterator[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for group in (project["dependencies"], *(project["optional-dependencies"][extra] for extra in EXTRAS)):
        yield from map(Requirement, group)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
