"""The CPU time to deliver one event of a live run to each of many viewers."""

from __future__ import annotations

import json
import urllib.request
from statistics import median
from typing import Any

from .client import Job
from .contest import serving
from .field import Contestant, request
from .processes import Client, cores
from .viewers import start_run

VIEWERS = 2000
EVENTS = 20
ROUNDS = 3

_OURS = Contestant("ours", "waiting", "gunicorn", "native", store="memory")


def fanout() -> list[dict[str, Any]]:
    """Return microseconds of the worker's CPU per viewer and event, one event at a time."""
    with Client(cores()[1]) as client:
        cost = median(_cost(client) for _ in range(ROUNDS))
    what = f"per viewer and event, {VIEWERS:,} viewers of one live run"
    return [{"what": what, "figure": cost, "unit": "µs of CPU", "limit": 40, "at_least": False}]


def _cost(client: Client) -> float:
    env = {"BENCH_VIEWERS": str(VIEWERS), "BENCH_TOKENS": str(EVENTS)}
    with serving(_OURS, env) as server:
        path = start_run(server.port, "speak") + "/events"
        job = Job(server.port, [request(path)], "native", EVENTS, VIEWERS, VIEWERS, cap=90)
        seen = client.do(job)
        if seen.error or seen.cut:
            raise RuntimeError(f"fan-out: {seen.error or 'cut off'}")
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/used") as answer:
            used: float = json.load(answer)["seconds"]
    return used / (VIEWERS * EVENTS) * 1e6
