"""One attempt at a training: a folder, a child in it, and what is made of what the child says."""

import asyncio
import logging
import signal
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import nats.errors
import prometheus_client

from libs.events import Claim, Event, TrainingCancelled, TrainingCheckpointed, TrainingCompleted, TrainingFailed, TrainingStarted
from libs.pace import UNKNOWN, Pace
from libs.runtime.waiting import Stopped as Interrupted
from libs.runtime.waiting import unless
from libs.storage import Missing, StorageDown

from . import models, telling
from .children import Child, Gone
from .ending import Lost, Signals
from .frames import Assignment, BrokenFrame, Checkpoint, Completed, Failed, FitSpec, FromChild, Hello, Phase, Ready, RunSpec, Step, Stopped
from .link import Link
from .orders import ADAPTER, SNAPSHOT, Order
from .pen import Pen
from .place import Place, Slot
from .steps import StepLog, cut
from .transfer import Kept, Spoiled, Uploads, fetch, patiently, store

T = TypeVar("T")
log = logging.getLogger(__name__)

BACKLOG = 500
"""Facts that may wait for the log before the child has to."""
TENTHS = 10
MOST_ARTIFACTS = 100
"""Their claims have room in one fact."""

_running = prometheus_client.Gauge("trainyard_trainings_running", "Runs that have a process of this service at the moment")
_steps = prometheus_client.Counter("trainyard_training_steps_total", "Optimizer steps of this service's runs")


class Attempt:
    def __init__(self, *, place: Place, slot: Slot, pen: Pen, signals: Signals, folder: Path, order: Order) -> None:
        self._place = place
        self._slot = slot
        self._pen = pen
        self._signals = signals
        self._folder = folder
        self._order = order
        self._tuning = order.tuning
        self._number = pen.story.attempt + 1
        self._job_id = pen.story.job.job_id
        self._tenant = pen.tenant
        self._log_path = folder / "steps.jsonl"
        self._facts: asyncio.Queue[Event] = asyncio.Queue()
        self._uploads = Uploads(self._keep)
        self._kept = 0
        self._link: Link | None = None
        self._hello: Hello | None = None
        self._ready: Ready | None = None
        self._pace = Pace()
        self._told: tuple[float, int] = (0.0, 0)
        """When progress was told last, and the step."""
        self._phase: Phase | None = None
        """Of a merge: how far it is, until it is told."""

    async def outcome(self) -> Event:
        """How the job ends. Raises Lost, Interrupted, Over, Moved or Hopeless where it doesn't end here."""
        resume = await self._unless_told(self._resumed())
        await self._unless_told(self._start(resume))
        spec = await self._unless_told(self._furnished(resume))
        child = await self._forked(spec)
        _running.inc()
        try:
            return await self._supervised(child)
        finally:
            _running.dec()

    # Before the child

    async def _resumed(self) -> TrainingCheckpointed | None:
        """The newest checkpoint that is whole, in our folder."""
        for checkpoint in reversed(self._pen.story.checkpoints):
            try:
                await fetch(self._place.storage, checkpoint.state, self._folder / "resume")
                await fetch(self._place.storage, checkpoint.steps, self._log_path)
            except (Missing, Spoiled) as error:
                log.warning("a checkpoint can't be used: %s", error, extra={"job": self._job_id, "step": checkpoint.step})
            else:
                await asyncio.to_thread(cut, self._log_path, step=checkpoint.step)
                return checkpoint
        for left in (self._folder / "resume", self._log_path):
            left.unlink(missing_ok=True)
        return None

    async def _start(self, resume: TrainingCheckpointed | None) -> None:
        started = TrainingStarted(
            job_id=self._job_id,
            attempt=self._number,
            worker=self._slot.worker,
            device=self._slot.label,
            resumed_from=resume.step if resume else 0,
            merge=self._order.merge,
        )
        await self._pen.begin(started)
        self._uploads = Uploads(self._keep, stored=started.resumed_from)

    async def _furnished(self, resume: TrainingCheckpointed | None) -> RunSpec | FitSpec:
        order = self._order
        for name, claim in order.files.items():
            path = self._folder / name
            path.parent.mkdir(exist_ok=True)
            try:
                await fetch(self._place.storage, claim, path)
            except Missing:
                raise order.gone(name) from None
            except Spoiled:
                raise order.spoiled(name) from None
        common = Assignment(
            job_id=self._job_id,
            attempt=self._number,
            folder=str(self._folder),
            snapshot="" if order.merge else str(self._folder / SNAPSHOT),
            resume=str(self._folder / "resume") if resume else "",
            device=self._slot.device,
            threads=self._slot.threads,
            cache=str(self._place.models),
        )
        if order.fit:
            return FitSpec(**msgspec.structs.asdict(common), fit=order.fit, dataset_id=order.dataset_id, sha256=order.files[SNAPSHOT].sha256)
        assert order.tuning
        merge = str(self._folder / ADAPTER) if order.merge else ""
        return RunSpec(**msgspec.structs.asdict(common), tuning=order.tuning, merge=merge, texts=order.texts)

    async def _forked(self, spec: RunSpec | FitSpec) -> Child:
        offline = models.fitted_alone(spec.fit, spec.snapshot) if isinstance(spec, FitSpec) else models.at_hand(spec.tuning, self._place.models)
        environ = self._slot.environ | (models.OFFLINE if offline else {})
        try:
            return await self._unless_told(self._place.children.start(spec, environ=environ, offline=offline))
        except Gone as error:
            raise Lost("forkserver", f"no process could be started for it ({error})") from error

    # While it runs

    async def _supervised(self, child: Child) -> Event:
        self._steps = StepLog(self._log_path, attempt=self._number)
        link = self._link = await Link.open(child, self._hear)
        beside = [asyncio.create_task(self._beside(work)) for work in (self._write(link), self._uploads.run(), self._look_on())]
        try:
            await self._until_over(link)
            return await self._concluded(link)
        finally:
            child.signal(signal.SIGKILL)
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            self._steps.close()

    async def _until_over(self, link: Link) -> None:
        timing = self._place.timing
        with suppress(Interrupted):
            await unless(self._signals.any, link.over.wait())
        if not link.over.is_set() and not self._signals.hard.is_set():
            with suppress(Interrupted):
                await unless(self._signals.hard, link.stop(heed=timing.heed, term=timing.term))
        if not link.over.is_set() and self._signals.failure:
            link.child.signal(signal.SIGKILL)
        elif not link.over.is_set() and self._signals.stop.is_set():
            await link.stop(heed=timing.leave, term=0)
        await link.close(leaving=0.2 if self._signals.any.is_set() else timing.leave)

    async def _concluded(self, link: Link) -> Event:
        """The child has ended; what it left is stored, and its last word counts."""
        self._signals_of_failure()
        await self._send_steps()
        if self._signals.stop.is_set():
            await self._within(self._place.timing.answer / 3, self._settled())
            raise Interrupted
        if self._signals.cancel.is_set():
            return await self._cancelled(link.last_word)
        self._tell_progress(final=True)
        await self._unless_told(self._settled())
        match link.last_word:
            case Completed() as completed:
                try:
                    return await self._unless_told(self._completed(completed))
                except (BrokenFrame, FileNotFoundError) as error:
                    raise Lost("protocol", f"it promised files that are not there ({error})") from error
            case Failed(code=code, message=message, step=step):
                if self._tuning and code.startswith(("model", "hub")):
                    models.forget(self._tuning, self._place.models)
                steps = await self._within(self._place.timing.answer, self._stored_log())
                return TrainingFailed(
                    job_id=self._job_id,
                    code=telling.words(code),
                    message=telling.words(message),
                    attempt=self._number,
                    step=step or self._last_step,
                    steps=steps,
                )
            case Stopped():
                raise Lost("stopped", "its process stopped without being asked to")
            case None:
                raise _lost(link)

    async def _completed(self, completed: Completed) -> TrainingCompleted:
        if len(completed.artifacts) > MOST_ARTIFACTS:
            raise BrokenFrame(f"{len(completed.artifacts)} artifacts")
        if any(len(telling.clean(name).encode()) > telling.LONGEST_NAME for name in completed.artifacts):
            raise BrokenFrame(f"an artifact with a name of more than {telling.LONGEST_NAME} bytes")
        artifacts = {telling.clean(name): await patiently(partial(self._store, self._own(path))) for name, path in completed.artifacts.items()}
        metrics, _ = telling.told(completed.metrics)
        about = {"device": self._hello.device, "versions": self._hello.versions} if self._hello else {}
        return TrainingCompleted(
            job_id=self._job_id,
            attempt=self._number,
            step=completed.step,
            artifacts=artifacts,
            steps=await patiently(self._stored_log),
            metrics=metrics,
            summary=telling.summary(about, self._ready.facts if self._ready else {}, completed.summary, besides=[artifacts, metrics]),
            merge=self._order.merge,
        )

    async def _cancelled(self, word: Completed | Stopped | Failed | None) -> TrainingCancelled:
        """With all that can be stored in the time that an answer has."""
        await self._within(self._place.timing.answer, self._settled())
        steps = await self._within(self._place.timing.answer / 3, self._stored_log())
        last = self._pen.story.last
        return TrainingCancelled(
            job_id=self._job_id,
            attempt=self._number,
            step=max(word.step if word else 0, self._last_step),
            steps=steps or (last.steps if last else None),
        )

    # What the child says

    def _hear(self, frame: FromChild) -> None:
        match frame:
            case Step():
                self._steps.add(frame)
            case Checkpoint(step=step, path=path):
                self._kept += 1
                kept = self._own(path).rename(self._folder / f"kept-{self._kept}")
                self._uploads.offer(Kept(step=step, path=kept, log_size=self._steps.size()))
            case Hello():
                self._hello = frame
            case Ready():
                self._ready = frame
                if self._tuning:
                    models.loaded(self._tuning, self._place.models)
            case Phase() if self._order.merge:
                self._phase = frame
            case Phase(name="save"):
                self._tell_saving()
            case _:
                if fact := telling.fact(frame, job_id=self._job_id, attempt=self._number):
                    self._facts.put_nowait(fact)
                    if self._link and self._facts.qsize() > BACKLOG:
                        self._link.hold(True)

    def _own(self, path: str) -> Path:
        """A child can't have anything of ours stored as a file of its own."""
        try:
            whole = Path(path).resolve()
        except (ValueError, OSError, RuntimeError) as error:
            raise BrokenFrame("a path that is none") from error
        if not whole.is_relative_to(self._folder.resolve()):
            raise BrokenFrame("a file outside the run's folder")
        return whole

    # Beside it

    async def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001  # raised again by the run
            self._signals.fail(error)

    async def _write(self, link: Link) -> None:
        while True:
            event = await self._facts.get()
            await self._pen.append(event)
            self._facts.task_done()
            link.hold(self._facts.qsize() > BACKLOG)

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(self._place.timing.batch)
            await self._send_steps()
            self._tell_progress()

    async def _send_steps(self) -> None:
        _steps.inc(await self._steps.send(self._publish))

    async def _publish(self, batch: bytes) -> None:
        if self._place.nc.is_connected:
            with suppress(nats.errors.Error, OSError):
                await self._place.nc.publish(f"tel.{self._tenant}.{self._job_id}", batch)

    def _tell_progress(self, *, final: bool = False) -> None:
        self._tell_merging()
        last, now = self._steps.newest() if final else self._steps.last, asyncio.get_running_loop().time()
        at, told = self._told
        if last is None or last.step == told:
            return
        self._pace.note(last.step, at=now)
        total = self._ready.total_steps if self._ready else last.step
        due = now - at >= self._place.timing.progress and self._facts.empty()
        if final or due or last.step * TENTHS // max(total, 1) > told * TENTHS // max(total, 1):
            self._told = (now, last.step)
            self._facts.put_nowait(telling.progress(last, job_id=self._job_id, attempt=self._number, total=total, pace=self._pace.speed))

    def _tell_saving(self) -> None:
        """How long that takes nobody knows, and no step comes any more."""
        if last := self._steps.newest():
            total = self._ready.total_steps if self._ready else last.step
            self._told = (asyncio.get_running_loop().time(), last.step)
            self._facts.put_nowait(telling.progress(last, job_id=self._job_id, attempt=self._number, total=total, pace=UNKNOWN, doing=telling.SAVING))

    def _tell_merging(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._phase and now - self._told[0] >= self._place.timing.progress and self._facts.empty():
            self._told = (now, self._phase.done)
            self._facts.put_nowait(telling.merging(self._phase, job_id=self._job_id, attempt=self._number))
            self._phase = None

    async def _keep(self, kept: Kept) -> None:
        """Stored before it is told."""
        state = await self._store(kept.path)
        steps = await store(self._place.storage, self._key, self._log_path, size=kept.log_size)
        await self._pen.append(TrainingCheckpointed(job_id=self._job_id, attempt=self._number, step=kept.step, state=state, steps=steps))

    async def _settled(self) -> None:
        """Whatever the child said is in the log, and its last checkpoint too."""
        await self._facts.join()
        await self._uploads.drained()

    async def _stored_log(self) -> Claim:
        return await store(self._place.storage, self._key, self._log_path, size=self._steps.size())

    async def _store(self, path: Path) -> Claim:
        return await store(self._place.storage, self._key, path)

    @property
    def _key(self) -> str:
        return f"{self._tenant}/{self._job_id}/{self._number}"

    @property
    def _last_step(self) -> int:
        last = self._pen.story.last
        return self._steps.last.step if self._steps.last else last.step if last else 0

    def _signals_of_failure(self) -> None:
        if self._signals.failure:
            raise Interrupted

    async def _unless_told(self, work: Coroutine[Any, Any, T]) -> T:
        return await unless(self._signals.any, work)

    async def _within(self, patience: float, work: Coroutine[Any, Any, T]) -> T | None:
        """What came of it in time, or nothing."""
        try:
            async with asyncio.timeout(patience):
                return await work
        except (TimeoutError, StorageDown):
            return None


def _lost(link: Link) -> Lost:
    status = link.child.status
    if link.broken:
        return Lost("protocol", f"what its process said could not be taken in ({link.broken})")
    match status:
        case None:
            return Lost("forkserver", "its process ended together with the one that it was forked from")
        case -9:
            return Lost("killed", "its process was killed; if nobody did that, the machine's memory was too small")
        case _ if status < 0:
            return Lost("crashed", f"its process crashed ({signal.Signals(-status).name})")
        case _:
            return Lost("crashed", f"its process ended with exit status {status}")
