"""The memory of an open viewer of a silent run: flask_stream, and a plain Flask generator."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack
from statistics import median
from typing import Any

from .contest import serving
from .field import Contestant, request
from .processes import memory

OPEN = 2000
#: Connections opened before the measurement, because the first few fill pools and caches.
FIRST = 200
ROUNDS = 3

_OURS = Contestant("ours", "waiting", "gunicorn", "native", store="memory")
_FLOOR = Contestant("bare Flask", "waiting_flask", "gunicorn", "plain")


def viewers() -> list[dict[str, Any]]:
    """Return kilobytes of the worker's RSS per open connection, as medians."""
    rounds = [(_cost(_OURS), _cost(_FLOOR)) for _ in range(ROUNDS)]
    ours, floor = (median(costs) for costs in zip(*rounds, strict=True))
    said = f"per open viewer of a silent run, {OPEN:,} open"
    return [
        {"what": f"ours {said}", "figure": ours, "unit": "KB", "limit": 30, "at_least": False},
        {"what": f"bare Flask {said}: the floor", "figure": floor, "unit": "KB"},
    ]


def _cost(contestant: Contestant) -> float:
    with serving(contestant, {}) as server, ExitStack() as stack:
        path = contestant.path
        if contestant is _OURS:
            path = start_run(server.port, "wait") + "/events"

        def view(count: int) -> int:
            for _ in range(count):
                stack.enter_context(viewer(server.port, path))
            return memory(server.process.pid, "VmRSS")

        before = view(FIRST)
        return (view(OPEN) - before) / OPEN / 1024


def start_run(port: int, chain: str) -> str:
    """Start a run. Return its path."""
    asked = request("/runs", json.dumps({"chain": chain, "input": "Hello"}))
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(asked.encode())
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 201 " not in head.split(b"\r\n", 1)[0]:
        raise RuntimeError(f"no run: {head.decode()}")
    return f"/runs/{json.loads(body)['run']}"


def viewer(port: int, path: str) -> socket.socket:
    """Return a connection on which the first word has arrived."""
    sock = socket.create_connection(("127.0.0.1", port), 10)
    sock.sendall(request(path).encode())
    said = b""
    while b"data: " not in said:
        piece = sock.recv(4096)
        if not piece:
            raise RuntimeError(f"no stream: {said.decode()}")
        said += piece
    return sock
