"""The child's end of the socket to its worker."""

import os
import socket
import threading

from services.training.frames import Frame, Unpacker, packed, to_child

from .wishes import Wishes

ORPHANED = 3
"""Exit code of a child whose worker is gone. Nobody reads it."""


class Link:
    def __init__(self, sock: socket.socket, wishes: Wishes) -> None:
        self._sock = sock
        self._wishes = wishes
        self._over = False
        self._turn = threading.Lock()
        threading.Thread(target=self._listen, name="link", daemon=True).start()

    def tell(self, frame: Frame) -> None:
        data = packed(frame)
        with self._turn:
            try:
                self._sock.sendall(data)
            except OSError:
                os._exit(ORPHANED)

    def close(self, last: Frame) -> None:
        """The worker may hang up as soon as it has read the last frame."""
        self._over = True
        self.tell(last)

    def _listen(self) -> None:
        unpacker = Unpacker()
        while data := self._received():
            for body in unpacker.feed(data):
                to_child.decode(body)
                self._wishes.stop.set()  # a Cancel, the only thing that is ever asked
        if not self._over:
            os._exit(ORPHANED)  # whatever the main thread is in: another attempt may be under way

    def _received(self) -> bytes:
        try:
            return self._sock.recv(65536)
        except OSError:
            return b""
