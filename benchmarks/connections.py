"""The memory of an open connection over each transport: idle, and reading a silent run."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from typing import Any

from .contest import serving
from .field import ENGINE, Contestant
from .frames import handshake, said
from .processes import memory
from .viewers import start_run, viewer

OPEN = 1000
#: Connections opened before the measurement, because the first few fill pools and caches.
FIRST = 200
ROUNDS = 3

_OURS = Contestant("ours", "waiting", "gunicorn", "native", store="memory")


def connections() -> list[dict[str, Any]]:
    """Return kilobytes of the worker's RSS per open connection, as medians."""
    kinds: dict[str, Callable[[int, str], socket.socket]] = {
        "event stream of a silent run": _stream,
        "idle WebSocket": lambda port, run: _websocket(port, ""),
        "WebSocket that reads a silent run": _websocket,
        "idle Socket.IO client": lambda port, run: _socketio(port, ""),
        "Socket.IO client that reads a silent run": _socketio,
    }
    costs: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(ROUNDS):
        for name, connect in kinds.items():
            costs[name].append(_cost(connect))
    return [
        {"what": f"per {name}, {OPEN:,} open", "figure": median(found), "unit": "KB"}
        for name, found in costs.items()
    ]


def _cost(connect: Callable[[int, str], socket.socket]) -> float:
    with serving(_OURS, {}) as server, ExitStack() as stack:
        run = start_run(server.port, "wait").rpartition("/")[2]

        def open(count: int) -> int:
            for _ in range(count):
                stack.enter_context(connect(server.port, run))
            return memory(server.process.pid, "VmRSS")

        before = open(FIRST)
        return (open(OPEN) - before) / OPEN / 1024


def _stream(port: int, run: str) -> socket.socket:
    return viewer(port, f"/runs/{run}/events")


def _websocket(port: int, run: str) -> socket.socket:
    """Return a connection. If it reads, its first word has arrived."""
    sock = _opened(port, "/ws/wait")
    if run:
        sock.sendall(said(json.dumps({"run": run, "after": 0})).encode("latin-1"))
        _hear(sock, b'"chunk"')
    return sock


def _socketio(port: int, run: str) -> socket.socket:
    sock = _opened(port, ENGINE)
    _hear(sock, b'0{"sid"')
    sock.sendall(said("40").encode("latin-1"))
    _hear(sock, b'40{"sid"')
    if run:
        asked = json.dumps(["stream_resume", {"run": run, "after": 0}])
        sock.sendall(said(f"42{asked}").encode("latin-1"))
        _hear(sock, b'"stream_chunk"')
    return sock


def _opened(port: int, path: str) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), 10)
    sock.sendall(handshake(path).encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = sock.recv(1)  # the rest is left for the next reader
        head += piece
        if not piece or not head.startswith(b"HTTP/1.1 101 "[: len(head)]):
            raise RuntimeError(f"no WebSocket: {head.decode('utf-8', 'replace')}")
    return sock


def _hear(sock: socket.socket, wanted: bytes) -> None:
    heard = b""
    while wanted not in heard:
        piece = sock.recv(4096)
        if not piece:
            raise RuntimeError(f"closed after {heard.decode('utf-8', 'replace')}")
        heard += piece
