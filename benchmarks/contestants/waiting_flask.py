"""A Flask generator that sends one word and waits: the lower limit for servers of this kind."""

from __future__ import annotations

from collections.abc import Iterator

import gevent.event
from flask import Flask, Response

app = Flask(__name__)
never = gevent.event.Event()


@app.get("/stream")
def stream() -> Response:
    def told() -> Iterator[str]:
        yield "data: .\n\n"
        never.wait()

    return Response(told(), mimetype="text/event-stream")
