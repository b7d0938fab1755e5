"""A tutorial's Flask generator: one write per token. Nothing is stored or can be resumed."""

from __future__ import annotations

from collections.abc import Iterator

from flask import Flask, Response, stream_with_context

from ..model import asked, chain, text

app = Flask(__name__)


@app.get("/stream")
def stream() -> Response:
    def told() -> Iterator[str]:
        for chunk in chain.stream(asked):
            yield f"data: {text(chunk)}\n\n"

    return Response(stream_with_context(told()), mimetype="text/event-stream")
