"""Progress over WebSockets: of one job until it ends, or of every job in one's workspaces.

Each frame is the whole state of a job, flat and once more under `data`, and its `position` says what is in it: facts up to a position of the log, and
steps up to a number. Who comes back with it as `?after=` gets what came since.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID

import asyncpg
import msgspec

from libs.events import Recorded, TrainingProgressed, story
from libs.events.log import EventLog, RawFact, Unavailable
from libs.events.subjects import parse
from libs.storage import Storage
from services.gateway import playback
from services.gateway.api.autotrainx.words import MESSAGES, STATUS, percentage, stamp
from services.gateway.api.problems import Refused
from services.gateway.audience import Audience, Listener
from services.gateway.commands import Commands
from services.gateway.domain import jobs
from services.gateway.domain.errors import NotFound
from services.gateway.domain.jobs import TRAIN, Job
from services.gateway.live import Live, TooSlow
from services.gateway.places import KINDS, Places
from services.gateway.steps import Step
from services.gateway.views import jobs as job_views

PATHS = ("/ws/progress", "/ws/progress/{job_id}")

_PATIENCE = 10.0
"""Seconds that a client may leave a frame untaken."""
_SEEN = 2.0
"""Seconds that the end is held back for the views: who hears of it may ask for the job at once."""
_AGAIN = 1.0
"""Seconds until a log that didn't answer is asked again."""
_LOOKING = 16
"""Stories of jobs that one socket reads at a time."""
_CATEGORIES = frozenset({"job", "preparation", "training", "export"})
_POSITION = re.compile(r"(\d{1,18})(?:\.(\d{1,18}))?")

ENDED, GOING_AWAY, ACCESS_ENDED, TOO_SLOW = 1000, 1001, 1008, 1013

Say = Callable[[str], Awaitable[None]]


class Place(msgspec.Struct, frozen=True):
    """What a client has seen: facts up to this position, and steps up to this one."""

    seq: int
    step: int = 0


class Sockets:
    """ASGI for WebSockets. What goes wrong before a socket is accepted is raised: the edge answers it."""

    def __init__(self, *, db: asyncpg.Pool, log: EventLog, live: Live, places: Places, audience: Audience, storage: Storage, commands: Commands) -> None:
        self._db = db
        self._log = log
        self._live = live
        self._places = places
        self._audience = audience
        self._storage = storage
        self._commands = commands

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        principal = scope["principal"]
        after = _after(scope["query_string"])

        async def say(frame: str) -> None:
            async with asyncio.timeout(_PATIENCE):
                await send({"type": "websocket.send", "text": frame})

        match scope["path"].removeprefix("/ws/progress").strip("/").split("/"):
            case [""]:
                scope["path_template"] = PATHS[0]
                here = principal.everywhere
                active, position = await job_views.active(self._db, here)
                work = partial(self._all, here, active, position, after, say)
            case [id]:
                scope["path_template"] = PATHS[1]
                job_id = _job_id(id)
                tenant = await self._places.of(KINDS["job_id"], job_id, principal)
                here = [tenant]
                if not (facts := await self._log.read(story(tenant, job_id))):
                    raise NotFound(what="Job", id=job_id)
                work = partial(self._one, tenant, job_id, facts, after, say)
            case _:
                raise Refused(404, "No such WebSocket")
        listener = self._audience.enter(scope, here)
        with self._live.guest():
            await _serve(work, listener, receive, send)

    async def _one(self, tenant: str, job_id: str, facts: list[Recorded], after: Place | None, say: Say) -> int:
        seen = Seen(job_id)
        async with aclosing(self._frames(tenant, seen, facts, after)) as frames:
            async for frame in frames:
                await say(frame)
        return ENDED if seen.ended else GOING_AWAY

    async def _all(self, tenants: list[str], active: list[tuple[str, str]], position: int, after: Place | None, say: Say) -> int:
        """The views know which jobs are active up to a position; the log knows what happened to jobs behind it."""
        known = {job_id for _, job_id in active}
        looking = asyncio.Semaphore(_LOOKING)

        async def follow(tenant: str, job_id: str) -> None:
            async with looking:
                facts = await self._story(tenant, job_id)
            if facts:
                await self._one(tenant, job_id, facts, after, say)

        async with asyncio.TaskGroup() as followers:
            for tenant, job_id in active:
                followers.create_task(follow(tenant, job_id))
            start = min(after.seq, position) if after else position
            async with aclosing(self._live.watch(*tenants, after=start)) as watched:
                async for raw in watched:
                    if raw and (job_id := _about(raw)) and job_id not in known:
                        known.add(job_id)
                        followers.create_task(follow(parse(raw.subject).tenant, job_id))
        return GOING_AWAY

    async def _story(self, tenant: str, job_id: str) -> list[Recorded]:
        while not self._live.closing:
            try:
                return await self._log.read(story(tenant, job_id))
            except Unavailable:
                await asyncio.sleep(_AGAIN)
        return []

    async def _frames(self, tenant: str, seen: "Seen", facts: list[Recorded], after: Place | None) -> AsyncGenerator[str, None]:
        """First what is, or what came after the place that the client has seen; then what comes, until the job has ended or the gateway does."""
        run = playback.told(tenant, seen.job_id, facts)
        if run is None:
            return
        start = min(after.seq, run.last) if after else run.last
        for recorded in facts:
            if recorded.seq <= start:
                seen.hear(recorded)
        if start == run.last:
            yield seen.frame()
        if seen.ended:
            return
        step = max(seen.step, after.step if after and after.seq == start else 0)
        async with aclosing(playback.play(self._live, self._storage, run, after=start, after_step=step, in_step=False)) as played:
            async for news in played:
                if news is None or not seen.hear(news):
                    continue
                if seen.ended:
                    await self._commands.visible(seen.seq, patience=_SEEN)
                yield seen.frame()
                if seen.ended:
                    return


class Seen:
    """A job as its facts and steps tell it."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.seq = 0
        self._job: Job | None = None
        self._row: dict[str, Any] = {}
        self._latest = Step(step=0)
        self._total = 0
        self._at = datetime.fromtimestamp(0, UTC)

    @property
    def ended(self) -> bool:
        return self._job is not None and self._job.status.ended

    @property
    def step(self) -> int:
        return self._latest.step

    def hear(self, news: Recorded | list[Step]) -> bool:
        """Whether the next frame says something new."""
        before = self._fields() if self._job else None
        if isinstance(news, Recorded):
            self._hear_fact(news)
        else:
            self._reach(news[-1])
            self._at = datetime.now(UTC)
        return self._job is not None and self._fields() != before

    def frame(self) -> str:
        data = self._fields() | {"timestamp": stamp(self._at)}
        return msgspec.json.encode({"type": "progress_update", "position": f"{self.seq}.{self.step}", **data, "data": data}).decode()

    def _hear_fact(self, recorded: Recorded) -> None:
        if self.ended:
            return
        self.seq, self._at = recorded.seq, recorded.at
        self._job = jobs.evolve(self._job, recorded)
        for operation in job_views.project(recorded):
            self._row |= job_views.columns(operation)
        match recorded.event:
            case TrainingProgressed() as event if self._job and self._job.kind == TRAIN:  # not a merge
                self._total = event.total_steps
                metrics = event.metrics
                self._reach(Step(step=event.step, train_loss=metrics.get("train_loss"), learning_rate=metrics.get("learning_rate"), epoch=event.epoch))
            case _:
                return

    def _reach(self, step: Step) -> None:
        """Never backwards: what a later attempt does again comes out the same."""
        if step.step > self._latest.step:
            self._latest = step

    def _fields(self) -> dict[str, Any]:
        assert self._job
        status, row, latest = self._job.status, self._row, self._latest
        reached = 100 * latest.step // self._total if self._total else row["progress"]
        return {
            "job_id": self.job_id,
            "status": STATUS[status],
            "progress_percentage": percentage(status, reached),
            "current_step": latest.step,
            "completed_steps": latest.step,
            "total_steps": self._total,
            "message": row["error"] or row["message"] or MESSAGES[status],
            "timestamp": None,
            "epoch": latest.epoch,
            "loss": latest.train_loss,
            "learning_rate": latest.learning_rate,
        }


async def _serve(work: Callable[[], Awaitable[int]], listener: Listener, receive: Any, send: Any) -> None:
    """Until there is no more to be said, or nobody to say it to, or who listens may do so no more."""
    await send({"type": "websocket.accept"})
    telling, leaving, access = asyncio.create_task(_told(work())), asyncio.create_task(_left(receive)), asyncio.create_task(listener.until_ended())
    try:
        await asyncio.wait({telling, leaving, access}, return_when=asyncio.FIRST_COMPLETED)
        if access.done():
            await _close(send, ACCESS_ENDED, access.result())
        elif telling.done() and (code := telling.result()):
            await _close(send, code)
    finally:
        for task in (telling, leaving, access):
            task.cancel()
        await asyncio.gather(telling, leaving, access, return_exceptions=True)


async def _close(send: Any, code: int, reason: str = "") -> None:
    with suppress(OSError):  # also a TimeoutError: who takes nothing isn't told either
        async with asyncio.timeout(1):
            await send({"type": "websocket.close", "code": code, "reason": reason})


async def _told(work: Awaitable[int]) -> int:
    """The code to close with; 0 when the client went away."""
    code = 0
    try:
        code = await work
    except* (TooSlow, TimeoutError):
        code = TOO_SLOW
    except* OSError:  # gone while it was being told
        code = 0
    return code


async def _left(receive: Any) -> None:
    """What a client says is not listened to, but that it leaves."""
    while (await receive())["type"] != "websocket.disconnect":
        continue


def _about(raw: RawFact) -> str:
    where = parse(raw.subject)
    return where.key[0] if where.category in _CATEGORIES and len(where.key) == 1 else ""


def _job_id(given: str) -> str:
    try:
        return str(UUID(given))
    except ValueError:
        raise NotFound(what="Job", id=given[:100]) from None


def _after(query: bytes) -> Place | None:
    given = parse_qs(query.decode()).get("after", [""])[0]
    if not given:
        return None
    if (found := _POSITION.fullmatch(given)) is None:
        raise Refused(422, "after must be the position of a frame", field="after")
    return Place(int(found[1]), int(found[2] or 0))
