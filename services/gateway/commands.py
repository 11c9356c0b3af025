"""Every write of the API: read the state, let the domain decide, append under the guard, answer from the facts."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Generic, TypeVar

import msgspec
from prometheus_client import Counter

from libs.events import Address, Event, Origin, Recorded, address
from libs.events.log import Conflict, EventLog, Write
from services.gateway.domain.errors import Conflicted, DomainError, LogFull, StaleVersion
from services.gateway.views.progress import Progress

BUDGET = 2.0
"""Seconds in which a command must win its guard."""
VISIBLE = 0.25
"""Seconds that an answer waits, so that the caller's next read sees what was written."""
NEARLY_FULL = 0.9
_CLOSED_TO_COMMANDS = "trainyard_refused_commands_total"

State = TypeVar("State")
_conflicts = Counter("trainyard_conflicts_total", "Appends that met a moved guard and decided again")
_refused = Counter(_CLOSED_TO_COMMANDS, "Commands that a rule refused", ["code"])


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """An aggregate of another room, by its state's type; it may be in another workspace than the command."""

    kind: type
    tenant: str
    key: tuple[str, ...]


class Room(msgspec.Struct, Generic[State], frozen=True, kw_only=True):
    """One kind of aggregate: who it is, how it is loaded, what may be done to it."""

    category: str
    state: type[State]
    commands: tuple[type, ...]
    key: Callable[[Any], tuple[str, ...]]
    load: Callable[..., Awaitable[tuple[State | None, int]]]
    evolve: Callable[[State | None, Recorded], State | None]
    decide: Callable[..., list[Event]]
    """Given the state and the command, and the states that stand `beside`."""
    beside: Callable[[Any], "tuple[Beside, ...]"] = lambda _: ()
    """Other aggregates whose rules a command must keep too, and whose facts its batch carries."""
    founders: tuple[type, ...] = ()
    """Those of the commands that expect nothing to be there: the guard says so sooner than the view could."""
    endings: tuple[type, ...] = ()
    """Those that end or remove something: a log that is nearly full takes them still."""
    pattern: Callable[[Address], str] = lambda where: where.guard
    """Which facts its state is made of, when it is more than what lies under its guard."""


class Outcome(msgspec.Struct, Generic[State], frozen=True, kw_only=True):
    """What a command came to, whether or not the views show it already."""

    state: State
    version: int
    events: list[Recorded]
    visible: bool

    @property
    def seq(self) -> int:
        return max((recorded.seq for recorded in self.events), default=self.version)


class Commands:
    def __init__(self, log: EventLog, progress: Progress, rooms: Sequence[Room[Any]], *, fill: Callable[[], float]) -> None:
        self._log = log
        self._progress = progress
        self._rooms = {command: room for room in rooms for command in room.commands}
        self._states = {room.state: room for room in rooms}
        self._fill = fill
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    async def run(self, command: Any, *, origin: Origin, if_match: int | None = None) -> Outcome[Any]:
        """Raises the domain's refusal. What returns is in the log."""
        room = self._rooms[type(command)]
        if self._fill() >= NEARLY_FULL and not isinstance(command, room.endings):
            raise LogFull
        where = Address(tenant=origin.tenant, category=room.category, key=room.key(command))
        beside = [self._found(other) for other in room.beside(command)]
        try:
            async with AsyncExitStack() as locks:
                for guard in sorted({where.guard, *(other.guard for _, other in beside)}):
                    await locks.enter_async_context(self._alone(guard))
                state, version, events = await self._settle(room, where, beside, command, origin, if_match)
        except DomainError as refusal:
            _refused.labels(refusal.code).inc()
            raise
        if not events:
            state, version = await self._as_it_was(room, where, command, state, version)
            return Outcome(state=state, version=version, events=[], visible=True)
        visible = await self._progress.wait(events[-1].seq, patience=VISIBLE)
        return Outcome(state=state, version=version, events=events, visible=visible)

    async def visible(self, seq: int, *, patience: float = VISIBLE) -> bool:
        """Whether the views show the log up to here: they are given a moment."""
        return await self._progress.wait(seq, patience=patience)

    async def newest(self, kind: type[State], *key: str, tenant: str, known: tuple[State | None, int] = (None, 0)) -> tuple[State | None, int]:
        """What the log says of an aggregate, beyond what is known: for an id that the view lacks, or may lack."""
        room: Room[Any] = self._states[kind]
        where = Address(tenant=tenant, category=room.category, key=key)
        state, version = known
        if state is not None:
            return state, version
        return fold(room, where, state, version, await self._log.read(room.pattern(where), after=version))

    async def _settle(
        self, room: Room[Any], where: Address, beside: Sequence[tuple[Room[Any], Address]], command: Any, origin: Origin, if_match: int | None
    ) -> tuple[Any, int, list[Recorded]]:
        """Decides on the view's state first. What changes nothing, be it a refusal or done already, counts only on the newest state, which is the log's."""
        deadline = time.monotonic() + BUDGET
        state, version = (None, 0) if isinstance(command, room.founders) else await room.load(where.tenant, *where.key)
        while True:
            obstacle: DomainError | Conflict | None = None
            try:
                if if_match is not None and if_match != version:
                    raise StaleVersion(version=version, yours=if_match)
                known = {where.guard: version}
                others: list[Any] = []
                for its_room, its_place in beside:
                    other, known[its_place.guard] = await self._latest(its_room, its_place)
                    others.append(other)
                if decided := room.decide(state, command, *others):
                    events = await self._append(decided, known, origin)
                    return (*fold(room, where, state, version, events), events)
            except (DomainError, Conflict) as refused:
                obstacle = refused
            newer_state, newer_version = fold(room, where, state, version, await self._log.read(room.pattern(where), after=version))
            if newer_state == state and not isinstance(obstacle, Conflict):
                if obstacle:
                    raise obstacle
                return state, newer_version, []
            if time.monotonic() > deadline:
                raise Conflicted from obstacle
            if newer_version == version and newer_state == state:
                # Another aggregate of the batch has moved: its position comes with a fresh look at the view.
                await asyncio.sleep(0.01 + 0.02 * random.random())  # jitter, no secret
                newer_state, newer_version = await room.load(where.tenant, *where.key)
            _conflicts.inc()
            state, version = newer_state, newer_version

    def _found(self, other: Beside) -> tuple[Room[Any], Address]:
        room: Room[Any] = self._states[other.kind]
        return room, Address(tenant=other.tenant, category=room.category, key=other.key)

    async def _latest(self, room: Room[Any], where: Address) -> tuple[Any, int]:
        """As the log has it, beyond the view: what is decided on it holds for the position that guards it."""
        state, version = await room.load(where.tenant, *where.key)
        return fold(room, where, state, version, await self._log.read(room.pattern(where), after=version))

    async def _append(self, events: Sequence[Event], known: dict[str, int], origin: Origin) -> list[Recorded]:
        """A reaction writes the same facts under the same ids, however often it is done."""
        groups: dict[str, tuple[list[Event], int]] = {}
        for event in events:
            target = address(origin.tenant, event)
            if target.guard not in groups:
                after = known.get(target.guard)
                groups[target.guard] = ([], await self._position(target, event) if after is None else after)
            groups[target.guard][0].append(event)
        nth = 0 if origin.causation else None
        return await self._log.append([Write(events=group, after=after, nth=nth) for group, after in groups.values()], origin=origin, budget=BUDGET)

    async def _position(self, other: Address, event: Event) -> int:
        """What a fact of another aggregate in the batch must follow."""
        if event.FOUNDS:
            return 0
        story = await self._log.read(other)
        return story[-1].seq if story else 0

    async def _as_it_was(self, room: Room[Any], where: Address, command: Any, state: Any, version: int) -> tuple[Any, int]:
        """A repeated creation is answered as the first one was, whatever happened since."""
        if not isinstance(command, room.founders):
            return state, version
        story = await self._log.read(room.pattern(where))
        first = [recorded for recorded in story if recorded.envelope.correlationid == story[0].envelope.correlationid]
        return fold(room, where, None, 0, first)

    @asynccontextmanager
    async def _alone(self, guard: str) -> AsyncIterator[None]:
        """Without it 5 of 50 honest writers of one aggregate succeed, with it 50."""
        lock, users = self._locks.get(guard, (asyncio.Lock(), 0))
        self._locks[guard] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[guard]
            if users == 1:
                del self._locks[guard]
            else:
                self._locks[guard] = (lock, users - 1)


def fold(room: Room[Any], where: Address, state: Any, version: int, story: Sequence[Recorded]) -> tuple[Any, int]:
    """The state after these facts; the version counts only those under the aggregate's own guard."""
    for recorded in story:
        state = room.evolve(state, recorded)
        if recorded.event is not None and address(recorded.tenant, recorded.event) == where:
            version = recorded.seq
    return state, version
