"""Every command of the README runs, against a platform started as `make up` starts it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.servers import fresh_home

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def platform() -> Iterator[dict[str, str]]:
    """The environment of someone for whom it runs."""
    with fresh_home() as home:
        environ = {**os.environ, "TRAINYARD_HOME": str(home), "TRAINYARD_PORT": "0"}
        with subprocess.Popen([sys.executable, "-m", "infra.embedded", "up"], cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True) as up:
            assert up.stdout
            try:
                lines = []
                for line in up.stdout:
                    lines.append(line)
                    if line.startswith("ready "):
                        break
                else:
                    raise AssertionError("".join(lines))
                yield {**environ, "API": lines[-1].split()[1]}
            finally:
                up.send_signal(signal.SIGINT)
                up.communicate(timeout=30)


@pytest.mark.timeout(180)
def test_the_commands_of_the_readme_run_from_top_to_bottom(platform: dict[str, str]):
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    script = "\n".join(blocks).replace(".venv/bin/python", sys.executable).replace("make rebuild", f"{sys.executable} -m infra.embedded rebuild")

    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=ROOT, env=platform, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert '"unknown_format"' in done.stdout
    assert "project.files_added" in done.stdout
    assert '"trained":true' in done.stdout
    assert "event: complete" in done.stdout
    assert "finetuneflow_export.zip" in done.stdout
    assert re.search(r'"class":"cat".*"class":"dog"', done.stdout)
    assert "views made anew from" in done.stdout


def test_the_make_targets_of_the_docs_exist():
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    named = {target for document in documents for target in re.findall(r"`make ([a-z]+)", document.read_text())}
    made = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert named
    assert named <= made


def test_the_paths_of_the_docs_exist():
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    missing = [
        (document.name, path)
        for document in documents
        for path in re.findall(r"`((?:services|libs|infra|tests|docs|bench)/[\w./-]+)`", document.read_text())
        if not (ROOT / path).exists()
    ]

    assert missing == []
