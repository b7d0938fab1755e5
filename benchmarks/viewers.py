"""What an open viewer of a silent run costs in memory, beside the bare server's own floor."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .contest import serving
from .field import BY_NAME, OURS, SILENT, Contestant, request
from .processes import memory

VIEWERS = 2000


def viewers() -> dict[str, float]:
    """KB of resident memory that each of 2,000 viewers adds to the server."""
    return {one.name: _grown(one) for one in (SILENT, BY_NAME[OURS])}


def _grown(contestant: Contestant) -> float:
    with serving(contestant, {"BENCH_TOKENS": "1"}) as server:
        path = "/stream" if contestant is SILENT else f"{start(server.port, '1 600')}?after=2"
        # The first ones grow what is there once for all.
        with watching(server.port, path, 50):
            time.sleep(1.0)
            before = memory(server.process.pid, "VmRSS")
            with watching(server.port, path, VIEWERS):
                time.sleep(3.0)
                return (memory(server.process.pid, "VmRSS") - before) / VIEWERS / 1024


def start(port: int, question: str) -> str:
    """Start a slow run of ours; the path of its events."""
    body = f'{{"chain": "slow", "input": "{question}"}}'
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(request("/runs", body).encode())
        answer = b""
        while data := sock.recv(65536):
            answer += data
    run = answer.partition(b'"run":"')[2][:32].decode()
    assert run, answer
    time.sleep(0.5)  # its first events are said
    return f"/runs/{run}/events"


@contextmanager
def watching(port: int, path: str, count: int) -> Iterator[list[socket.socket]]:
    """So many connections that read an event stream, each with its headers received."""
    opened: list[socket.socket] = []
    try:
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", port))
            opened.append(sock)
            sock.sendall(request(path).encode())
            sock.recv(65536)
        yield opened
    finally:
        for sock in opened:
            sock.close()
