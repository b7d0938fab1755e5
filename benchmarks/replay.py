"""The speed at which finished runs are read, from each store."""

from __future__ import annotations

import uuid
from dataclasses import replace
from statistics import median
from typing import Any

from .client import Job
from .contest import serving
from .field import FIELD, Contestant, request
from .processes import Client, cores

EVENTS = 1000
#: Chunks per run. `start`, `message_start` and `end` make up the rest of the events.
TOKENS = EVENTS - 3
RUNS = 20
READS = 200
READERS = 10
ROUNDS = 3


def replay() -> list[dict[str, Any]]:
    """Return events/s with several readers at a time, as medians of interleaved rounds."""
    rates: dict[str, list[float]] = {}
    with Client(cores()[1]) as client:
        for _ in range(ROUNDS):
            for contestant in FIELD:
                by_http = contestant.module == "ours" and not contestant.opening
                if by_http and not contestant.missing:
                    rates.setdefault(contestant.name, []).append(_rate(contestant, client))
    return [
        {
            "what": f"{name}, finished runs of {EVENTS:,} events",
            "figure": median(got),
            "unit": "events/s",
            "limit": 100_000,
            "at_least": True,
        }
        for name, got in rates.items()
    ]


def _rate(contestant: Contestant, client: Client) -> float:
    runs = [uuid.uuid4().hex for _ in range(RUNS)]
    with serving(contestant, {"BENCH_TOKENS": str(TOKENS)}) as server:
        asked = [request(f"{contestant.path}&run={run}") for run in runs]
        write = Job(server.port, asked, contestant.shape, TOKENS, READERS, RUNS, cap=60)
        again = [request(f"/runs/{run}/events") for run in runs]
        for job in (write, replace(write, requests=again, total=READS)):
            seen = client.do(job)
            if seen.error or seen.cut:
                raise RuntimeError(f"{contestant.name}: {seen.error or 'cut off'}")
    return seen.whole * EVENTS / seen.seconds
