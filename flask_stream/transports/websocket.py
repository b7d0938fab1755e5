"""WebSocket: questions in, events out, many runs on one connection.

A text frame that is no JSON object is a question. An object asks, resumes, cancels or answers.
Out comes one object per event, `{"id": "<run>:<seq>", "type": …, "data": {…}}`; what is refused
is an object of type `error`, without an id, and the connection stays. With `?format=text` it is
the text alone, and `<END_STREAM>` after each answer.

A connection that goes leaves its runs going; a new one resumes them by `run` and `after`. It is
closed with 1007 for text that is none, 1009 for a message that is too long, 1012 when the worker
is being replaced, 1013 when the client is too slow to read or answers no ping, 4401 when it may
no longer read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from flask import Request

from ..concurrency.periodic import Periodic
from ..errors import BadRequest, Unavailable
from .base import LOOK, SPREAD, ConnectionLimits, ConnectionSession, Permit
from .websocket_connection import FORMATS, RESTART, WebSocketConnection
from .websocket_socket import Line, check_upgrade


class WebSocketTransport:
    """All connections of a worker."""

    def __init__(self, bounds: ConnectionLimits, draining: Callable[[], bool]) -> None:
        self._bounds = bounds
        self._draining = draining
        self._open: dict[WebSocketConnection, None] = {}
        self._lock = threading.Lock()
        self._look: Periodic | None = None
        self._share = 0

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._open)

    def prepare(self, request: Request) -> None:
        """Before the handshake: see that there can be one, and stand before its socket.

        Raises BadRequest, and Unavailable where there can be none.
        """
        if request.args.get("format", "native") not in FORMATS:
            raise BadRequest(f"The format is one of {', '.join(FORMATS)}.", field="format")
        check_upgrade(request.headers.get)
        if self._draining():
            raise Unavailable("This worker is being replaced.", retry_after=1)
        Line.take(request.environ, self._bounds.patience)

    def serve(self, ws: Any, desk: ConnectionSession, permit: Permit, format: str) -> None:
        """Talk to one client until it goes. It leaves the permit."""
        ws.max_message_size = self._bounds.size
        ws.ws = ws.ws.connection  # without what is left of the handshake: four kilobytes
        connection = WebSocketConnection(ws, desk, permit, self._bounds, format)
        with self._lock:
            self._open[connection] = None
            if self._look is None:
                self._look = Periodic(LOOK, self._look_after, "websockets")
        try:
            connection.talk()
        finally:
            with self._lock:
                self._open.pop(connection, None)
            connection.leave()
            ws.sock.hang_up()

    def _look_after(self) -> None:
        if not self._draining():
            return
        # Not all at once: they all come back to the workers that stay.
        self._share = self._share or len(self._open) // SPREAD + 1
        for connection in list(self._open)[: self._share]:
            connection.close(RESTART, "This worker is being replaced. Resume with run and after.")

    def close(self) -> None:
        """Look after connections no more."""
        if self._look is not None:
            self._look.stop()
