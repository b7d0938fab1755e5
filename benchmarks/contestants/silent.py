"""The floor of an open connection: a Flask generator that says one thing, and then nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from flask import Flask, Response, stream_with_context

app = Flask(__name__)
never = threading.Event()


@app.get("/stream")
def stream() -> Response:
    def events() -> Iterator[str]:
        yield "data: hello\n\n"
        never.wait()

    return Response(stream_with_context(events()), mimetype="text/event-stream")
