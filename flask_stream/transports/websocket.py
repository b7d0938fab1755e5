"""WebSocket: questions in, events out, many runs on one connection.

A text message that is not a JSON object is a question. An object asks, resumes, cancels or answers
an interrupt. Each event is sent as one object, `{"id": "<run>:<seq>", "type": …, "data": {…}}`. A
refusal is an object of type `error`, without an id, and the connection stays open. With
`?format=text` only the text is sent, and `<END_STREAM>` after each answer.

When a connection is lost its runs go on; a new one resumes them by `run` and `after`. The server
closes a connection with 1007 for text that is not UTF-8, 1009 for a message that is too long, 1012
when the worker is being replaced, 1013 when the client reads too slowly or answers no ping, and
4401 when it may no longer read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from flask import Request

from ..concurrency.periodic import Periodic
from ..errors import BadRequest, Unavailable
from .base import CHECK_INTERVAL, DRAIN_CHECKS, ConnectionLimits, ConnectionSession, Permit
from .websocket_connection import FORMATS, RESTART, WebSocketConnection
from .websocket_handshake import AcceptedHandshake, accept_handshake
from .websocket_socket import WebSocket


class WebSocketTransport:
    """All WebSocket connections of a worker."""

    def __init__(self, limits: ConnectionLimits, draining: Callable[[], bool]) -> None:
        self._limits = limits
        self._draining = draining
        self._open: dict[WebSocketConnection, None] = {}
        self._lock = threading.Lock()
        self._periodic: Periodic | None = None
        self._closed_per_check = 0

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._open)

    def accept(self, request: Request) -> AcceptedHandshake:
        """Return what accepts a request as a WebSocket. Nothing is sent yet.

        Raises BadRequest, and Unavailable while the worker is being replaced.
        """
        if request.args.get("format", "native") not in FORMATS:
            raise BadRequest(f"The format is one of {', '.join(FORMATS)}.", field="format")
        handshake = accept_handshake(request.headers.get, self._limits.size)
        if self._draining():
            raise Unavailable("This worker is being replaced.", retry_after=1)
        return handshake

    def serve(
        self,
        sock: Any,
        handshake: AcceptedHandshake,
        session: ConnectionSession,
        permit: Permit,
        format: str,
    ) -> None:
        """Serve one client on the server's socket until it leaves. Gives the permit back."""
        websocket = WebSocket(sock, handshake, self._limits.patience)
        connection = WebSocketConnection(websocket, session, permit, self._limits, format)
        with self._lock:
            self._open[connection] = None
            if self._periodic is None:
                self._periodic = Periodic(CHECK_INTERVAL, self._drain, "websockets")
        try:
            connection.run()
        finally:
            with self._lock:
                self._open.pop(connection, None)
            connection.leave()
            websocket.finish()

    def _drain(self) -> None:
        if not self._draining():
            return
        # Not all at once: they all come back to the workers that stay.
        self._closed_per_check = self._closed_per_check or len(self._open) // DRAIN_CHECKS + 1
        for connection in list(self._open)[: self._closed_per_check]:
            connection.close(RESTART, "This worker is being replaced. Resume with run and after.")

    def close(self) -> None:
        """Stop the thread that sends clients away."""
        if self._periodic is not None:
            self._periodic.stop()
