"""People with accounts, as they call a gateway that asks for tokens."""

import time
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import jwt

SECRET = "a secret of the tests, long enough to sign with in any of the algorithms there are"
JWT = {"TRAINYARD_AUTH": "jwt", "TRAINYARD_SECRET": SECRET, "TRAINYARD_LOGIN_ATTEMPTS": "1000", "TRAINYARD_RATE_LIMITS": "0"}
"""Limits on requests are the matter of tests/gateway/test_limits.py: here all callers have one address."""
PASSWORD = "correct horse battery"


@dataclass
class Person:
    id: str
    username: str
    access: str
    refresh: str

    @property
    def headers(self) -> dict[str, str]:
        return bearer(self.access)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def name() -> str:
    return f"ann-{uuid4().hex[:10]}"


async def registered(api: httpx.AsyncClient, *, username: str = "") -> Person:
    username = username or name()
    body = {"username": username, "email": f"{username}@example.com", "password": PASSWORD, "full_name": "Ann Other"}
    answer = await api.post("/auth/register", json=body)
    assert answer.status_code == 201, answer.text
    entered = (await api.post("/auth/login", json={"username": username, "password": PASSWORD})).json()
    return Person(id=answer.json()["id"], username=username, access=entered["access_token"], refresh=entered["refresh_token"])


def forged(person: Person, *, secret: str = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    """The person's own token with other claims, as only somebody with the secret could sign it."""
    own = jwt.decode(person.access, options={"verify_signature": False})
    return jwt.encode({**own, **claims}, secret if algorithm != "none" else "", algorithm=algorithm)


def expired(person: Person) -> str:
    now = int(time.time())
    return forged(person, iat=now - 1801, exp=now - 1)
