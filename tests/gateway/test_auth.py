"""People: registering, entering, leaving; which tokens are good; and that nobody learns or touches what is another's."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from statistics import median
from typing import Any

import httpx
import pytest

from infra.embedded import Process, Servers
from libs.config import Gateway, Refused, load
from libs.events import Origin, ProjectCreated, ProjectUpdated, UserLoggedOut, UserRegistered
from libs.events.log import EventLog, Write
from libs.runtime import bus
from services.gateway.__main__ import refuse_unsafe
from services.gateway.attempts import Attempts, TooMany
from services.gateway.live import Live
from services.gateway.passwords import AT_ONCE, WAITING, Busy, Passwords
from tests.kit.eventually import eventually
from tests.kit.gateway import bare, client, plain, running
from tests.kit.people import JWT, PASSWORD, Person, bearer, expired, forged, name, registered

LIVE = {"Accept": "text/event-stream"}


@pytest.fixture(scope="module")
async def strict(servers: Servers) -> AsyncIterator[httpx.AsyncClient]:
    """Of a gateway where nobody may register, and few passwords be tried."""
    with running(servers, label="gateway-strict", environ={**JWT, "TRAINYARD_REGISTRATION": "closed", "TRAINYARD_LOGIN_ATTEMPTS": "3"}) as process:
        async with client(process) as api:
            yield api


@pytest.fixture(scope="module")
async def ann(door: httpx.AsyncClient) -> Person:
    return await registered(door)


# ---- registering


def wanted(**changed: Any) -> dict[str, Any]:
    username = name()
    return {"username": username, "email": f"{username}@example.com", "password": PASSWORD, "full_name": "Ann Other"} | changed


async def test_registering_and_entering_answer_as_documented(door: httpx.AsyncClient):
    body = wanted(full_name="Ann Öther 𝄞 🚂")

    answer = await door.post("/auth/register", json=body)
    entered = await door.post("/auth/login", json={"username": body["username"], "password": PASSWORD})
    refreshed = await door.post("/auth/refresh", json={"refresh_token": entered.json()["refresh_token"]})

    assert answer.status_code == 201
    assert set(answer.json()) == {"id", "username", "email", "full_name", "created_at"}
    assert answer.json().items() >= {"username": body["username"], "email": body["email"], "full_name": "Ann Öther 𝄞 🚂"}.items()
    assert entered.status_code == refreshed.status_code == 200
    assert set(entered.json()) == {"access_token", "refresh_token", "token_type", "expires_in"}
    assert set(refreshed.json()) == {"access_token", "token_type", "expires_in"}
    assert entered.json().items() >= {"token_type": "bearer", "expires_in": 1800}.items()
    assert (await door.get("/projects", headers=bearer(refreshed.json()["access_token"]))).status_code == 200


async def test_datagens_clients_are_the_same_users(door: httpx.AsyncClient, ann: Person):
    token = (await door.post("/api/v1/auth/token/", json={"username": ann.username, "password": PASSWORD})).json()
    headers = bearer(token["access"])

    user, users, paged, good = [await door.get(f"/api/v1/auth/{path}", headers=headers) for path in ("user/", "users/", "users/?limit=1", "is_authenticated/")]

    assert token["access"] == token["access_token"]
    assert token["refresh"] == token["refresh_token"]
    assert user.json().items() >= {"id": ann.id, "username": ann.username, "first_name": "Ann", "last_name": "Other", "role": "user"}.items()
    assert users.json() == [user.json()], "nobody else's account is shown"
    assert paged.json() == {"count": 1, "next": None, "previous": None, "results": [user.json()]}
    assert good.json() == {"is_authenticated": True}
    assert "hash" not in user.text


@pytest.mark.parametrize(
    ("changed", "field", "status"),
    [
        ({"password": "short1!"}, "password", 400),
        ({"password": "Password123"}, "password", 400),
        ({"password": "aaaaaaaaaaaa"}, "password", 400),
        ({"password": "x" * 257}, "password", 400),
        ({"password": "x" * 100_000}, "password", 400),
        ({"password": "nul\0nul\0nul"}, "password", 400),
        ({"username": ""}, "username", 400),
        ({"username": "two words"}, "username", 400),
        ({"username": "ann\0"}, "username", 400),
        ({"username": "ann🚂"}, "username", 400),
        ({"username": "x" * 65}, "username", 400),
        ({"username": "local"}, "username", 400),
        ({"username": "SYS"}, "username", 400),
        ({"email": "nobody"}, "email", 400),
        ({"email": "two@at@example.com"}, "email", 400),
        ({"email": "a b@example.com"}, "email", 400),
        ({"email": "a@example.com\n"}, "email", 400),
        ({"email": f"{'a' * 60}@{'b' * 300}.com"}, "email", 400),
        ({"full_name": "nul\0"}, "full_name", 400),
        ({"full_name": "x" * 201}, "full_name", 400),
        ({"username": 5}, "username", 400),
    ],
)
async def test_what_makes_no_account_is_refused_by_its_field(door: httpx.AsyncClient, changed: dict[str, Any], field: str, status: int):
    answer = await door.post("/auth/register", json=wanted(**changed))

    assert (answer.status_code, answer.json()["error"]) == (status, "validation_error")
    assert [detail["field"] for detail in answer.json()["details"]] == [field]
    assert PASSWORD not in answer.text


async def test_a_password_may_be_any_text(door: httpx.AsyncClient):
    composed, decomposed = "Straße café 🚂🚂", "Straße cafe\u0301 🚂🚂"
    body = wanted(password=composed)
    await door.post("/auth/register", json=body)

    entered = [await door.post("/auth/login", json={"username": body["username"], "password": word}) for word in (composed, decomposed, composed + " ")]

    assert [answer.status_code for answer in entered] == [200, 200, 401]


async def test_a_name_is_taken_in_any_case(door: httpx.AsyncClient, ann: Person):
    by_name = await door.post("/auth/register", json=wanted(username=ann.username.upper()))
    by_email = await door.post("/auth/register", json=wanted(email=f"{ann.username.upper()}@EXAMPLE.com"))
    entered = await door.post("/auth/login", json={"username": ann.username.upper(), "password": PASSWORD})

    assert (by_name.status_code, by_name.json()["error"]) == (409, "username_taken")
    assert (by_email.status_code, by_email.json()["error"]) == (409, "email_taken")
    assert entered.status_code == 200


async def test_of_ten_who_want_one_name_at_once_one_gets_it(door: httpx.AsyncClient):
    username = name()

    answers = await asyncio.gather(*(door.post("/auth/register", json=wanted(username=username.upper() if n % 2 else username)) for n in range(10)))

    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 9


async def test_registering_is_one_batch_and_no_secret_is_in_the_feed(door: httpx.AsyncClient, log: EventLog):
    person = await registered(door)

    public = [recorded async for recorded in log.scan(f"ev.{person.id}.>")]
    secret = [recorded async for recorded in log.scan(f"sec.{person.id}.>")]
    listed = await door.get("/v2/events", headers=person.headers)

    assert [recorded.envelope.type for recorded in public] == ["workspace.created", "credit.granted"]
    assert [recorded.envelope.type for recorded in secret] == ["user.registered", "user.logged_in"]
    assert isinstance(secret[0].event, UserRegistered)
    assert secret[0].event.password_hash.startswith("$argon2id$")
    assert [event["event"]["type"] for event in listed.json()["events"]] == ["workspace.created"]
    assert public[0].seq == secret[0].seq + 1
    assert person.refresh not in str(secret)


async def test_closed_registration_is_a_plain_refusal(strict: httpx.AsyncClient):
    answer = await strict.post("/auth/register", json=wanted())

    assert (answer.status_code, answer.json()["error"]) == (403, "forbidden")


# ---- tokens


def bad_tokens(ann: Person) -> dict[str, dict[str, str]]:
    now = int(time.time())
    return {
        "none": {},
        "empty": {"Authorization": ""},
        "no scheme": {"Authorization": ann.access},
        "wrong scheme": {"Authorization": f"Basic {ann.access}"},
        "nothing behind the scheme": {"Authorization": "Bearer"},
        "expired": bearer(expired(ann)),
        "another key": bearer(forged(ann, secret="another key that is long enough as well")),
        "algorithm none": bearer(forged(ann, algorithm="none")),
        "another algorithm": bearer(forged(ann, algorithm="HS512")),
        "refresh as access": bearer(ann.refresh),
        "typ refresh": bearer(forged(ann, typ="refresh")),
        "no typ": bearer(forged(ann, typ=None)),
        "lives too long": bearer(forged(ann, exp=now + 86_400)),
        "exp 10^30": bearer(forged(ann, exp=10**30)),
        "exp infinite": bearer(forged(ann, exp=1e308)),
        "exp is text": bearer(forged(ann, exp="never")),
        "from the future": bearer(forged(ann, iat=now + 9000, exp=now + 9900)),
        "another session": bearer(forged(ann, sid="019a0000-0000-7000-8000-000000000003")),
        "nobody's": bearer(forged(ann, sub="019a0000-0000-7000-8000-000000000003")),
        "cut off": bearer(ann.access[:-2]),
        "key that is none": bearer("ty_abc"),
        "key of nobody": bearer("ty_" + "A" * 75),
        "enormous": bearer("x" * 20_000),
    }


async def test_no_bad_token_opens_anything_and_each_family_says_so_in_its_form(door: httpx.AsyncClient, ann: Person):
    forms = {
        "/projects": "error_code",
        "/datasets": "error",
        "/api/v1/auth/user/": "detail",
        "/api/v1/jobs": "error_code",
        "/api/train": "code",
        "/v2/events": "title",
    }
    for what, headers in bad_tokens(ann).items():
        for path, word in forms.items():
            answer = await door.get(path, headers=headers)

            assert answer.status_code == 401, (what, path)
            assert word in answer.json(), (what, path)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["x-request-id"]
    assert (await door.get("/api/v1/auth/user/", headers=bearer("x"))).json()["code"] == "token_not_valid"


async def test_a_bad_token_is_refused_in_local_mode_too_and_a_good_one_is_somebody_else_than_the_owner(api: httpx.AsyncClient):
    ann = await registered(api)
    theirs = (await api.post("/projects", json={"name": "the owner's"})).json()["id"]

    anonymous, bad, good = [await api.get(f"/projects/{theirs}", headers=headers) for headers in ({}, bearer("x"), ann.headers)]

    assert (anonymous.status_code, bad.status_code, good.status_code) == (200, 401, 404)
    assert (await api.get("/api/v1/auth/user/")).status_code == 401, "the owner of the machine has no account"
    assert (await api.get("/api/v1/auth/user/", headers=ann.headers)).json()["id"] == ann.id


@pytest.mark.parametrize("path", ["/", "/health", "/livez", "/readyz", "/metrics", "/docs", "/redoc", "/openapi.json", "/static/docs/page.css"])
async def test_what_belongs_to_nobody_needs_no_token(door: httpx.AsyncClient, path: str):
    assert (await door.get(path)).status_code == 200


@pytest.mark.parametrize("path", ["/static/../projects", "/static/%2e%2e/projects", "//projects", "/projects/", "/PROJECTS", "/docs/../projects", "/v2"])
async def test_nothing_else_does_however_it_is_written(guarded: Process, path: str):
    status, _ = await bare(guarded, plain("GET", path))

    assert status in (401, 404)


async def test_who_enters_or_refreshes_may_carry_an_old_token_along(door: httpx.AsyncClient, ann: Person):
    stale = bearer(expired(ann))

    entered = await door.post("/auth/login", json={"username": ann.username, "password": PASSWORD}, headers=stale)
    refreshed = await door.post("/auth/refresh", json={"refresh_token": ann.refresh}, headers=stale)

    assert (entered.status_code, refreshed.status_code) == (200, 200)


@pytest.mark.parametrize("token", ["x", "tyr_" + "A" * 75, "", "tyr_é", "tyr_" + "A" * 4000])
async def test_what_is_no_refresh_token_refreshes_nothing(door: httpx.AsyncClient, ann: Person, token: str):
    answer = await door.post("/auth/refresh", json={"refresh_token": token})

    assert answer.status_code == (401 if token else 400)


async def test_an_access_token_is_no_refresh_token(door: httpx.AsyncClient, ann: Person):
    assert (await door.post("/auth/refresh", json={"refresh_token": ann.access})).status_code == 401


async def refused(door: httpx.AsyncClient, token: str) -> bool:
    return (await door.get("/projects", headers=bearer(token))).status_code == 401


async def test_leaving_ends_this_session_and_no_other(door: httpx.AsyncClient):
    ben = await registered(door)
    other = (await door.post("/auth/login", json={"username": ben.username, "password": PASSWORD})).json()

    assert (await door.post("/auth/logout", headers=ben.headers)).status_code == 204

    assert await eventually(lambda: refused(door, ben.access))
    assert (await door.post("/auth/refresh", json={"refresh_token": ben.refresh})).status_code == 401
    assert not await refused(door, other["access_token"])


async def test_another_password_ends_all_sessions(door: httpx.AsyncClient):
    ben = await registered(door)
    body = {"current_password": PASSWORD, "new_password": "another good one"}

    wrong = await door.post("/auth/password", json=body | {"current_password": "wrong one here"}, headers=ben.headers)
    weak = await door.post("/auth/password", json=body | {"new_password": ben.username}, headers=ben.headers)
    changed = await door.post("/auth/password", json=body, headers=ben.headers)

    assert (wrong.status_code, weak.status_code, changed.status_code) == (400, 400, 204)
    assert await eventually(lambda: refused(door, ben.access))
    assert (await door.post("/auth/refresh", json={"refresh_token": ben.refresh})).status_code == 401
    entered = [await door.post("/auth/login", json={"username": ben.username, "password": word}) for word in (PASSWORD, "another good one")]
    assert [answer.status_code for answer in entered] == [401, 200]


async def test_a_deleted_user_is_nobody_and_the_name_is_free(door: httpx.AsyncClient):
    ben = await registered(door)
    key = (await door.post("/v2/keys", json={"name": "ci"}, headers=ben.headers)).json()["key"]

    assert (await door.delete(f"/v2/users/{ben.id}", headers=ben.headers)).status_code == 204

    assert await eventually(lambda: refused(door, ben.access))
    assert await eventually(lambda: refused(door, key))
    assert (await door.post("/auth/refresh", json={"refresh_token": ben.refresh})).status_code == 401
    assert (await door.post("/auth/login", json={"username": ben.username, "password": PASSWORD})).status_code == 401
    assert (await registered(door, username=ben.username)).id != ben.id


async def test_a_key_lets_in_until_it_is_revoked_and_is_shown_once(door: httpx.AsyncClient, log: EventLog):
    ben = await registered(door)

    made = (await door.post("/v2/keys", json={"name": "ci"}, headers=ben.headers)).json()
    listed = await door.get("/v2/keys", headers=bearer(made["key"]))

    assert made["key"].startswith("ty_")
    assert [key["id"] for key in listed.json()["keys"]] == [made["id"]]
    assert made["key"] not in listed.text
    assert made["key"] not in str(await log.read(f"sec.{ben.id}.user.*.{ben.id}"))
    assert await refused(door, made["key"][:-4] + "AAAA")
    assert (await door.delete(f"/v2/keys/{made['id']}", headers=ben.headers)).status_code == 204
    assert await eventually(lambda: refused(door, made["key"]))


async def test_two_gateways_believe_each_others_tokens_and_heed_revocations(door: httpx.AsyncClient, strict: httpx.AsyncClient):
    ben = await registered(door)
    assert not await refused(strict, ben.access)

    await door.post("/auth/logout", headers=ben.headers)

    assert await eventually(lambda: refused(strict, ben.access), patience=10)


async def test_a_stream_takes_the_token_from_its_address_and_no_log_keeps_it(door: httpx.AsyncClient, guarded: Process, ann: Person):
    async with door.stream("GET", f"/v2/events?token={ann.access}", headers=LIVE) as stream:
        assert stream.status_code == 200
    assert (await door.get(f"/v2/events?token={ann.access}x", headers=LIVE)).status_code == 401
    assert (await door.get(f"/projects?token={ann.access}")).status_code == 401, "only for streams"
    await door.get("/livez", headers={"X-Request-Id": "after-the-tokens"})

    await eventually(lambda: "after-the-tokens" in guarded.log.read_text())
    assert ann.access.split(".")[2] not in guarded.log.read_text()
    assert PASSWORD not in guarded.log.read_text()


# ---- roles


@pytest.fixture(scope="module")
async def root(door: httpx.AsyncClient, servers: Servers) -> Person:
    """The first admin, as an operator makes one."""
    username = name()
    added = await asyncio.to_thread(told, servers, "add", username, "--email", f"{username}@example.com", "--role", "admin", password=PASSWORD + "\n")
    assert added.returncode == 0, added.stderr
    entered = (await door.post("/auth/login", json={"username": username, "password": PASSWORD})).json()
    user = (await door.get("/api/v1/auth/user/", headers=bearer(entered["access_token"]))).json()
    return Person(id=user["id"], username=username, access=entered["access_token"], refresh=entered["refresh_token"])


def told(servers: Servers, *arguments: str, password: str = "") -> "subprocess.CompletedProcess[str]":
    environ = {**servers.environ("gateway", port=1), **JWT}
    return subprocess.run(
        [sys.executable, "-m", "services.gateway", "users", *arguments], input=password, env=environ, capture_output=True, text=True, check=False
    )


async def test_only_an_admin_sees_and_changes_other_users(door: httpx.AsyncClient, root: Person):
    ann, ben = await registered(door), await registered(door)

    for person in (ann, ben):
        assert (await door.patch(f"/v2/users/{ben.id}", json={"role": "admin"}, headers=person.headers)).status_code == 403
    assert (await door.delete(f"/v2/users/{ben.id}", headers=ann.headers)).status_code == 404
    seen = [user["id"] for user in (await door.get("/api/v1/auth/users/", headers=root.headers)).json()]
    assert {ann.id, ben.id, root.id} <= set(seen)
    assert (await door.patch(f"/v2/users/{ben.id}", json={"role": "annotator"}, headers=root.headers)).json()["role"] == "annotator"
    assert (await door.delete(f"/v2/users/{ben.id}", headers=root.headers)).status_code == 204


async def test_users_are_changed_on_the_command_line(door: httpx.AsyncClient, servers: Servers, root: Person):
    ben = await registered(door)

    again, listed, changed = await asyncio.gather(
        asyncio.to_thread(told, servers, "add", root.username.upper(), "--email", "other@example.com", password=PASSWORD + "\n"),
        asyncio.to_thread(told, servers, "list"),
        asyncio.to_thread(told, servers, "password", ben.username, password="a better one\n"),
    )

    assert (again.returncode, listed.returncode, changed.returncode) == (78, 0, 0), changed.stderr
    assert "This username is taken" in again.stderr
    assert root.username in listed.stdout
    entered = [await door.post("/auth/login", json={"username": ben.username, "password": word}) for word in (PASSWORD, "a better one")]
    assert [answer.status_code for answer in entered] == [401, 200]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"TRAINYARD_AUTH": "jwt", "TRAINYARD_SECRET": ""}, "TRAINYARD_SECRET"),
        ({"TRAINYARD_AUTH": "jwt", "TRAINYARD_SECRET": "short"}, "TRAINYARD_SECRET"),
        ({"TRAINYARD_AUTH": "local", "TRAINYARD_SECRET": "x" * 31}, "TRAINYARD_SECRET"),
        ({"TRAINYARD_AUTH": "local", "TRAINYARD_HOST": "0.0.0.0"}, "TRAINYARD_HOST"),
    ],
)
def test_what_would_be_unsafe_does_not_start(servers: Servers, changed: dict[str, str], why: str):
    with pytest.raises(Refused, match=why):
        refuse_unsafe(load(Gateway, {**servers.environ("gateway", port=1), **changed}))


# ---- guessing


async def test_guessing_is_slowed_down_whatever_address_is_claimed(strict: httpx.AsyncClient, ann: Person):
    async def guess(username: str, n: int) -> httpx.Response:
        return await strict.post("/auth/login", json={"username": username, "password": f"wrong {n}"}, headers={"X-Forwarded-For": f"192.0.2.{n}"})

    one_name = [await guess(ann.username, n) for n in range(5)]
    many_names = [await guess(f"x{n}", n) for n in range(20)]

    assert [answer.status_code for answer in one_name] == [401, 401, 401, 429, 429]
    assert int(one_name[-1].headers["retry-after"]) == one_name[-1].json()["retry_after"] >= 1
    assert 429 in [answer.status_code for answer in many_names], "one address can't go through all names either"


def test_attempts_come_back_with_time_and_the_right_password_clears_a_persons_own():
    now = 0.0
    attempts = Attempts(per_name=3, per_address=100, now=lambda: now)
    for _ in range(3):
        attempts.count(address="a", name="Ann")
    with pytest.raises(TooMany) as refused:
        attempts.count(address="b", name="ANN")

    now = float(refused.value.retry_after)
    attempts.count(address="a", name="ann")
    attempts.forget("ann")

    for _ in range(3):
        attempts.count(address="a", name="ann")


@pytest.mark.alone
async def test_how_long_a_refusal_takes_does_not_tell_whether_there_is_such_a_user(door: httpx.AsyncClient, ann: Person):
    took: dict[str, list[float]] = {ann.username: [], "nobody-at-all": []}
    for _ in range(15):
        for username, times in took.items():
            started = time.perf_counter()
            answer = await door.post("/auth/login", json={"username": username, "password": "wrong password"})
            times.append(time.perf_counter() - started)
            assert (answer.status_code, answer.json()["message"]) == (401, "Invalid username or password")

    known, unknown = (median(times) for times in took.values())
    assert 0.6 < known / unknown < 1.7


@pytest.mark.alone
async def test_hashing_never_queues_without_end_nor_holds_up_the_loop():
    passwords = Passwords()
    started = time.perf_counter()
    asked = [asyncio.ensure_future(passwords.fits("wrong", None)) for _ in range(AT_ONCE + WAITING)]
    await asyncio.sleep(0)
    held_up = time.perf_counter() - started

    with pytest.raises(Busy):
        await passwords.hash("one too many")

    assert await asyncio.gather(*asked) == [False] * len(asked)
    took = time.perf_counter() - started
    passwords.close()
    assert held_up < took / 4


# ---- live


async def test_a_hundred_registrations_make_no_watcher_read_the_log_again(servers: Servers, log: EventLog, tenant: str):
    """Their facts are secret: the feed skips them, and a skip is what a loss looks like."""
    nc = await bus.connect(servers.nats_url("gateway"), name="gateway")
    counted = Counted(EventLog(nc, source="/tests"))
    live = Live(counted)  # pyright: ignore[reportArgumentType]
    await live.listen(nc)
    seen: list[int] = []

    async def watch() -> None:
        async for raw in live.watch(tenant, after=0):
            seen.extend([raw.seq] if raw else [])

    watching = asyncio.create_task(watch())
    try:
        mine = await log.append([Write(events=[ProjectCreated(project_id="p", name="0")], after=0)], origin=Origin(tenant=tenant))
        await eventually(lambda: len(seen) == 1)
        told = [mine[0].seq]
        mine = await log.append([Write(events=[ProjectUpdated(project_id="p", name="heard")], after=mine[0].seq)], origin=Origin(tenant=tenant))
        told.append(mine[0].seq)
        await eventually(lambda: len(seen) == 2)  # whoever hears the first of all can't know what was before, and reads once more
        before = counted.scans
        for n in range(100):
            user = f"{tenant}-{n}"
            facts = [UserRegistered(user_id=user, username=user, email="", password_hash="x"), UserLoggedOut(user_id=user, session_id="s")]
            await log.append([Write(events=facts, after=0)], origin=Origin(tenant=user))
            mine = await log.append([Write(events=[ProjectUpdated(project_id="p", name=str(n))], after=mine[0].seq)], origin=Origin(tenant=tenant))
            told.append(mine[0].seq)

        await eventually(lambda: len(seen) == 102)
    finally:
        watching.cancel()
        live.close()
        await nc.close()

    assert seen == told
    assert counted.scans == before


class Counted:
    """A log that counts how often it is read through."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.scans = 0

    def scan_raw(self, pattern: str, *, after: int, page: int) -> Any:
        self.scans += 1
        return self._log.scan_raw(pattern, after=after, page=page)

    def scan_to(self, pattern: str, *, last: int, after: int, page: int) -> Any:
        self.scans += 1
        return self._log.scan_to(pattern, last=last, after=after, page=page)

    async def next_position(self, pattern: str, *, after: int) -> int:
        return await self._log.next_position(pattern, after=after)
