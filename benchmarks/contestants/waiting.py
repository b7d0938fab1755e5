"""Ours, with runs that are silent, or that speak slowly to many viewers at once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

from flask import Flask, request

from flask_stream import FlaskStream

from ..words import words

app = Flask(__name__)
app.config.from_prefixed_env()
stream = FlaskStream(app, store=os.environ["BENCH_STORE"])
VIEWERS = int(os.environ.get("BENCH_VIEWERS", "0"))
EVENTS = int(os.environ.get("BENCH_TOKENS", "0"))
#: Seconds between two events: long enough for each to reach every viewer before the next.
PACE = 0.25

come = 0
everybody = threading.Event()
used: list[float] = []


@app.before_request
def count() -> None:
    """Know when everybody is here."""
    global come
    if request.path.endswith("/events"):
        come += 1
        if come == VIEWERS:
            everybody.set()


@stream.chain("wait")
def wait(question: str) -> Iterator[str]:
    """One word, then silence."""
    yield "."
    time.sleep(600)


@stream.chain("speak")
def speak(question: str) -> Iterator[str]:
    """Word after word, when everybody has come; what that cost this process is noted."""
    everybody.wait(60)
    time.sleep(1)
    used.append(time.process_time())
    for word in words(EVENTS):
        yield word
        time.sleep(PACE)
    used.append(time.process_time())


@app.get("/used")
def tell() -> dict[str, float]:
    """CPU seconds from the first word to the last."""
    return {"seconds": used[1] - used[0]}
