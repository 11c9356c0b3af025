"""A disk that is full, where runs have their folders and in the object store: a run ends once and says why, or goes on when there is room again."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from infra.embedded import Process, Servers
from libs import tiny
from libs.events import FineTune, TrainingCheckpointed, TrainingFailed, TrainingProgressed
from services.training.children import ENTRY, PRELOAD
from services.training.disk import is_disk_full
from tests.kit.proxy import wire
from tests.kit.servers import revive
from tests.kit.trainer import losses
from tests.kit.training import Job, service, settled

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # nats-py leaves them behind where a reconnect fails halfway

MOUNT = 'mount -t tmpfs -o size=16m tmpfs "$0" && exec "$@"'


def can_mount() -> bool:
    if sys.platform != "linux" or not shutil.which("unshare"):
        return False
    return subprocess.run(["unshare", "-Urm", "sh", "-c", "mount -t tmpfs tmpfs /mnt"], check=False, capture_output=True).returncode == 0


small_disk = pytest.mark.skipif(not can_mount(), reason="needs a kernel that lets anybody mount a file system of his own")


class Disk:
    """The one that a service has for its runs, and nobody else sees."""

    def __init__(self, process: Process, folder: Path) -> None:
        self._fill = Path(f"/proc/{process.pid}/root") / folder.relative_to("/") / "fill"

    def fill(self, *, but: int = 0) -> None:
        with suppress(OSError), self._fill.open("ab", buffering=0) as file:
            while file.write(b"\0" * 4096):
                continue
        os.truncate(self._fill, self._fill.stat().st_size - but)

    def free(self) -> None:
        self._fill.unlink()


@contextmanager
def on_a_small_disk(place: Servers, folder: Path, **options: object) -> Iterator[Process]:
    with service(place, within=("unshare", "-Urm", "sh", "-c", MOUNT, str(folder)), runs_folder=str(folder), **options) as process:  # pyright: ignore[reportArgumentType]
        yield process


@small_disk
async def test_a_checkpoint_that_the_disk_has_no_room_for_ends_the_run_and_says_so(place: Servers, job: Job, new_job: Callable[[], Job], tmp_path: Path):
    tuning = FineTune(base_model=tiny.BASE, max_steps=100_000, num_epochs=100, save_steps=20, per_device_batch_size=1, gradient_accumulation_steps=1)
    after = new_job()
    with on_a_small_disk(place, tmp_path, entry=ENTRY, preload=PRELOAD, threads="1") as training:
        await revive(training)
        disk = Disk(training, tmp_path)
        await job.create_with(msgspec.to_builtins(tuning))
        await job.prepare()
        await job.checkpointed()
        disk.fill(but=32 * 1024)  # for the log of the steps

        end = await job.ended(patience=60)
        disk.free()
        await after.create_with(msgspec.to_builtins(msgspec.structs.replace(tuning, max_steps=4)))
        await after.prepare()
        await after.completed(patience=60)

    assert isinstance(end, TrainingFailed)
    assert end.code == "disk_full"
    assert "disk of the machine that trains is full" in end.message
    assert end.step > 20
    assert end.steps is not None
    assert [name for name in await settled(job) if name != "checkpointed"] == ["started", "failed"]
    await job.whole()


@small_disk
async def test_a_service_whose_disk_is_full_ends_its_run_once_and_trains_the_next_one_when_there_is_room(
    place: Servers, job: Job, new_job: Callable[[], Job], tmp_path: Path
):
    after = new_job()
    with on_a_small_disk(place, tmp_path) as training:
        await revive(training)
        disk = Disk(training, tmp_path)
        await job.create(steps=100_000, save=100_000, pause=0.01)
        await job.prepare()
        await job.stepped()
        disk.fill()

        end = await job.ended()
        disk.free()
        await after.create(steps=5)
        await after.prepare()
        await after.completed()

    assert isinstance(end, TrainingFailed)
    assert (end.code, end.attempt) == ("disk_full", 1)
    assert await settled(job) == ["started", "failed"]


async def test_a_run_goes_on_while_the_object_store_is_full(place: Servers, job: Job):
    host, port = place.store.endpoint.removeprefix("http://").split(":")
    async with wire(host, int(port)) as between:
        with service(place, s3_endpoint=f"http://127.0.0.1:{between.port}") as training:
            await revive(training)
            await job.create(steps=60, save=10, pause=0.02)
            await job.prepare()
            await job.checkpointed()
            between.full = True
            kept = await job.of(TrainingCheckpointed)
            await job.stepped(step=60)
            meanwhile = await job.of(TrainingCheckpointed)
            assert "completed" not in await job.names()
            between.full = False
            end = await job.completed()

    assert len(meanwhile) <= len(kept) + 1
    assert await job.curve(end.steps) == losses(60)
    assert [event.attempt for event in await job.of(TrainingProgressed)].count(1) == len(await job.of(TrainingProgressed))
    await job.whole()


def test_what_libraries_make_of_a_full_disk_is_known_as_one():
    of_torch = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")
    of_torch.__context__ = OSError(errno.ENOSPC, "No space left on device")
    of_safetensors = ValueError("Error while serializing: I/O error: No space left on device (os error 28)")

    assert is_disk_full(of_torch)
    assert is_disk_full(of_safetensors)
    assert not is_disk_full(OSError(errno.ENOENT, "No such file or directory"))
