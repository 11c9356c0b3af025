"""Work on strangers' input, in a fork of this process that has only so much time and memory."""

import gc
import os
import resource
import select
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from libs.runtime import network, orphan

ITEM, ERROR = 0, 1
OUT_OF_MEMORY = 17
LONGEST = 64 * 1024 * 1024
LOOK = 0.1
_length = struct.Struct("<I")


class OutOfBounds(Exception):
    """The work wanted more than it was given; the text says what."""


class Broken(Exception):
    """The work ended in an error of its own; the text is that error's."""


def limited(work: Callable[[], Iterator[Any]], *, seconds: int, megabytes: int, heed: Callable[[], None]) -> Iterator[Any]:
    """What `work` yields there, here. It may hold on to nothing: it sees a copy of this process. `heed` is called now and then and may raise."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(readable)
        _child(work, writable, seconds=seconds, megabytes=megabytes)
    os.close(writable)
    ended = False
    try:
        for tag, item in _items(readable, heed):
            if tag == ERROR:
                raise Broken(item)
            yield item
        _, status = os.waitpid(pid, 0)
        ended = True
        if status:
            raise OutOfBounds(_why(status, seconds=seconds, megabytes=megabytes))
    finally:
        os.close(readable)
        if not ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _items(readable: int, heed: Callable[[], None]) -> Iterator[Any]:
    buffer = bytearray()
    decode = msgspec.msgpack.Decoder().decode
    while True:
        while not select.select([readable], [], [], LOOK)[0]:
            heed()
        data = os.read(readable, 1 << 20)
        if not data:
            return
        buffer += data
        while len(buffer) >= _length.size:
            (length,) = _length.unpack_from(buffer)
            if length > LONGEST:
                raise OutOfBounds(f"it gave {length} bytes at once")
            if len(buffer) < _length.size + length:
                break
            yield decode(bytes(buffer[_length.size : _length.size + length]))
            del buffer[: _length.size + length]


def _child(work: Callable[[], Iterator[Any]], writable: int, *, seconds: int, megabytes: int) -> NoReturn:
    status = 1
    try:
        network.leave()
        orphan.die_with_parent()  # behind it: another user namespace would clear it
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        gc.disable()  # a collection would write to, and so copy, the memory that is shared with the parent
        _bound(seconds, megabytes)
        with open(writable, "wb") as out:
            _write_all(work, out.write)
        status = 0
    except MemoryError:
        status = OUT_OF_MEMORY
    finally:
        os._exit(status)


def _write_all(work: Callable[[], Iterator[Any]], write: Callable[[bytes], Any]) -> None:
    encode = msgspec.msgpack.Encoder().encode

    def put(tag: int, item: Any) -> None:
        body = encode((tag, item))
        write(_length.pack(len(body)) + body)

    try:
        for item in work():
            put(ITEM, item)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 told to the parent, which raises it
        put(ERROR, f"{type(error).__name__}: {error}"[:1000].encode("utf-8", "replace").decode())


def _bound(seconds: int, megabytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = pages * resource.getpagesize() + megabytes * 1024 * 1024
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _why(status: int, *, seconds: int, megabytes: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return (
            f"it took more than {seconds} s of computing time" if number in (signal.SIGXCPU, signal.SIGKILL) else f"it crashed ({signal.Signals(number).name})"
        )
    return f"it took more than {megabytes} MB of memory" if os.WEXITSTATUS(status) == OUT_OF_MEMORY else "it ended without a word"
