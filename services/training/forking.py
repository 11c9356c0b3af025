"""What the service and its forkserver say to each other: msgpack behind its length, one order at a time, the child's socket along with it."""

import struct

import msgspec

_length = struct.Struct("<I")


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Fork a child that calls `entry(socket, spec)`."""

    entry: str
    """`module:function`"""
    spec: msgspec.Raw
    """A RunSpec, a FitSpec, or nil."""
    environ: dict[str, str] = {}
    offline: bool = False
    """Take the network away from it, where the kernel lets us."""


class Warm(msgspec.Struct, frozen=True, kw_only=True, tag="warm"):
    """All that takes long is imported."""


class Started(msgspec.Struct, frozen=True, kw_only=True, tag="started"):
    pid: int


class Exited(msgspec.Struct, frozen=True, kw_only=True, tag="exited"):
    pid: int
    status: int
    """The exit code; negative: the signal."""


Answer = Warm | Started | Exited

_encoder = msgspec.msgpack.Encoder()
_orders = msgspec.msgpack.Decoder(Order)
_answers = msgspec.msgpack.Decoder(Answer)


def raw(thing: object) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(thing))


def packed(message: Order | Answer) -> bytes:
    body = _encoder.encode(message)
    return _length.pack(len(body)) + body


def order(buffer: bytearray) -> Order | None:
    body = _first(buffer)
    return None if body is None else _orders.decode(body)


def answer(buffer: bytearray) -> Answer | None:
    body = _first(buffer)
    return None if body is None else _answers.decode(body)


def _first(buffer: bytearray) -> bytes | None:
    """Taken out of the buffer once it is complete."""
    if len(buffer) < _length.size or len(buffer) < (end := _length.size + _length.unpack_from(buffer)[0]):
        return None
    body = bytes(buffer[_length.size : end])
    del buffer[:end]
    return body
