"""The log, for everyone whose workspaces it is about: page by page, or live as server-sent events."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

import msgspec
from litestar import Response, get
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec
from litestar.params import QueryParameter
from litestar.response import Stream

from libs.events.log import EventLog
from libs.events.subjects import is_private
from services.gateway.api.problems import Refused
from services.gateway.api.requests import AnyRequest, InWorkspace, Limit, tenants
from services.gateway.audience import AccessEnded, Audience, Listener
from services.gateway.live import Live, TooSlow, past

Position = Annotated[int, QueryParameter(ge=0, le=2**62)]


class EventOut(msgspec.Struct, kw_only=True):
    seq: int
    event: Any


class EventPage(msgspec.Struct, kw_only=True):
    """`next` is the `after` of the page that follows, also when that is still empty."""

    events: list[EventOut]
    next: int


@get(
    "/v2/events",
    summary="Facts of your workspaces, oldest first",
    operation_class=InWorkspace,
    responses={200: ResponseSpec(EventPage, generate_examples=False, description="A page, or server-sent events without an end")},
)
async def read_events(
    request: AnyRequest,
    log: NamedDependency[EventLog],
    live: NamedDependency[Live],
    audience: NamedDependency[Audience],
    after: Position = 0,
    about: Annotated[str, QueryParameter(name="about", pattern=r"^[A-Za-z0-9_-]{0,64}$")] = "",
    limit: Limit = 100,
) -> Response[Any]:
    """With `Accept: text/event-stream` it goes on for ever, and Last-Event-ID resumes it exactly. `about` is the id of a project, job, …: only what happened to it.

    A stream says `access_ended`, with the reason, and ends when its token has or you are out of one of its workspaces: come back with a good one and the last id.
    """
    here = tenants(request)
    if "text/event-stream" in request.headers.get("accept", ""):
        after = _resumed(request, after)
        listener = audience.enter(request.scope, here)
        frames = _frames(live, listener, here, after=after, about=about, heartbeat=audience.heartbeat)
        return Stream(frames, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
    events: list[EventOut] = []
    async for raw in past(log, here, after=after, about=about, page=limit):
        after = raw.seq
        if is_private(raw.subject):
            continue
        events.append(EventOut(seq=raw.seq, event=msgspec.Raw(raw.data)))
        if len(events) == limit:
            break
    return Response(EventPage(events=events, next=after))


handlers: list[Any] = [read_events]


async def _frames(live: Live, listener: Listener, tenants: list[str], *, after: int, about: str, heartbeat: float) -> AsyncIterator[bytes]:
    yield b"retry: 1000\n\n"
    try:
        async with aclosing(listener.hear(live.watch(*tenants, after=after, about=about, heartbeat=heartbeat))) as heard:
            async for raw in heard:
                if raw is None:
                    yield b": keepalive\n\n"
                elif not is_private(raw.subject):
                    yield b"id: %d\nevent: %s\ndata: %s\n\n" % (raw.seq, ".".join(raw.subject.split(".")[2:4]).encode(), raw.data)
    except TooSlow:
        yield b": too slow, come back with your last id\n\n"
    except AccessEnded as ended:
        yield ended.event


def _resumed(request: AnyRequest, after: int) -> int:
    given = request.headers.get("last-event-id", "")
    if not given:
        return after
    seq = given.partition(".")[0]
    if not seq.isdecimal() or len(seq) > 18:
        raise Refused(422, "Last-Event-ID must be an id of this stream", field="Last-Event-ID")
    return int(seq)
