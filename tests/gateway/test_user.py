"""What lets a user in: the rules, and that the view says what the facts say."""

from typing import Any

import httpx
import pytest

from infra.embedded import Servers
from libs.events import (
    NameClaimed,
    NameReleased,
    UserDeleted,
    UserKeyCreated,
    UserKeyRevoked,
    UserLoggedIn,
    UserLoggedOut,
    UserPasswordChanged,
    UserRegistered,
    UserRoleChanged,
    WorkspaceCreated,
)
from libs.events.log import EventLog
from services.gateway.domain.account import EMAIL, USERNAME, Register, name_id, register
from services.gateway.domain.errors import EmailTaken, NotFound, PasswordChangedMeanwhile, TooManyKeys, UsernameTaken
from services.gateway.domain.user import KEYS, SESSIONS, ChangePassword, ChangeRole, CreateKey, DeleteUser, LogIn, LogOut, RevokeKey, User, decide, evolve
from services.gateway.views import users
from services.gateway.views.database import pool
from tests.kit.eventually import eventually
from tests.kit.given import given
from tests.kit.people import PASSWORD, registered

REGISTERED = UserRegistered(user_id="u", username="Ann", email="ann@example.com", password_hash="first")
WANTED = Register(user_id="u", username="Ann", email="Ann@example.com", full_name="", password_hash="first")


def begun(session: str, *, expires_at: int = 1000, ended: list[str] | None = None) -> UserLoggedIn:
    return UserLoggedIn(user_id="u", session_id=session, token_sha256="x", expires_at=expires_at, ended=ended or [])


def entering(*, now: int = 0, password_hash: str = "first") -> LogIn:
    return LogIn(user_id="u", password_hash=password_hash, session_id="new", token_sha256="x", now=now, expires_at=now + 1000)


def user(*facts: Any) -> User:
    return given(evolve, REGISTERED, *facts)


def test_registering_claims_both_names_in_whatever_case_and_makes_a_workspace():
    assert register(WANTED, username_held_by="", email_held_by="") == [
        NameClaimed(name_id=name_id(USERNAME, "ANN"), scope=USERNAME, holder="u"),
        NameClaimed(name_id=name_id(EMAIL, "ann@EXAMPLE.com"), scope=EMAIL, holder="u"),
        UserRegistered(user_id="u", username="Ann", email="Ann@example.com", password_hash="first"),
        WorkspaceCreated(workspace_id="u", owner_id="u"),
    ]


@pytest.mark.parametrize(("held", "refusal"), [({"username_held_by": "v"}, UsernameTaken), ({"email_held_by": "v"}, EmailTaken)])
def test_a_held_name_is_refused(held: dict[str, str], refusal: type[Exception]):
    with pytest.raises(refusal):
        register(WANTED, **{"username_held_by": "", "email_held_by": "", **held})


def test_one_session_more_than_may_be_ends_the_oldest_and_those_that_are_over():
    full = user(*(begun(f"s{n}") for n in range(SESSIONS)))
    some_over = user(begun("over", expires_at=5), begun("good"))

    (by_number,), (by_time,) = decide(full, entering()), decide(some_over, entering(now=6))

    assert isinstance(by_number, UserLoggedIn)
    assert isinstance(by_time, UserLoggedIn)
    assert (by_number.ended, by_time.ended) == (["s0"], ["over"])
    assert list(user(begun("over", expires_at=5), begun("good"), by_time).sessions) == ["good", "new"]


def test_a_password_that_was_changed_while_it_was_checked_lets_nobody_in():
    with pytest.raises(PasswordChangedMeanwhile):
        decide(user(UserPasswordChanged(user_id="u", password_hash="second")), entering())
    with pytest.raises(PasswordChangedMeanwhile):
        decide(user(UserPasswordChanged(user_id="u", password_hash="second")), ChangePassword(user_id="u", old_hash="first", new_hash="third"))


def test_another_password_ends_sessions_and_leaves_keys():
    changed = user(begun("s"), UserKeyCreated(user_id="u", key_id="k", name="ci", key_sha256="x"), UserPasswordChanged(user_id="u", password_hash="second"))

    assert (changed.password_hash, changed.sessions, list(changed.keys)) == ("second", {}, ["k"])


def test_leaving_twice_and_the_same_role_again_are_nothing_new():
    assert decide(user(begun("s"), UserLoggedOut(user_id="u", session_id="s")), LogOut(user_id="u", session_id="s")) == []
    assert decide(user(UserRoleChanged(user_id="u", role="admin")), ChangeRole(user_id="u", role="admin")) == []


def test_keys_have_an_end_and_a_key_that_is_gone_is_not_found():
    many = [UserKeyCreated(user_id="u", key_id=f"k{n}", name="ci", key_sha256="x") for n in range(KEYS)]
    new = CreateKey(user_id="u", key_id="new", name="ci", key_sha256="x")

    with pytest.raises(TooManyKeys):
        decide(user(*many), new)
    assert len(decide(user(*many, UserKeyRevoked(user_id="u", key_id="k0")), new)) == 1
    with pytest.raises(NotFound):
        decide(user(), RevokeKey(user_id="u", key_id="k0"))


def test_a_deleted_user_frees_both_names_and_is_gone():
    deleted = decide(user(), DeleteUser(user_id="u"))

    assert deleted == [
        NameReleased(name_id=name_id(USERNAME, "ann")),
        NameReleased(name_id=name_id(EMAIL, "ann@example.com")),
        UserDeleted(user_id="u"),
    ]
    for command in (entering(), ChangeRole(user_id="u", role="admin"), DeleteUser(user_id="u")):
        with pytest.raises(NotFound):
            decide(user(*deleted), command)


async def test_the_view_says_what_the_facts_say(door: httpx.AsyncClient, servers: Servers, log: EventLog):
    ben = await registered(door)
    for _ in range(3):
        await door.post("/auth/login", json={"username": ben.username, "password": PASSWORD})
    keys = [(await door.post("/v2/keys", json={"name": "ci"}, headers=ben.headers)).json()["id"] for _ in range(3)]
    await door.delete(f"/v2/keys/{keys[1]}", headers=ben.headers)
    await door.post("/auth/logout", headers=ben.headers)
    state: User | None = None
    facts = await log.read(f"sec.{ben.id}.user.*.{ben.id}")
    for fact in facts:
        state = evolve(state, fact)

    db = await pool(servers.database_url, size=2)
    try:

        async def the_same() -> bool:
            return await users.load(db, ben.id, ben.id) == (state, facts[-1].seq)

        assert await eventually(the_same)
        assert await users.load(db, "another", ben.id) == (None, 0)
    finally:
        await db.close()

    assert state
    assert (len(state.sessions), list(state.keys)) == (3, [keys[0], keys[2]])
