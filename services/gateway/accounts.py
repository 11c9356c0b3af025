"""Who people are: registering, entering, and what a token or key is worth now."""

import os
import time
import uuid
from collections.abc import Callable
from typing import Any

import asyncpg
import msgspec

from libs.events import Address, Origin, UserRegistered, uuid7
from libs.events.log import Conflict, EventLog, Write
from services.gateway.attempts import Attempts
from services.gateway.commands import BUDGET, NEARLY_FULL, Commands, Outcome
from services.gateway.domain import account
from services.gateway.domain.account import EMAIL, USERNAME, Register, name_id
from services.gateway.domain.errors import Conflicted, DomainError, LogFull
from services.gateway.domain.user import ChangePassword, CreateKey, LogIn, Principal, User, evolve
from services.gateway.passwords import Passwords
from services.gateway.tokens import KEY, LIFETIME, REFRESH, SESSION, Bad, Opaque, Signer, opaque, unpack
from services.gateway.views import users

KNOWN_FOR = 2.0
"""Seconds that a credential is believed without asking again: as long as another gateway may still take one that was revoked."""
MOST_KNOWN = 10_000


class WrongCredentials(Exception):
    """No such user, or another password: which of them is not told."""


class LoggedIn(msgspec.Struct, frozen=True, kw_only=True):
    access: str
    refresh: str
    expires_in: int = LIFETIME


class Accounts:
    def __init__(
        self,
        log: EventLog,
        db: asyncpg.Pool,
        commands: Commands,
        *,
        passwords: Passwords,
        signer: Signer,
        attempts: Attempts,
        fill: Callable[[], float],
        credits: int,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._log = log
        self._db = db
        self._commands = commands
        self._passwords = passwords
        self._signer = signer
        self._attempts = attempts
        self._fill = fill
        self._credits = credits
        self._now = now
        self._known: dict[str, tuple[Principal, float]] = {}

    async def register(self, *, username: str, email: str, password: str, full_name: str, role: str = "user", actor: str = "", address: str = "") -> User:
        account.check(username=username, email=email, password=password)
        if address:
            self._attempts.count(address=address)
        id = self._new_id()
        password_hash = await self._passwords.hash(password)
        wanted = Register(user_id=id, username=username, email=email, full_name=full_name, password_hash=password_hash, role=role, credits=self._credits)
        return await self._founded(wanted, Origin(tenant=id, actor=actor or id, correlation=str(uuid.uuid4())))

    async def log_in(self, username: str, password: str, *, address: str) -> LoggedIn:
        self._attempts.count(address=address, name=username)
        user = await self._named(username)
        if not await self._passwords.fits(password, user.password_hash if user else None) or user is None:
            raise WrongCredentials
        self._attempts.forget(username)
        token, now = opaque(user.id, self._new_id()), int(self._now())
        entering = LogIn(user_id=user.id, password_hash=user.password_hash, session_id=token.id, token_sha256=token.sha256, now=now, expires_at=now + SESSION)
        try:
            await self._commands.run(entering, origin=_own(user.id))
        except DomainError as refused:
            raise WrongCredentials from refused
        return LoggedIn(access=self._signer.sign(user_id=user.id, session_id=token.id), refresh=token.text(REFRESH))

    async def refreshed(self, refresh_token: str) -> tuple[Principal, str]:
        """Whose it is, and a new access token. The refresh token stays as it is: its clients expect no other."""
        token = unpack(refresh_token, REFRESH)
        principal, sha256 = await self._session(token.user_id, token.id)
        if not token.fits(sha256):
            raise Bad
        return principal, self._signer.sign(user_id=token.user_id, session_id=token.id)

    async def principal(self, token: str) -> Principal:
        """Whom this access token or API key lets in now. Raises Bad."""
        known, until = self._known.get(token, (None, 0.0))
        now = self._now()
        if known and now < until:
            return known
        if token.startswith(KEY):
            key = unpack(token, KEY)
            principal, expires = await self._key(key), now + KNOWN_FOR
        else:
            claims = self._signer.read(token)
            principal, _ = await self._session(claims.sub, claims.sid)
            expires = min(now + KNOWN_FOR, claims.exp)
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[token] = (principal, expires)
        return principal

    async def change_password(self, user_id: str, old: str, new: str, *, address: str) -> None:
        """All sessions end, this one too."""
        user = await self.user(user_id)
        if user is None:
            raise Bad
        account.check_password(new, about=(user.username, user.email))
        self._attempts.count(address=address, name=user.username)
        if not await self._passwords.fits(old, user.password_hash):
            raise WrongCredentials
        await self.run(ChangePassword(user_id=user_id, old_hash=user.password_hash, new_hash=await self._passwords.hash(new)))

    async def set_password(self, user: User, new: str, *, actor: str) -> None:
        account.check_password(new, about=(user.username, user.email))
        await self.run(ChangePassword(user_id=user.id, old_hash="", new_hash=await self._passwords.hash(new)), actor=actor)

    async def create_key(self, user_id: str, name: str) -> tuple[User, str, str]:
        """The key itself is in this answer and nowhere else."""
        key = opaque(user_id, self._new_id())
        outcome = await self.run(CreateKey(user_id=user_id, key_id=key.id, name=name, key_sha256=key.sha256))
        return outcome.state, key.id, key.text(KEY)

    async def run(self, command: object, *, actor: str = "") -> Outcome[Any]:
        """Of the user whom the command is about, in that user's workspace."""
        user_id: str = getattr(command, "user_id")  # noqa: B009  # every command of this room has it
        outcome = await self._commands.run(command, origin=_own(user_id, actor))
        self.forget(user_id)
        return outcome

    def forget(self, user_id: str) -> None:
        """What lets this user in, and where to, is asked for anew."""
        for token in [token for token, (principal, _) in self._known.items() if principal.id == user_id]:
            del self._known[token]

    async def user(self, user_id: str) -> User | None:
        state, _ = await users.load(self._db, user_id, user_id)
        return state or await self._newest(user_id)

    async def named(self, username: str) -> User | None:
        return await self._named(username)

    async def introduced(self, username: str, *, address: str) -> User | None:
        """For somebody who asks for another. It tells whether a name is taken, as registering does, and no faster."""
        self._attempts.count(address=address)
        return await self._named(username)

    async def _founded(self, wanted: Register, origin: Origin) -> User:
        """Both names are read in the log itself: what it says now is what the guards will hold it to."""
        if self._fill() >= NEARLY_FULL:
            raise LogFull
        deadline = time.monotonic() + BUDGET
        while True:
            (by_username, after_username), (by_email, after_email) = [
                await self._holder(*name) for name in ((USERNAME, wanted.username), (EMAIL, wanted.email))
            ]
            claimed, also_claimed, *founding = account.register(wanted, username_held_by=by_username, email_held_by=by_email)
            writes = [
                Write(events=[claimed], after=after_username),
                Write(events=[also_claimed], after=after_email),
                *(Write(events=[first], after=0) for first in founding),
            ]
            try:
                facts = await self._log.append(writes, origin=origin, budget=BUDGET)
            except Conflict as conflict:
                if time.monotonic() > deadline:
                    raise Conflicted from conflict
                continue
            await self._commands.visible(facts[-1].seq)
            user = evolve(None, next(fact for fact in facts if isinstance(fact.event, UserRegistered)))
            assert user
            return user

    async def _holder(self, scope: str, name: str) -> tuple[str, int]:
        held_by, position = "", 0
        for recorded in await self._log.read(Address(tenant="sys", category="name", key=(name_id(scope, name),))):
            held_by, position = account.holder(held_by, recorded), recorded.seq
        return held_by, position

    async def _named(self, username: str) -> User | None:
        """As many questions for a name that nobody has as for another."""
        held_by, _ = await self._holder(USERNAME, username)
        id = held_by or str(uuid.uuid4())
        user, _ = await users.load(self._db, id, id)
        return await self._newest(held_by) if user is None and held_by else user

    async def _newest(self, user_id: str) -> User | None:
        user, _ = await self._commands.newest(User, user_id, tenant=user_id)
        return None if user is None or user.deleted else user

    async def _session(self, user_id: str, session_id: str) -> tuple[Principal, str]:
        """From the view, or from the log when the view doesn't show it yet."""
        found = await users.by_session(self._db, user_id, session_id)
        if found is None:
            user = await self._newest(user_id)
            if user is None or (session := user.sessions.get(session_id)) is None:
                raise Bad
            found = await self._fresh(user, session_id), session
        principal, session = found
        if session.expires_at <= self._now():
            raise Bad
        return principal, session.sha256

    async def _key(self, key: Opaque) -> Principal:
        found = await users.by_key(self._db, key.user_id, key.id)
        if found is None:
            user = await self._newest(key.user_id)
            if user is None or (held := user.keys.get(key.id)) is None:
                raise Bad
            found = await self._fresh(user, key.id), held.sha256
        principal, sha256 = found
        if not key.fits(sha256):
            raise Bad
        return principal

    async def _fresh(self, user: User, credential: str) -> Principal:
        return Principal(id=user.id, tenant=user.id, role=user.role, credential=credential, workspaces=await users.workspaces_of(self._db, user.id))

    def _new_id(self) -> str:
        return uuid7(time.time_ns() // 1_000_000, os.urandom(10))


def _own(user_id: str, actor: str = "") -> Origin:
    return Origin(tenant=user_id, actor=actor or user_id, correlation=str(uuid.uuid4()))
