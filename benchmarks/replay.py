"""How fast finished runs are read again, from each store."""

from __future__ import annotations

import time

from .client import Job
from .contest import serving
from .field import FIELD, request
from .processes import Client, cores
from .viewers import start

EVENTS = 1000
WORDS = EVENTS - 3  # beside them: start, message, end
RUNS = 20
READS = 400


def replay() -> dict[str, float]:
    """Events/s, read by 50 clients at once from 20 runs of 1,000 events."""
    found = {}
    for contestant in FIELD:
        if contestant.shape != "native":
            continue
        with serving(contestant, {"BENCH_TOKENS": "1"}) as server, Client(cores()[1]) as client:
            paths = [start(server.port, f"{WORDS} 0") for _ in range(RUNS)]
            time.sleep(2.0)
            job = Job(
                port=server.port,
                requests=[request(path) for path in paths],
                shape="native",
                tokens=WORDS,
                streams=50,
                total=READS,
                cap=60,
            )
            seen = client.do(job)
            if seen.error:
                raise RuntimeError(f"{contestant.name}: {seen.error}")
            found[contestant.name] = READS * EVENTS / seen.seconds
    return found
