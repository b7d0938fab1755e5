"""What an open WebSocket costs in memory: one that is idle, and one that reads a silent run."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack
from statistics import median
from typing import Any

from .contest import serving
from .field import Contestant
from .processes import memory
from .viewers import start_run

OPEN = 1000
#: Opened before the count begins: pools and caches grow with the first few.
FIRST = 200
ROUNDS = 3

_OURS = Contestant("ours", "waiting", "gunicorn", "native", store="memory")
_HANDSHAKE = (
    "GET /ws/wait HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def websockets() -> list[dict[str, Any]]:
    """Kilobytes of the worker's RSS per open connection; medians."""
    rounds = [(_cost(reads=False), _cost(reads=True)) for _ in range(ROUNDS)]
    idle, reading = (median(costs) for costs in zip(*rounds, strict=True))
    said = f"{OPEN:,} open"
    return [
        {"what": f"per idle WebSocket, {said}", "figure": idle, "unit": "KB"},
        {"what": f"per WebSocket that reads a silent run, {said}", "figure": reading, "unit": "KB"},
    ]


def _cost(*, reads: bool) -> float:
    with serving(_OURS, {}) as server, ExitStack() as stack:
        run = start_run(server.port, "wait").rpartition("/")[2] if reads else ""

        def connect(count: int) -> int:
            for _ in range(count):
                stack.enter_context(_client(server.port, run))
            return memory(server.process.pid, "VmRSS")

        before = connect(FIRST)
        return (connect(OPEN) - before) / OPEN / 1024


def _client(port: int, run: str) -> socket.socket:
    """A connection; if it reads, one on which the first word has come."""
    sock = socket.create_connection(("127.0.0.1", port), 10)
    sock.sendall(_HANDSHAKE.encode())
    _hear(sock, b"\r\n\r\n", b"HTTP/1.1 101 ")
    if run:
        message = json.dumps({"run": run, "after": 0}).encode()
        # A mask of zeros leaves the message as it is.
        sock.sendall(bytes((0x81, 0x80 | len(message), 0, 0, 0, 0)) + message)
        _hear(sock, b'"chunk"')
    return sock


def _hear(sock: socket.socket, wanted: bytes, start: bytes = b"") -> None:
    said = b""
    while wanted not in said:
        piece = sock.recv(4096)
        if not piece or not (said + piece).startswith(start):
            raise RuntimeError(f"no WebSocket: {said.decode('utf-8', 'replace')}")
        said += piece
