"""A way to a server that can be cut in the middle of a word."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from contextlib import suppress
from typing import Self

#: Makes close() send a RST, as a broken network does, instead of a FIN.
ABRUPT = struct.pack("ii", 1, 0)


class Proxy:
    """Carries TCP to a port of loopback, on a thread of its own, until it is closed."""

    def __init__(self, target_port: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._peers: dict[socket.socket, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        # One thread reads only what is ready: a close() does not reach a socket that another
        # thread is blocked in.
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()

    def cut(self) -> int:
        """Resets every open connection on both sides; how many there were."""
        with self._lock:
            count = len(self._peers) // 2
            for end in list(self._peers):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABRUPT)
                self._drop(end)
            return count

    def close(self) -> None:
        self._closed = True
        self._thread.join()
        self.cut()
        self._selector.close()
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _carry(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select(0.05):
                with self._lock:
                    if key.fileobj is self._listener:
                        self._accept()
                    elif isinstance(key.fileobj, socket.socket):
                        self._move(key.fileobj)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(self._target)
        except OSError:
            near.close()
            return
        for end, other in ((near, far), (far, near)):
            self._peers[end] = other
            self._selector.register(end, selectors.EVENT_READ)

    def _move(self, end: socket.socket) -> None:
        other = self._peers.get(end)
        if other is None:  # cut since it was ready
            return
        data = b""
        with suppress(OSError):
            data = end.recv(65536)
            other.sendall(data)
        if not data:
            self._drop(end)
            self._drop(other)

    def _drop(self, end: socket.socket) -> None:
        if self._peers.pop(end, None) is not None:
            self._selector.unregister(end)
            end.close()
