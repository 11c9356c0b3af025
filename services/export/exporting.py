"""The one stage of an export job: what a training left is copied, checked and explained."""

import asyncio
import logging
import zlib
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec

from libs.events import (
    Claim,
    ExportCancelled,
    ExportCompleted,
    ExportedFile,
    ExportFailed,
    ExportInputs,
    ExportProgressed,
    ExportStarted,
    JobCreated,
    Recorded,
)
from libs.events.log import EventLog
from libs.pace import Pace
from libs.runtime.stage import Ended, Stage
from libs.runtime.waiting import Stopped, unless
from libs.storage import Missing, Storage

from . import run
from .card import card
from .copying import SETTINGS, Copy, lines, sound
from .curve import Curve, Step, svg
from .documents import metrics, training_config
from .files import BASE_CONFIG, CARD, LOSS_CURVE, MERGED, METRICS, REPORT, TRAINING_CONFIG, chosen, merged, needed, shards
from .refused import Refused
from .report import report
from .run import Run
from .verification import Question, Verdict, verdict

log = logging.getLogger(__name__)

T = TypeVar("T")

HEARTBEAT = 2.0
"""Seconds between looks at the log while nothing else happens, and at least between two facts about progress."""
KEPT = 64 * 1024 * 1024
"""Bytes of files that are held in memory until they are checked: heads and settings."""

_step = msgspec.json.Decoder(Step)


class Export:
    """Done by whoever holds the job's delivery. Done again it gives the same bytes: nothing in them tells when they were made."""

    def __init__(self, created: Recorded, *, event_log: EventLog, storage: Storage) -> None:
        assert isinstance(created.event, JobCreated)
        self.job_id = created.event.job_id
        self.tenant = created.tenant
        self._created = created
        self._job = created.event
        self._log = event_log
        self._storage = storage
        self._stage = Stage(created, category="export", event_log=event_log)
        self._now = ExportProgressed(job_id=self.job_id, done=0, total=0)
        self._told = (0.0, self._now)
        self._pace = Pace()

    @property
    def cancel_asked(self) -> asyncio.Event:
        return self._stage.cancel_asked

    async def run(self) -> None:
        try:
            await self._stage.look()
            await unless(self.cancel_asked, self._export())
        except Ended:
            return
        except Stopped:
            await self._end(ExportCancelled(job_id=self.job_id))
        except Missing:
            await self.fail("artifact_missing", "What the training stored is not in the object store any more.")
        except Refused as refused:
            await self.fail(refused.code, refused.message)

    async def fail(self, code: str, message: str) -> None:
        log.warning("export failed", extra={"job": self.job_id, "code": code})
        await self._end(ExportFailed(job_id=self.job_id, code=code, message=message))

    async def _end(self, event: ExportFailed | ExportCancelled) -> None:
        await self._stage.end(event, cancelled=ExportCancelled(job_id=self.job_id))

    async def _export(self) -> None:
        with_merged = "training" in self._job.stages
        await self._stage.start(ExportStarted(job_id=self.job_id, merged=with_merged))
        self._told = (asyncio.get_running_loop().time(), self._now)
        inputs = msgspec.convert(self._job.inputs, ExportInputs)
        trained = await run.read(self._log, tenant=self.tenant, job_id=inputs.training_job_id, project_id=inputs.project_id, until=self._created.seq - 1)
        along, left_behind = chosen(trained.completed.artifacts, method=trained.tuning.method)
        made: dict[str, Claim] = {}
        if with_merged:
            merge = await run.merge_of(self._log, tenant=self.tenant, job_id=self.job_id)
            made, trained.merged = merged(merge.artifacts), {"folder": MERGED} | _dict(merge.summary.get("merged"))
        copies = await self._copy_all(along, made)
        self._now = msgspec.structs.replace(self._now, doing="checking that the model loads")
        found = await self._watched(verdict(_question(trained, copies)))
        if made:
            await self._watched(verdict(_question_of_merged(copies)))
        self._now = msgspec.structs.replace(self._now, doing="writing the report")
        curve = await self._watched(self._curve(trained.completed.steps))
        files = [copy.file for copy in copies.values()]
        for name, content in _written(trained, curve, found, left_behind).items():
            claim = await self._watched(self._storage.put(self._folder, content))
            files.append(ExportedFile(name=name, content=claim, crc32=zlib.crc32(content)))
        await self._stage.look()
        await self._stage.append(ExportCompleted(job_id=self.job_id, files=sorted(files, key=lambda file: file.name)))
        log.info("exported", extra={"job": self.job_id, "files": len(files), "bytes": sum(file.content.size for file in files)})

    @property
    def _folder(self) -> str:
        return f"{self.tenant}/{self.job_id}"

    async def _copy_all(self, along: dict[str, Claim], made: dict[str, Claim]) -> dict[str, Copy]:
        """Into objects of this job: two owners never share one. What another stage of it has `made` is its own already. A merge was the first half of the way."""

        def passed(size: int) -> None:
            self._now = msgspec.structs.replace(self._now, done=self._now.done + size)

        size = sum(claim.size for claim in (*along.values(), *made.values()))
        self._now = ExportProgressed(job_id=self.job_id, done=size if made else 0, total=2 * size if made else size, doing="copying files")
        copies = {name: Copy(name, claim, folder=self._folder, passed=passed) for name, claim in along.items()}
        copies |= {name: Copy(name, claim, passed=passed) for name, claim in made.items()}
        for copy in copies.values():
            await self._watched(copy.make(self._storage))
            if sum(len(copy.kept) for copy in copies.values()) > KEPT:
                raise Refused("does_not_load", f"The heads of the files of weights and the settings take more than {KEPT:,} bytes.")
        return copies

    async def _curve(self, steps: Claim) -> Curve:
        curve = Curve()
        async for line in lines(sound(self._storage, steps, "The log of the run's steps")):
            try:
                curve.add(_step.decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise Refused("artifact_damaged", f"The log of the run's steps can't be read: {error}.") from None
        return curve

    async def _watched(self, work: Coroutine[Any, Any, T]) -> T:
        """Meanwhile the log is looked at, and told how far things are."""
        task = asyncio.create_task(work)
        try:
            while True:
                await asyncio.wait({task}, timeout=HEARTBEAT)
                await self._stage.look()
                await self._tell()
                if task.done():
                    return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _tell(self) -> None:
        at, told = self._told
        now = asyncio.get_running_loop().time()
        self._pace.note(self._now.done, at=now)
        if now - at >= HEARTBEAT and self._now != told:
            self._told, speed = (now, self._now), self._pace.speed
            await self._stage.append(msgspec.structs.replace(self._now, made=speed.made, seconds=speed.seconds))


def _question(trained: Run, copies: dict[str, Copy]) -> Question:
    weights, settings = needed(trained.tuning.method)
    claim, config = copies[weights].file.content, _settings(settings, copies[settings].kept)
    head = bytes(copies[weights].kept)
    if trained.tuning.method == "full":
        return Question(base_config=config, adapter_config=None, head=head, size=claim.size)
    base_config = trained.summary.get("base_config") or (_settings(BASE_CONFIG, copies[BASE_CONFIG].kept) if BASE_CONFIG in copies else None)
    if not isinstance(base_config, dict):
        raise Refused("unverifiable", "The training didn't tell the configuration of the base model, so nobody can say whether the adapter fits it.")
    return Question(base_config=base_config, adapter_config=config, head=head, size=claim.size)


def _question_of_merged(copies: dict[str, Copy]) -> Question:
    config = _settings(f"{MERGED}config.json", copies[f"{MERGED}config.json"].kept)
    first, *others = [(bytes(copies[name].kept), copies[name].file.content.size) for name in shards(copies)]
    return Question(base_config=config, adapter_config=None, head=first[0], size=first[1], others=others)


def _settings(name: str, content: bytearray) -> dict[str, Any]:
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refused("does_not_load", f"{name} is not a JSON object of at most {SETTINGS:,} bytes.") from None


def _written(trained: Run, curve: Curve, found: Verdict, left_behind: list[str]) -> dict[str, bytes]:
    held_out = [(one.step, loss) for one in trained.evaluations if (loss := one.metrics.get("eval_loss")) is not None]
    return {
        TRAINING_CONFIG: training_config(trained),
        METRICS: metrics(trained, curve),
        LOSS_CURVE: svg([(point.step, point.train_loss) for point in curve.points], held_out).encode(),
        REPORT: report(trained, curve, found, left_behind=left_behind),
        CARD: card(trained),
        **({f"{MERGED}{CARD}": card(trained, merged=True)} if trained.merged else {}),
    }


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
