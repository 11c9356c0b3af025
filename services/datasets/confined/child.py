"""The process that reads one data set: `process.py` starts it with the file as its stdin, and reads frames from its stdout."""

import errno
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import IO

import msgspec

from libs.runtime import network, orphan
from services.datasets.confined.frames import OUT_OF_BOUNDS, Frame, Limits, Order, Prepared, Refusal, Refused, Say, packed

MAGIC = {
    b"%PDF-": "a PDF",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "in an old Office format",
    b"\x7fELF": "a program",
    b"MZ": "a program",
    b"\x89PNG\r\n\x1a\n": "one image",
    b"\xff\xd8\xff": "one image",
    b"GIF8": "one image",
    b"\x1f\x8b": "packed by gzip",
    b"BZh": "packed by bzip2",
    b"\xfd7zXZ\x00": "packed by xz",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
    b"SQLite format 3": "a database",
    b"\x89HDF": "in the format HDF5",
    b"\x93NUMPY": "a NumPy array",
    b"ARROW1": "in the format Arrow",
}

Reader = Callable[[IO[bytes], Order, Say], Prepared]


def main() -> None:
    order = msgspec.json.decode(sys.argv[1].encode(), type=Order)
    confine(order)
    try:
        with open(sys.stdin.fileno(), "rb", closefd=False) as file:
            answer(file, order, _say)
    except MemoryError:
        os._exit(OUT_OF_BOUNDS)
    os._exit(0)  # a library's threads are not waited for


def answer(file: IO[bytes], order: Order, say: Say) -> None:
    """The last word is a Prepared or a Refused."""
    try:
        say(reader(file)(file, order, say))
    except Refusal as why:
        say(Refused(code=why.code, message=why.message))
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # strangers' files break libraries in every possible way
        if _tells(error, errno.EFBIG):
            say(Refused(code="out_of_bounds", message="The file makes more than there is room for. Divide it and upload its parts."))
        elif _tells(error, errno.ENOSPC):
            raise  # ours to mend
        else:
            say(_damaged(error))
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # what a library that isn't Python calls an error of its own
            raise
        say(_damaged(error))


def _tells(error: Exception, number: int) -> bool:
    """A library that isn't Python has its own errors for what the system says."""
    return (error.errno if isinstance(error, OSError) else None) == number or f"(os error {number})" in str(error)


def _damaged(error: BaseException) -> Refused:
    return Refused(code="damaged", message=f"The file can't be made out ({type(error).__name__}). Save it anew and upload that.")


def _say(frame: Frame) -> None:
    sys.stdout.buffer.write(packed(frame))
    sys.stdout.buffer.flush()


def reader(file: IO[bytes]) -> Reader:
    """The libraries are imported behind the bounds, and only where they are needed."""
    head = file.read(64)
    file.seek(0)
    if not head:
        raise Refusal("empty", "The file is empty.")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        from services.datasets.confined import contents

        return contents.read
    for magic, what in MAGIC.items():
        if head.startswith(magic):
            raise Refusal("unsupported_format", f"The file is {what}. Upload a table (CSV, JSON, Parquet) or a ZIP of images.")
    from services.datasets.tables import table

    return table.read


def confine(order: Order) -> None:
    network.leave()
    orphan.die_with_parent(order.parent)  # behind it: another user namespace would clear it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable()  # libraries say a line for each oddity of a file
    limits: Limits = order.limits
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.written, limits.written))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_seconds, limits.cpu_seconds + 5))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (limits.memory, limits.memory))
        resource.setrlimit(resource.RLIMIT_AS, (limits.address_space, limits.address_space))


if __name__ == "__main__":
    main()
