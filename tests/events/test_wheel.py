"""The events ship alone, as `trainyard_events`: with msgspec and nothing else a consumer reads every fact there ever was."""

import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import msgspec
import pytest

from libs.events import EVENTS
from tests.kit import golden

ROOT = Path(__file__).parents[2]
READ_ALL = """
import json, pathlib, sys
import trainyard_events
from trainyard_events import decode
from trainyard_events.asyncapi import document

read = {file.name: decode(file.read_bytes(), seq=1, subject="ev.golden") for file in pathlib.Path(sys.argv[1]).glob("*.json")}
ours = [name for name in sys.modules if name.split(".")[0] in {"libs", "services", "nats"}]
types = {name: type(fact.event).__name__ for name, fact in read.items()}
print(json.dumps({"types": types, "ours": ours, "from": trainyard_events.__file__, "told": len(document(version="1")["channels"])}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, for a build leaves things behind, and without a network."""
    folder = tmp_path_factory.mktemp("events")
    shutil.copytree(ROOT / "libs" / "events", folder / "source", ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    built = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist"), str(folder / "source")]
    done = subprocess.run(built, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next((folder / "dist").glob("*.whl"))


def test_the_wheel_alone_reads_every_golden_file(wheel: Path, tmp_path: Path):
    """In an interpreter that sees the wheel and msgspec, and no other package that is installed here."""
    alone = tmp_path / "site"
    installed = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--disable-pip-version-check",
        "--target",
        str(alone),
        str(wheel),
    ]
    subprocess.run(installed, check=True, timeout=60)
    shutil.copytree(Path(msgspec.__file__).parent, alone / "msgspec")

    program = ["-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(alone)!r})\n{READ_ALL}", str(golden.FOLDER)]
    done = subprocess.run([sys.executable, *program], capture_output=True, text=True, cwd=tmp_path, check=False)

    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["types"] == {file.name: type(golden.read(file)[1].event).__name__ for file in golden.FOLDER.glob("*.json")}
    assert {EVENTS[name].__name__ for name in EVENTS} == set(said["types"].values())
    assert said["ours"] == []
    assert said["from"].startswith(str(alone))


def test_the_wheel_has_every_file_of_the_events_and_asks_for_msgspec_only(wheel: Path):
    with zipfile.ZipFile(wheel) as packed:
        files = {name.removeprefix("trainyard_events/") for name in packed.namelist() if name.startswith("trainyard_events/")}
        metadata = next(packed.read(name).decode() for name in packed.namelist() if name.endswith("METADATA"))
    needs = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:")]

    assert files == {file.name for file in (ROOT / "libs" / "events").glob("*.py")} | {"py.typed"}
    assert needs == ["Requires-Dist: msgspec>=0.22", 'Requires-Dist: nats-py>=2.16; extra == "log"']


def test_its_version_and_needs_are_the_projects():
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    alone = tomllib.loads((ROOT / "libs" / "events" / "pyproject.toml").read_text())["project"]

    assert (alone["version"], alone["requires-python"]) == (whole["version"], whole["requires-python"])
    assert {*alone["dependencies"], *alone["optional-dependencies"]["log"]} <= set(whole["dependencies"])
