"""How often somebody may try a password: per name and per address, each in its own process."""

import time
from collections.abc import Callable

MOST_REMEMBERED = 20_000
MINUTE = 60.0


class TooMany(Exception):
    """`retry_after` in whole seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__()
        self.retry_after = retry_after


class Attempts:
    """Buckets that fill again within a minute."""

    def __init__(self, *, per_name: int, per_address: int, now: Callable[[], float] = time.monotonic) -> None:
        self._limits = {"name": per_name, "address": per_address}
        self._now = now
        self._full_at: dict[tuple[str, str], float] = {}

    def allow(self, *, address: str) -> bool:
        """Whether there is room for one more."""
        return self._wait(("address", address), self._now()) <= 0

    def check(self, *, address: str, name: str = "") -> None:
        """Raises TooMany when one more would be."""
        now = self._now()
        if waits := [wait for key in _keys(address, name) if (wait := self._wait(key, now)) > 0]:
            raise TooMany(max(1, round(max(waits) + 0.5)))

    def count(self, *, address: str, name: str = "") -> None:
        """Raises TooMany, and counts nothing then."""
        self.check(address=address, name=name)
        now = self._now()
        if len(self._full_at) > MOST_REMEMBERED:
            self._full_at = {key: at for key, at in self._full_at.items() if at > now}
        for key in _keys(address, name):
            self._full_at[key] = max(self._full_at.get(key, now), now) + MINUTE / self._limits[key[0]]

    def forget(self, name: str) -> None:
        """The right password was given: what was tried before was a person's mistake."""
        self._full_at.pop(("name", name.lower()), None)

    def _wait(self, key: tuple[str, str], now: float) -> float:
        """Seconds until there is room for one more."""
        return self._full_at.get(key, now) - now - MINUTE + MINUTE / self._limits[key[0]]


def _keys(address: str, name: str) -> list[tuple[str, str]]:
    return [("address", address), *([("name", name.lower())] if name else [])]
