"""A TCP proxy whose connections can be cut at any time."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from contextlib import suppress
from typing import Self

#: The SO_LINGER value with which close() sends a RST, as a broken network does, and no FIN.
ABRUPT = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards TCP to a port on the loopback interface, in a thread of its own."""

    def __init__(self, target_port: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._peers: dict[socket.socket, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        # One thread reads only sockets that are ready, because close() does not wake a thread that
        # is blocked in recv().
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._forward_all)
        self._thread.start()

    def cut(self) -> int:
        """Reset every open connection on both sides; return their number."""
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

    def _forward_all(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select(0.05):
                with self._lock:
                    if key.fileobj is self._listener:
                        self._accept()
                    elif isinstance(key.fileobj, socket.socket):
                        self._forward(key.fileobj)

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

    def _forward(self, end: socket.socket) -> None:
        other = self._peers.get(end)
        if other is None:  # cut in the meantime
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
