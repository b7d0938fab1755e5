"""flask_stream with runs that are silent, or that send slowly to many viewers at once."""

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
#: Seconds between two events, so that each reaches every viewer before the next is sent.
PACE = 0.25

come = 0
everybody = threading.Event()
used: list[float] = []


@app.before_request
def count() -> None:
    """Signal that all viewers are connected."""
    global come
    if request.path.endswith("/events"):
        come += 1
        if come == VIEWERS:
            everybody.set()


@stream.chain("wait")
def wait(question: str) -> Iterator[str]:
    """Send one word, then nothing."""
    yield "."
    time.sleep(600)


@stream.chain("speak")
def speak(question: str) -> Iterator[str]:
    """Send word after word once all viewers are connected, and record the CPU time."""
    everybody.wait(60)
    time.sleep(1)
    used.append(time.process_time())
    for word in words(EVENTS):
        yield word
        time.sleep(PACE)
    used.append(time.process_time())


@app.get("/used")
def tell() -> dict[str, float]:
    """Return the CPU seconds from the first word to the last."""
    return {"seconds": used[1] - used[0]}
