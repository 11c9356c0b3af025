"""Workspaces: who may do what in them, and that access begins and ends with the membership."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from typing import Any, cast
from uuid import uuid4

import httpx
import pytest
from litestar import Request
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from infra.embedded import Process, Servers
from libs.events import (
    Address,
    Event,
    JobCreated,
    Origin,
    ProjectCreated,
    ProjectFilesAdded,
    ProjectRunStarted,
    WebhookCreated,
    WorkspaceCreated,
    WorkspaceMemberAdded,
    WorkspaceMemberRemoved,
    WorkspaceMemberRoleChanged,
)
from libs.events.log import EventLog, Write
from services.gateway.api.requests import origin
from services.gateway.audience import AccessEnded, Audience
from services.gateway.domain.errors import AlreadyMember, NotFound, OwnerStays, RoleMissing, TooManyMembers, TooManyMemberships
from services.gateway.domain.user import Principal
from services.gateway.domain.workspace import (
    CHANGE,
    MANAGE,
    MEMBERS,
    MEMBERSHIPS,
    AddMember,
    ChangeMember,
    RemoveMember,
    Workspace,
    assigned,
    decide,
    evolve,
    may,
)
from services.gateway.places import KINDS, Places
from services.gateway.views import workspaces
from services.gateway.views.database import pool
from tests.kit.eventually import eventually
from tests.kit.gateway import client, running
from tests.kit.given import given
from tests.kit.people import JWT, PASSWORD, Person, bearer, forged, registered

CREATED = WorkspaceCreated(workspace_id="w", owner_id="o")


def added(user: str, role: str = "editor") -> WorkspaceMemberAdded:
    return WorkspaceMemberAdded(workspace_id="w", user_id=user, role=role)


def add(user: str, *, role: str = "editor", by: str = "o", memberships: int = 0) -> AddMember:
    return AddMember(workspace_id="w", by=by, user_id=user, role=role, memberships=memberships)


def remove(user: str, *, by: str = "o") -> RemoveMember:
    return RemoveMember(workspace_id="w", by=by, user_id=user)


def workspace(*facts: Event) -> Workspace:
    return given(evolve, CREATED, *facts)


# ---- the rules


@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        ("owner", {"read", "annotate", "change", "manage"}),
        ("editor", {"read", "annotate", "change"}),
        ("annotator", {"read", "annotate"}),
        ("viewer", {"read"}),
        (None, set()),
    ],
)
def test_what_a_role_allows(role: str | None, allowed: set[str]):
    assert {power for power in ("read", "annotate", "change", "manage") if may(role, power)} == allowed


def test_a_member_is_added_once_and_another_role_takes_another_request():
    assert decide(workspace(), add("u")) == [added("u")]
    assert decide(workspace(added("u")), add("u")) == []
    with pytest.raises(AlreadyMember):
        decide(workspace(added("u")), add("u", role="viewer"))
    with pytest.raises(AlreadyMember):
        decide(workspace(), add("o"))


def test_a_role_is_changed_and_stays_since_when_it_was():
    changed = WorkspaceMemberRoleChanged(workspace_id="w", user_id="u", role="viewer")
    order = ChangeMember(workspace_id="w", by="o", user_id="u", role="viewer")

    assert decide(workspace(added("u")), order) == [changed]
    assert decide(workspace(added("u"), changed), order) == []
    assert workspace(added("u"), changed).members["u"].since == workspace(added("u")).members["u"].since


@pytest.mark.parametrize(
    "order", [add("v", by="u"), ChangeMember(workspace_id="w", by="u", user_id="u", role="editor"), remove("v", by="u"), remove("o", by="u")]
)
def test_only_the_owner_manages_members(order: Any):
    with pytest.raises(RoleMissing):
        decide(workspace(added("u"), added("v")), order)


@pytest.mark.parametrize("order", [add("v", by="stranger"), remove("stranger", by="stranger"), remove("u", by="u")])
def test_who_is_not_in_it_is_told_that_there_is_none(order: Any):
    with pytest.raises(NotFound):
        decide(workspace(added("u"), WorkspaceMemberRemoved(workspace_id="w", user_id="u")), order)


def test_the_owner_removes_and_a_member_leaves():
    gone = WorkspaceMemberRemoved(workspace_id="w", user_id="u")

    assert decide(workspace(added("u")), remove("u")) == [gone]
    assert decide(workspace(added("u", role="viewer")), remove("u", by="u")) == [gone]
    assert workspace(added("u"), gone).role("u") is None
    with pytest.raises(NotFound):
        decide(workspace(added("u"), gone), remove("u"))


def test_the_owner_always_is_in_it():
    for order in (remove("o"), ChangeMember(workspace_id="w", by="o", user_id="o", role="viewer")):
        with pytest.raises(OwnerStays):
            decide(workspace(), order)


def test_members_and_memberships_have_an_end():
    full = workspace(*(added(f"u{n}") for n in range(MEMBERS)))

    with pytest.raises(TooManyMembers):
        decide(full, add("u"))
    with pytest.raises(TooManyMembers):
        assigned(full, "u")
    with pytest.raises(TooManyMemberships):
        decide(workspace(), add("u", memberships=MEMBERSHIPS))
    assert decide(workspace(), add("u", memberships=MEMBERSHIPS - 1)) == [added("u")]


def test_who_is_given_work_becomes_an_annotator_unless_he_is_in_it_already():
    assert assigned(workspace(), "u") == [added("u", role="annotator")]
    for there in (assigned(workspace(added("u", role="editor")), "u"), assigned(workspace(), "o")):
        assert there == []


# ---- in which workspace a thing is


class Blind:
    """Views that lack everything, and count how often they are asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def fetchval(self, *_: Any) -> None:
        self.asked += 1


def principal(**workspaces: str) -> Principal:
    return Principal(id="u", tenant="u", role="user", workspaces=workspaces)


async def test_what_the_views_lack_is_found_in_the_log_and_asked_for_once(log: EventLog, tenant: str):
    project, hook, origin = str(uuid4()), str(uuid4()), Origin(tenant=tenant)
    await log.append([Write(events=[ProjectCreated(project_id=project, name="")], after=0)], origin=origin)
    await log.append([Write(events=[WebhookCreated(webhook_id=hook, url="", secret="")], after=0)], origin=origin)
    views = Blind()
    places = Places(cast("Any", views), log)

    found = [
        await places.of(KINDS[kind], id, principal(**{tenant: "viewer"})) for kind, id in (("project_id", project), ("webhook_id", hook)) for _ in range(3)
    ]

    assert found == [tenant] * 6
    assert views.asked == 2
    assert await places.of(KINDS["project_id"], project, principal(other="viewer")) == "u", "elsewhere: it is looked for at home, where it is not"
    assert await places.of(KINDS["project_id"], str(uuid4()), principal()) == "u"
    assert views.asked == 2, "who is in no other workspace asks nobody"


def test_a_thing_that_was_found_in_the_path_does_not_make_a_lesser_role_enough():
    asked = {"type": "http", "method": "POST", "path": "/", "headers": [], "principal": principal(w="editor"), "workspace": "w"}
    request = Request[Any, Any, Any](cast("Any", asked))

    assert origin(request, needs=CHANGE).tenant == "w"
    with pytest.raises(RoleMissing):
        origin(request, needs=MANAGE)


# ---- over HTTP


class Room:
    """Ann's workspace with a project in it."""

    def __init__(self, door: httpx.AsyncClient, ann: Person) -> None:
        self.door = door
        self.ann = ann
        self.path = f"/v2/workspaces/{ann.id}"
        self.project = ""

    async def let_in(self, person: Person, role: str = "editor") -> httpx.Response:
        body = {"username": person.username, "role": role}
        answer = await self.door.post(f"{self.path}/members", json=body, headers=self.ann.headers)
        assert answer.status_code == 201, answer.text
        return answer

    async def put_out(self, person: Person) -> None:
        answer = await self.door.delete(f"{self.path}/members/{person.id}", headers=self.ann.headers)
        assert answer.status_code == 204, answer.text


@pytest.fixture(scope="module")
def strict_gateway(servers: Servers) -> Iterator[Process]:
    """A second one, which looks often at whoever listens and allows little of everything."""
    few = {"TRAINYARD_ACCESS_CHECK_SECONDS": "0.3", "TRAINYARD_STREAMS_PER_USER": "3", "TRAINYARD_WEBHOOKS_PER_WORKSPACE": "2"}
    with running(servers, label="gateway-strict", environ={**JWT, **few, "TRAINYARD_LOGIN_ATTEMPTS": "2"}) as process:
        yield process


@pytest.fixture(scope="module")
async def strict(strict_gateway: Process) -> AsyncIterator[httpx.AsyncClient]:
    async with client(strict_gateway) as api:
        yield api


@pytest.fixture
async def room(door: httpx.AsyncClient) -> Room:
    room = Room(door, await registered(door))
    made = await door.post("/projects", json={"name": "Ann's"}, headers=room.ann.headers)
    room.project = made.json()["id"]
    return room


async def test_a_member_meets_the_project_in_his_lists_and_by_its_id(door: httpx.AsyncClient, room: Room):
    ben = await registered(door)
    own = (await door.post("/projects", json={"name": "Ben's"}, headers=ben.headers)).json()["id"]

    let_in = await room.let_in(ben)
    listed = (await door.get("/projects", headers=ben.headers)).json()
    narrowed = (await door.get("/projects", headers={**ben.headers, "X-Workspace": room.ann.id})).json()
    renamed = await door.patch(f"/projects/{room.project}", json={"name": "ours"}, headers=ben.headers)
    drafts = (await door.get("/projects?status=draft&limit=1&offset=1", headers=ben.headers)).json()

    assert let_in.json().items() >= {"user_id": ben.id, "username": ben.username, "role": "editor"}.items()
    assert ([item["id"] for item in listed["items"]], listed["total"]) == ([own, room.project], 2)
    assert ([item["id"] for item in narrowed["items"]], narrowed["total"]) == ([room.project], 1)
    assert (renamed.status_code, renamed.json()["name"]) == (200, "ours")
    assert ([item["id"] for item in drafts["items"]], drafts["total"]) == ([room.project], 2)
    assert (await door.get(f"/projects/{own}", headers=room.ann.headers)).status_code == 404, "a membership is no exchange"


async def test_something_new_is_made_where_the_header_says_and_else_at_home(door: httpx.AsyncClient, room: Room):
    ben, cal, stranger = await registered(door), await registered(door), await registered(door)
    await room.let_in(ben)
    await room.let_in(cal, role="viewer")
    there = {"X-Workspace": room.ann.id, "Idempotency-Key": "once"}

    async def made(person: Person, **headers: str) -> httpx.Response:
        return await door.post("/projects", json={"name": "new"}, headers={**person.headers, **headers})

    first, again, home = await made(ben, **there), await made(ben, **there), await made(ben, **{"Idempotency-Key": "once"})
    anns = {item["id"] for item in (await door.get("/projects", headers=room.ann.headers)).json()["items"]}

    assert first.json()["id"] == again.json()["id"] != home.json()["id"], "the same key elsewhere is another thing"
    assert anns == {room.project, first.json()["id"]}
    assert (await made(cal, **there)).status_code == 403
    assert (await made(stranger, **there)).status_code == 404
    assert (await made(ben, **{"X-Workspace": "no such thing"})).status_code == 404
    assert (await made(room.ann, **{"X-Workspace": room.ann.id.upper()})).status_code == 201
    for method in ("GET", "POST"):
        hook = await door.request(method, "/webhooks", json={"url": "https://receiver.invalid/"}, headers={**ben.headers, "X-Workspace": room.ann.id})
        assert hook.status_code == 403, "a webhook would outlive the membership"


async def test_who_acted_is_in_the_facts_and_they_and_the_files_are_the_workspaces(door: httpx.AsyncClient, room: Room, log: EventLog):
    ben = await registered(door)
    await room.let_in(ben)

    await door.patch(f"/projects/{room.project}", json={"name": "by Ben"}, headers=ben.headers)
    rows = {"files": ("rows.jsonl", b'{"text": "a row"}\n')}
    uploaded = await door.post(f"/projects/{room.project}/files/upload", files=rows, data={"kind": "dataset_upload"}, headers=ben.headers)
    (added,) = await log.read(f"ev.{room.ann.id}.project.files_added.{room.project}")
    (fact,) = await log.read(f"ev.{room.ann.id}.project.updated.{room.project}")
    page = (await door.get("/v2/events?limit=1000", headers=ben.headers)).json()
    seqs = [event["seq"] for event in page["events"]]

    assert (fact.tenant, fact.envelope.actor) == (room.ann.id, ben.id)
    assert isinstance(added.event, ProjectFilesAdded)
    assert added.event.files[0].key.startswith(f"{room.ann.id}/{room.project}/")
    assert uploaded.json()["files"][0]["id"] == added.event.files[0].file_id
    assert {event["event"]["tenant"] for event in page["events"]} == {room.ann.id, ben.id}
    assert seqs == sorted(seqs)
    assert fact.seq in seqs
    assert page["next"] == seqs[-1]


async def test_the_log_of_several_workspaces_comes_page_by_page_in_one_order(door: httpx.AsyncClient, room: Room):
    ben = await registered(door)
    await room.let_in(ben)
    for n in range(3):
        await door.post("/projects", json={"name": f"{n}"}, headers=room.ann.headers)
        await door.post("/projects", json={"name": f"{n}"}, headers=ben.headers)
    whole = (await door.get("/v2/events?limit=1000", headers=ben.headers)).json()["events"]

    after, pages = 0, []
    while page := (await door.get(f"/v2/events?limit=2&after={after}", headers=ben.headers)).json()["events"]:
        pages += page
        after = page[-1]["seq"]

    assert pages == whole
    assert len(whole) >= 9


async def test_members_are_listed_and_managed_with_the_version_that_was_seen(door: httpx.AsyncClient, room: Room):
    ben, cal = await registered(door), await registered(door)
    await room.let_in(ben)
    let_in = await room.let_in(cal, role="viewer")

    seen = await door.get(f"{room.path}/members", headers=ben.headers)
    second = await door.get(f"{room.path}/members?limit=1&offset=1", headers=ben.headers)
    raised = await door.patch(let_in.headers["location"], json={"role": "editor"}, headers={**room.ann.headers, "If-Match": seen.headers["etag"]})
    stale = await door.patch(let_in.headers["location"], json={"role": "viewer"}, headers={**room.ann.headers, "If-Match": seen.headers["etag"]})
    workspace = await door.get(room.path, headers=cal.headers)

    assert [(member["username"], member["role"]) for member in seen.json()["members"]] == [
        (room.ann.username, "owner"),
        (ben.username, "editor"),
        (cal.username, "viewer"),
    ]
    assert ([member["user_id"] for member in second.json()["members"]], second.json()["total"]) == ([ben.id], 3)
    assert (raised.status_code, raised.json()["role"], stale.status_code) == (200, "editor", 412)
    assert workspace.json().items() >= {"id": room.ann.id, "owner": room.ann.username, "role": "editor", "members": 3}.items()
    assert workspace.headers["etag"] == raised.headers["etag"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"username": "nobody-of-this-name", "role": "editor"}, 422),
        ({"username": "\0", "role": "editor"}, 422),
        ({"username": "OWN", "role": "editor"}, 409),
        ({"username": "nobody-of-this-name", "role": "owner"}, 422),
        ({"role": "editor"}, 422),
    ],
)
async def test_who_cannot_be_let_in(door: httpx.AsyncClient, room: Room, body: dict[str, str], status: int):
    if body.get("username") == "OWN":
        body = {**body, "username": room.ann.username.upper()}

    refused = await door.post(f"{room.path}/members", json=body, headers=room.ann.headers)

    assert refused.status_code == status, refused.text
    assert refused.headers["content-type"] == "application/problem+json"


async def test_only_its_owner_learns_whether_there_is_a_user_and_no_faster_than_by_registering(strict: httpx.AsyncClient, room: Room, door: httpx.AsyncClient):
    stranger = await registered(door)

    by_another = await strict.post(f"{room.path}/members", json={"username": "who", "role": "viewer"}, headers=stranger.headers)
    asked = [await strict.post(f"{room.path}/members", json={"username": f"who-{n}", "role": "viewer"}, headers=room.ann.headers) for n in range(16)]

    assert by_another.status_code == 404
    assert {answer.status_code for answer in asked} == {422, 429}


async def test_a_removed_member_meets_nothing_any_more_and_comes_back_when_he_is_let_in_again(door: httpx.AsyncClient, room: Room):
    ben = await registered(door)
    await room.let_in(ben)
    assert (await door.get(f"/projects/{room.project}", headers=ben.headers)).status_code == 200

    await room.put_out(ben)
    after = [await door.get(path, headers=ben.headers) for path in (f"/projects/{room.project}", room.path, f"{room.path}/members")]
    listed = (await door.get("/projects", headers=ben.headers)).json()["total"]
    await room.let_in(ben, role="viewer")

    assert [answer.status_code for answer in after] == [404, 404, 404]
    assert listed == 0
    assert (await door.get(f"/projects/{room.project}", headers=ben.headers)).status_code == 200
    assert (await door.delete(f"/projects/{room.project}", headers=ben.headers)).status_code == 403
    left = await door.delete(f"{room.path}/members/{ben.id}", headers=ben.headers)
    assert left.status_code == 204
    assert (await door.get(f"/projects/{room.project}", headers=ben.headers)).status_code == 404


async def test_another_gateway_lets_in_and_out_within_two_seconds(door: httpx.AsyncClient, room: Room, strict: httpx.AsyncClient):
    ben = await registered(door)

    async def sees(status: int) -> bool:
        return (await strict.get(f"/projects/{room.project}", headers=ben.headers)).status_code == status

    assert await sees(404)
    await room.let_in(ben)
    await eventually(lambda: sees(200), patience=5)
    await room.put_out(ben)
    await eventually(lambda: sees(404), patience=5)


async def test_a_deleted_users_memberships_end_and_so_does_his_workspace(door: httpx.AsyncClient, room: Room):
    ben, cal = await registered(door), await registered(door)
    await room.let_in(ben)
    await room.let_in(cal)

    await door.delete(f"/v2/users/{cal.id}", headers=cal.headers)
    left = (await door.get(f"{room.path}/members", headers=ben.headers)).json()
    await door.delete(f"/v2/users/{room.ann.id}", headers=room.ann.headers)

    async def closed() -> bool:
        return (await door.get(f"/projects/{room.project}", headers=ben.headers)).status_code == 404

    assert [member["user_id"] for member in left["members"]] == [room.ann.id, ben.id]
    await eventually(closed, patience=5)
    assert [mine["id"] for mine in (await door.get("/v2/workspaces", headers=ben.headers)).json()["workspaces"]] == [ben.id]


async def test_who_is_let_in_while_its_owner_is_deleted_is_in_no_workspace(door: httpx.AsyncClient, room: Room, servers: Servers, log: EventLog):
    """Another gateway may believe the owner's token for two seconds more."""
    ben = await registered(door)
    await door.delete(f"/v2/users/{room.ann.id}", headers=room.ann.headers)
    added = WorkspaceMemberAdded(workspace_id=room.ann.id, user_id=ben.id, role="editor")
    facts = await log.read(f"ev.{room.ann.id}.workspace.*.{room.ann.id}")
    await log.append([Write(events=[added], after=facts[-1].seq)], origin=Origin(tenant=room.ann.id))
    db = await pool(servers.database_url, size=2)
    try:
        await eventually(lambda: db.fetchval("select true from memberships where user_id = $1", ben.id))
    finally:
        await db.close()
    anew = await door.post("/auth/login", json={"username": ben.username, "password": PASSWORD})

    answer = await door.get(f"/projects/{room.project}", headers=bearer(anew.json()["access_token"]))

    assert answer.status_code == 404


async def test_people_see_those_of_their_workspaces_without_their_addresses(door: httpx.AsyncClient, room: Room):
    ben, stranger = await registered(door), await registered(door)
    await room.let_in(ben)

    async def seen(person: Person) -> dict[str, str]:
        return {user["id"]: user["email"] for user in (await door.get("/api/v1/auth/users/", headers=person.headers)).json()}

    both = {room.ann.id, ben.id}
    assert set(await seen(room.ann)) == set(await seen(ben)) == both
    assert [address for id, address in (await seen(ben)).items() if id != ben.id] == [""]
    assert set(await seen(stranger)) == {stranger.id}


async def test_the_view_says_what_the_facts_say(door: httpx.AsyncClient, room: Room, servers: Servers, log: EventLog):
    people = [await registered(door) for _ in range(3)]
    for person in people:
        await room.let_in(person)
    await door.patch(f"{room.path}/members/{people[0].id}", json={"role": "viewer"}, headers=room.ann.headers)
    await room.put_out(people[1])
    await room.let_in(people[1], role="annotator")
    await room.put_out(people[2])

    state: Workspace | None = None
    facts = await log.read(f"ev.{room.ann.id}.workspace.*.{room.ann.id}")
    for fact in facts:
        state = evolve(state, fact)
    db = await pool(servers.database_url, size=2)
    try:

        async def the_same() -> bool:
            return await workspaces.load(db, room.ann.id, room.ann.id) == (state, facts[-1].seq)

        assert await eventually(the_same)
        assert await workspaces.load(db, "another", room.ann.id) == (None, 0)
    finally:
        await db.close()
    assert state
    assert {id: member.role for id, member in state.members.items()} == {people[0].id: "viewer", people[1].id: "annotator"}


# ---- streams


async def test_an_outage_is_no_end_of_access():
    answers: list[Any] = [OSError(), principal(w="viewer"), principal()]

    async def who(_: str) -> Principal:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def news() -> AsyncGenerator[int, None]:
        for n in range(10):
            await asyncio.sleep(0.001)
            yield n

    listener = Audience(who, most=1, every=0.0001).enter({"principal": principal(w="viewer"), "token": "t"}, ["u", "w"])
    heard = listener.hear(news())

    assert [await anext(heard), await anext(heard)] == [0, 1]
    with pytest.raises(AccessEnded, match="membership"):
        await anext(heard)


LIVE = {"Accept": "text/event-stream"}


async def run_in(room: Room, log: EventLog) -> str:
    """A run that waits for ever."""
    job, project = str(uuid4()), Address(tenant=room.ann.id, category="project", key=(room.project,))
    created = JobCreated(job_id=job, kind="train", stages=["preparation", "training"], inputs={}, spec={"method": "lora"}, project_id=room.project)
    begun = Write(events=[ProjectRunStarted(project_id=room.project, job_id=job)], after=(await log.read(project))[-1].seq)
    await log.append([begun, Write(events=[created], after=0)], origin=Origin(tenant=room.ann.id))
    return job


class Listening:
    """A stream of server-sent events that is read as it comes."""

    def __init__(self, api: httpx.AsyncClient, path: str, token: str) -> None:
        self._api, self._path, self._token = api, path, token
        self.events: list[tuple[str, Any]] = []
        self.opened = asyncio.Event()
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async with self._api.stream("GET", self._path, headers={**LIVE, **bearer(self._token)}) as stream:
            assert stream.status_code == 200
            self.opened.set()
            name = ""
            async for line in stream.aiter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    self.events.append((name, json.loads(value)))

    async def ended(self) -> tuple[str, Any]:
        await asyncio.wait_for(self.task, 10)
        return self.events[-1]

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def listening(stack: AsyncExitStack, api: httpx.AsyncClient, path: str, token: str) -> Listening:
    listening = Listening(api, path, token)
    stack.push_async_callback(listening.close)
    await asyncio.wait_for(listening.opened.wait(), 10)
    return listening


def socket(gateway: Process, token: str, job: str = "") -> connect:
    return connect(f"ws://{gateway.part.address}/ws/progress{job and '/' + job}?token={token}", proxy=None, open_timeout=20)


async def code_of(stack: AsyncExitStack, gateway: Process, token: str, job: str = "") -> "asyncio.Task[tuple[int, str]]":
    """Once it is open: how it will be closed."""
    opened = await stack.enter_async_context(socket(gateway, token, job))

    async def closed() -> tuple[int, str]:
        with suppress(ConnectionClosed):
            async for _ in opened:
                continue
        return opened.close_code or 0, opened.close_reason or ""

    return asyncio.create_task(closed())


async def test_a_stream_ends_with_what_opened_it(door: httpx.AsyncClient, strict: httpx.AsyncClient, strict_gateway: Process):
    """Logged out, expired, a key revoked, the user deleted: the one whose access lasts goes on."""
    ann, ben = await registered(door), await registered(door)
    key = (await door.post("/v2/keys", json={"name": "listener"}, headers=ann.headers)).json()
    async with AsyncExitStack() as stack:
        now = int(time.time())
        over = await listening(stack, strict, "/v2/events", forged(ben, iat=now, exp=now + 3))
        by_key = await listening(stack, strict, "/v2/events", key["key"])
        by_socket = await code_of(stack, strict_gateway, key["key"])
        out = await listening(stack, strict, "/v2/events", ann.access)
        gone = await listening(stack, strict, "/v2/events", ben.access)

        ended = [await over.ended()]
        assert not gone.task.done()
        await door.post("/auth/logout", headers=ann.headers)
        await door.delete(f"/v2/users/{ben.id}", headers=ben.headers)
        ended += [await out.ended(), await gone.ended()]
        assert not by_key.task.done()
        await door.delete(f"/v2/keys/{key['id']}", headers=bearer(await entered(door, ann)))
        ended.append(await by_key.ended())
        closed = await asyncio.wait_for(by_socket, 10)

    assert [name for name, _ in ended] == ["access_ended"] * 4
    assert closed == (1008, "The token has expired or was revoked")


async def test_a_member_hears_all_his_workspaces_in_one_order_until_he_is_out_of_one(
    door: httpx.AsyncClient, strict: httpx.AsyncClient, strict_gateway: Process, room: Room, log: EventLog
):
    ben = await registered(door)
    own = (await door.post("/projects", json={"name": "Ben's"}, headers=ben.headers)).json()["id"]
    job = await run_in(room, log)
    await room.let_in(ben)
    async with AsyncExitStack() as stack:
        everything = await listening(stack, strict, "/v2/events", ben.access)
        run = await listening(stack, strict, f"/projects/{room.project}/train/logs/stream", ben.access)
        by_socket = await code_of(stack, strict_gateway, ben.access, job)
        for _ in range(3):
            await door.patch(f"/projects/{room.project}", json={"name": uuid4().hex}, headers=room.ann.headers)
            await door.patch(f"/projects/{own}", json={"name": uuid4().hex}, headers=ben.headers)
        expected = (await door.get("/v2/events?limit=1000", headers=ben.headers)).json()["events"]
        await eventually(lambda: len(everything.events) >= len(expected))

        await room.put_out(ben)
        ended = [await everything.ended(), await run.ended()]
        closed = await asyncio.wait_for(by_socket, 10)
        again = await listening(stack, strict, "/v2/events", ben.access)
        await eventually(lambda: [event["data"] for _, event in again.events if event["data"].get("project_id") == own], of=4)

    heard = [event["id"] for name, event in everything.events if name != "access_ended"]
    assert heard[: len(expected)] == [event["event"]["id"] for event in expected]
    assert [name for name, _ in ended] == ["access_ended"] * 2
    assert closed == (1008, "The membership has ended")
    assert {event["tenant"] for _, event in again.events} == {ben.id}


async def test_progress_of_all_jobs_has_those_of_a_members_workspaces(door: httpx.AsyncClient, guarded: Process, room: Room, log: EventLog):
    ben = await registered(door)
    await room.let_in(ben, role="viewer")
    before = await run_in(room, log)

    async def active() -> bool:
        return (await door.get(f"/jobs/{before}", headers=ben.headers)).status_code == 200

    await eventually(active)
    async with socket(guarded, ben.access) as opened:
        first = json.loads(await asyncio.wait_for(opened.recv(), 10))
        after = await run_in(room, log)
        second = json.loads(await asyncio.wait_for(opened.recv(), 10))

    assert [first["job_id"], second["job_id"]] == [before, after]


async def test_streams_and_sockets_of_one_person_have_an_end(door: httpx.AsyncClient, strict: httpx.AsyncClient, strict_gateway: Process):
    ann, ben = await registered(door), await registered(door)
    async with AsyncExitStack() as stack:
        first = await listening(stack, strict, "/v2/events", ann.access)
        await listening(stack, strict, "/v2/events", ann.access)
        await stack.enter_async_context(socket(strict_gateway, ann.access))

        refused = await strict.get("/v2/events", headers={**LIVE, **ann.headers})
        with pytest.raises(InvalidStatus) as handshake:
            await stack.enter_async_context(socket(strict_gateway, ann.access))
        await listening(stack, strict, "/v2/events", ben.access)
        await first.close()

        async def room_again() -> bool:
            async with strict.stream("GET", "/v2/events", headers={**LIVE, **ann.headers}) as stream:
                return stream.status_code == 200

        await eventually(room_again)

    assert (refused.status_code, refused.json()["title"]) == (429, "too many streams")
    assert int(refused.headers["retry-after"]) > 0
    assert handshake.value.response.status_code == 429
    assert json.loads(handshake.value.response.body)["error_code"] == "TOO_MANY_STREAMS"


async def test_a_workspace_has_so_many_webhooks_and_no_more(strict: httpx.AsyncClient, room: Room):
    async def made(**headers: str) -> httpx.Response:
        hook = {"url": "https://receiver.invalid/", "events": ["training.completed"]}
        return await strict.post("/webhooks", json=hook, headers={**room.ann.headers, **headers})

    first, second, third, again = await made(**{"Idempotency-Key": "one"}), await made(), await made(), await made(**{"Idempotency-Key": "one"})
    await strict.delete(f"/webhooks/{first.json()['id']}", headers=room.ann.headers)

    assert [answer.status_code for answer in (first, second, third, again)] == [201, 201, 409, 201]
    assert third.json()["error"] == "too_many_webhooks"
    assert (await made()).status_code == 201


async def entered(door: httpx.AsyncClient, person: Person) -> str:
    return (await door.post("/auth/login", json={"username": person.username, "password": PASSWORD})).json()["access_token"]
