"""Decodes strangers' images for predictions, one question after another, in a process that has only so much memory. Imports no torch."""

import base64
import binascii
import resource
import socket
import sys
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from services.training.eyes import LENGTH, NAME, Seen, Shown
from services.training.images import Unfit, drawn, picture

MEMORY = 1536 * 1024 * 1024
"""Bytes beyond what this process begins with: the largest image, in the few forms that it takes on the way."""


def run(sock: socket.socket, spec: object) -> None:
    _bound()
    with sock.makefile("rb") as asked:
        while head := asked.read(LENGTH.size):
            shown = msgspec.msgpack.decode(asked.read(LENGTH.unpack(head)[0]), type=Shown)
            said = msgspec.msgpack.encode(seen(shown))
            sock.sendall(LENGTH.pack(len(said)))
            sock.sendall(said)


def seen(shown: Shown) -> Seen:
    pixels: list[bytes] = []
    for n, item in enumerate(shown.items):
        try:
            image = _image(item) if shown.are_json else picture(item)
        except Unfit as error:
            return Seen(wrong=n, message=str(error))
        pixels.append(np.ascontiguousarray(shown.preparation.middle(image)).tobytes())
    return Seen(pixels=b"".join(pixels))


def _image(text: bytes) -> Image.Image:
    try:
        given = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unfit("it is not valid JSON") from error
    match given:
        case str():
            return picture(_decoded(given))
        case list():
            return drawn(given)
        case _:
            raise Unfit("an image is its file in base64, or a list of rows of pixels")


def _decoded(text: str) -> bytes:
    """Also as a data URL, as browsers have it."""
    _, _, data = text.rpartition(";base64,")
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unfit("it is not valid base64") from error


def _bound() -> None:
    if sys.platform == "linux":
        Path("/proc/self/comm").write_text(NAME)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
