"""Tests beside each other, and alone: what `make test` rests on."""

import asyncio
import fcntl
from pathlib import Path

from tests.kit.eventually import eventually
from tests.kit.turns import turn


class Someone:
    """Takes a turn in a thread, as the test of another worker would."""

    def __init__(self, folder: Path, *, alone: bool) -> None:
        self.inside = False
        self._leave = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.create_task(asyncio.to_thread(self._take, folder, alone))

    async def leaves(self) -> None:
        self._leave.set()
        await self._turn

    def _take(self, folder: Path, alone: bool) -> None:
        with turn(folder, alone=alone):
            self.inside = True
            asyncio.run_coroutine_threadsafe(self._leave.wait(), self._loop).result()
            self.inside = False


async def test_tests_run_beside_each_other(tmp_path: Path):
    both = [Someone(tmp_path, alone=False) for _ in range(2)]

    await eventually(lambda: all(one.inside for one in both))

    for one in both:
        await one.leaves()


async def test_who_wants_to_be_alone_waits_until_all_have_left_and_nobody_comes_in_meanwhile(tmp_path: Path):
    first = Someone(tmp_path, alone=False)
    await eventually(lambda: first.inside)
    lonely = Someone(tmp_path, alone=True)
    await eventually(lambda: waits(tmp_path / "door"))

    late = Someone(tmp_path, alone=False)
    assert (first.inside, lonely.inside) == (True, False)
    await first.leaves()
    await eventually(lambda: lonely.inside)

    assert not late.inside
    await lonely.leaves()
    await eventually(lambda: late.inside)
    await late.leaves()


def waits(door: Path) -> bool:
    """Whether somebody stands in the door."""
    with door.open() as found:
        try:
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
