"""What it costs the server to tell one event to one of 2,000 viewers of a run."""

from __future__ import annotations

import selectors
import time

from .contest import serving
from .field import BY_NAME, OURS
from .processes import cpu
from .viewers import VIEWERS, start, watching

SECONDS = 10.0


def fanout() -> dict[str, float]:
    """Microseconds of the server's CPU per viewer and event, at 5 events/s, each told alone."""
    with serving(BY_NAME[OURS], {"BENCH_TOKENS": "1"}) as server:
        path = start(server.port, "600 0.2")
        with watching(server.port, path, VIEWERS) as opened, selectors.DefaultSelector() as all_of:
            for sock in opened:
                sock.setblocking(False)
                all_of.register(sock, selectors.EVENT_READ)
            _read(all_of, 2.0)
            before = cpu(server.process.pid)
            events = _read(all_of, SECONDS)
            return {OURS: (cpu(server.process.pid) - before) / events * 1e6}


def _read(selector: selectors.DefaultSelector, seconds: float) -> int:
    """Read for so long; the events that came."""
    events, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        for key, _ in selector.select(0.1):
            events += key.fileobj.recv(65536).count(b"\ndata:")  # type: ignore[union-attr]
    return events
