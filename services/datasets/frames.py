"""How a process that reads a stranger's file speaks to the service: length-prefixed msgpack, and the word that nothing can be made of the file."""

import struct

import msgspec

LARGEST_FRAME = 1024 * 1024
OUT_OF_BOUNDS = 3
"""Exit status of a process that wanted more memory or disk than it may have."""

_length = struct.Struct("<I")
PREFIX = _length.size
_encode = msgspec.msgpack.Encoder().encode


class Refusal(Exception):
    """Why nothing can be made of the file: a stable code, and words for who uploaded it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag=3, array_like=True, gc=False):
    """A Refusal on its way."""

    code: str
    message: str


def packed(frame: msgspec.Struct) -> bytes:
    body = _encode(frame)
    return _length.pack(len(body)) + body


def size_of(prefix: bytes | bytearray) -> int:
    """Of the frame behind it."""
    (size,) = _length.unpack(prefix)
    if size > LARGEST_FRAME:
        raise msgspec.DecodeError(f"a frame of {size} bytes")
    return size
