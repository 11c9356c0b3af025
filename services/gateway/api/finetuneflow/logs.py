"""A run as it goes on, as server-sent events: the loss of every step, evaluations, checkpoints, and how it ends.

An event's id says what a client has seen with it: facts up to a position of the log, and steps up to a number. So it resumes exactly, wherever it is cut off.
"""

import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
from litestar import Response, get
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec
from litestar.params import FromPath
from litestar.response import Stream

from libs.events import (
    JobCreated,
    PreparationCancelled,
    PreparationFailed,
    Recorded,
    TrainingCancelled,
    TrainingCheckpointed,
    TrainingCompleted,
    TrainingEvaluated,
    TrainingFailed,
    TrainingProgressed,
    TrainingStarted,
)
from libs.events.log import EventLog
from libs.storage import Storage
from services.gateway import playback
from services.gateway.api.finetuneflow.projects import known
from services.gateway.api.problems import Refused
from services.gateway.api.requests import AnyRequest, tenant
from services.gateway.audience import AccessEnded, Audience, Listener
from services.gateway.commands import Commands
from services.gateway.domain.errors import NotFound
from services.gateway.live import Live, TooSlow
from services.gateway.playback import Run
from services.gateway.steps import Step

_SEEN = 2.0
"""Seconds that the end is held back for the views: who hears of it may ask for an export at once."""
_ID = re.compile(r"(\d{1,18})(?:\.(\d{1,18}))?")


class Place(msgspec.Struct, frozen=True):
    """What a client has seen: facts up to this position, and steps up to this one."""

    seq: int = 0
    step: int = 0


@get(
    "/projects/{project_id:uuid}/train/logs/stream",
    media_type="text/event-stream",
    summary="The latest run as server-sent events, from its start or from Last-Event-ID",
    responses={204: ResponseSpec(None, description="The run has ended, and Last-Event-ID is its end")},
)
async def stream_logs(
    request: AnyRequest,
    project_id: FromPath[UUID],
    db: NamedDependency[asyncpg.Pool],
    commands: NamedDependency[Commands],
    log: NamedDependency[EventLog],
    live: NamedDependency[Live],
    storage: NamedDependency[Storage],
    audience: NamedDependency[Audience],
) -> Response[Any]:
    """Events log, progress, eval, checkpoint, and at the end complete or error. Who has seen the end gets a 204 instead of it all again."""
    id = await known(request, project_id, db, commands)
    run = await playback.latest(log, tenant(request), id)
    if run is None:
        raise NotFound(what="Training run", id=id)
    seen = _seen(request)
    if seen.seq < run.first:
        seen = Place()  # of an earlier run
    if 0 < run.end <= seen.seq:
        return Response(None, status_code=204)
    listener = audience.enter(request.scope, [run.tenant])
    frames = _frames(live, storage, commands, listener, run, seen, heartbeat=audience.heartbeat)
    return Stream(frames, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


handlers: list[Any] = [stream_logs]


def _seen(request: AnyRequest) -> Place:
    given = request.headers.get("last-event-id", "")
    if not given:
        return Place()
    if (found := _ID.fullmatch(given)) is None:
        raise Refused(422, "Last-Event-ID must be an id of this stream", field="Last-Event-ID")
    return Place(int(found[1]), int(found[2] or 0))


async def _frames(live: Live, storage: Storage, commands: Commands, listener: Listener, run: Run, seen: Place, *, heartbeat: float) -> AsyncIterator[bytes]:
    yield b"retry: 1000\n\n"
    words = _Words(seen)
    try:
        # The last step seen comes once more, unsaid: its loss may be the run's last.
        async with aclosing(listener.hear(playback.play(live, storage, run, after_step=max(0, seen.step - 1), heartbeat=heartbeat))) as played:
            async for news in played:
                if isinstance(news, Recorded) and isinstance(news.event, playback.ENDS):
                    await commands.visible(news.seq, patience=_SEEN)
                if said := words.of(news):
                    yield said
    except TooSlow:
        yield b": too slow, come back with your last id\n\n"
    except AccessEnded as ended:
        yield ended.event


class _Words:
    """Facts and steps in the document's words. What was seen before only counts, it is not said again."""

    def __init__(self, seen: Place) -> None:
        self._seen = seen
        self._now = seen
        self._id = seen
        self._reached = seen.step
        self._total = 0
        self._percent = -1
        self._loss: float | None = None
        self._since: datetime | None = None

    def of(self, news: Recorded | list[Step] | None) -> bytes:
        match news:
            case None:
                return b": keepalive\n\n"
            case Recorded():
                return self._of_fact(news)
            case _:
                return self._of_steps(news)

    def _of_steps(self, steps: list[Step]) -> bytes:
        said: list[bytes] = []
        for step in steps:
            self._loss = step.train_loss
            if step.step <= self._seen.step:
                continue
            # A step has one id, so the progress it makes is said before it, under the id before: cut off in between, it is better said twice than never.
            if progress := self._progress(step.step):
                said.append(self._frame(*progress))
            self._id = self._now = Place(self._now.seq, step.step)
            data = {"step": step.step, "train_loss": step.train_loss, "learning_rate": step.learning_rate, "epoch": step.epoch}
            said.append(self._frame("log", data))
        return b"".join(said)

    def _of_fact(self, recorded: Recorded) -> bytes:
        said = self._said(recorded)
        if recorded.seq <= self._seen.seq:
            return b""
        self._now = Place(recorded.seq, self._now.step)
        if said is None:
            return b""
        self._id = self._now
        return self._frame(*said)

    def _said(self, recorded: Recorded) -> tuple[str, dict[str, Any]] | None:
        match recorded.event:
            case JobCreated() | TrainingStarted(attempt=1):
                self._since = recorded.at
                return None
            case TrainingProgressed(step=step, total_steps=total):
                self._total = total
                return self._progress(step)
            case TrainingEvaluated(step=step, metrics=metrics):
                return "eval", {"step": step, "eval_loss": metrics.get("eval_loss"), "perplexity": metrics.get("perplexity")}
            case TrainingCheckpointed(step=step):
                return "checkpoint", {"step": step, "path": f"checkpoint-{step}"}
            case TrainingCompleted():
                return "complete", self._end("success", recorded.at)
            case TrainingCancelled() | PreparationCancelled():
                return "complete", self._end("cancelled", recorded.at)
            case TrainingFailed(message=message) | PreparationFailed(message=message):
                return "error", {"status": "failed", "error": message}
            case _:
                return None

    def _progress(self, step: int) -> tuple[str, dict[str, Any]] | None:
        """Only when it is another percent of the way; never backwards, also while a later attempt does some steps again."""
        self._reached = max(self._reached, step)
        percent = min(100, 100 * self._reached // self._total) if self._total else -1
        if percent <= self._percent:
            return None
        self._percent = percent
        return "progress", {"progress_pct": percent, "message": f"Step {self._reached}/{self._total}"}

    def _end(self, status: str, at: datetime) -> dict[str, Any]:
        seconds = (at - self._since).total_seconds() if self._since else 0
        return {"status": status, "duration_seconds": max(0, round(seconds)), "final_train_loss": self._loss}

    def _frame(self, name: str, data: dict[str, Any]) -> bytes:
        return b"id: %d.%d\nevent: %s\ndata: %s\n\n" % (self._id.seq, self._id.step, name.encode(), msgspec.json.encode(data))
