"""The tutorial's Flask generator: a write per token, nothing stored, nothing to come back to."""

from __future__ import annotations

from collections.abc import Iterator

from flask import Flask, Response, stream_with_context

from ..model import INPUT, chosen, text

app = Flask(__name__)
chain = chosen()


@app.get("/stream")
def stream() -> Response:
    def told() -> Iterator[str]:
        for piece in chain.stream(INPUT):
            yield f"data: {text(piece)}\n\n"

    return Response(stream_with_context(told()), mimetype="text/event-stream")
