"""Passwords are hashed in threads of their own, few at a time: each costs 19 MiB and tens of milliseconds, which is the point of it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from services.gateway.domain.account import plain

AT_ONCE, WAITING = 2, 30
"""At most a second or so of waiting: whoever comes after that is sent away."""

T = TypeVar("T")


class Busy(Exception):
    """More people want to enter than can be checked now."""


class Passwords:
    def __init__(self) -> None:
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="passwords")
        self._inside = 0
        self._nobodys = self._hasher.hash(b"the password of nobody")

    async def hash(self, password: str) -> str:
        return await self._off_the_loop(partial(self._hasher.hash, plain(password)))

    async def fits(self, password: str, password_hash: str | None) -> bool:
        """None costs the same and never fits: how long it takes tells nobody which users there are."""
        fits = await self._off_the_loop(partial(self._verify, password_hash or self._nobodys, plain(password)))
        return fits and password_hash is not None

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _verify(self, password_hash: str, password: bytes) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _off_the_loop(self, work: Callable[[], T]) -> T:
        if self._inside >= AT_ONCE + WAITING:
            raise Busy
        self._inside += 1
        done = asyncio.get_running_loop().run_in_executor(self._threads, work)
        done.add_done_callback(self._left)  # not when the asker goes: the thread is at it still
        return await asyncio.shield(done)

    def _left(self, done: "asyncio.Future[T]") -> None:
        self._inside -= 1
        if not done.cancelled():
            done.exception()
