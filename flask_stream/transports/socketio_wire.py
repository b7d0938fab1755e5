"""The WebSocket that Engine.IO speaks over: bounded in what it takes and in how long it waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from simple_websocket import ConnectionClosed, Server
from wsproto.events import CloseConnection
from wsproto.utilities import LocalProtocolError

from ..line import ROOM, UNHEARD, Line, Slow, frame, parts
from .base import Bounds

TOO_SLOW = 1013
_MESSAGE = "4"
#: Stands between packets in one text, as in an answer to a poll. JSON has it nowhere.
BETWEEN = "\x1e"


def joined(packets: Sequence[str]) -> list[str]:
    """Engine.IO's messages as one, which `Wire` writes at once, each in a frame of its own."""
    return [f"{BETWEEN}{_MESSAGE}".join(packets)]


class Wire:
    """What Engine.IO calls a WebSocket: made for a handler, called with a request."""

    def __init__(self, handler: Callable[[Wire], Any], bounds: Bounds) -> None:
        self._handler = handler
        self._bounds = bounds

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        self._line = line = Line.take(environ, self._bounds.patience)
        self._ws = ws = Server(environ, max_message_size=self._bounds.size)
        ws.ws = ws.ws.connection  # without what is left of the handshake: four kilobytes
        line.full = lambda: ws.connected and len(ws.input_buffer) >= UNHEARD
        try:
            answer = self._handler(self)
        finally:
            line.hang_up()
        # As servers want to hear that nothing is left to be said.
        if ws.mode == "gunicorn":
            raise StopIteration
        if ws.mode == "werkzeug":
            raise ConnectionError
        return answer

    def wait(self) -> str | bytes | None:
        """The next message; None when there are no more."""
        try:
            message: str | bytes | None = self._ws.receive()
        except ConnectionClosed:
            return None
        self._line.go_on()
        return message

    def send(self, message: str | bytes) -> None:
        """Say it in limited time, or several joined. Raises OSError."""
        if isinstance(message, bytes):
            with suppress(ConnectionClosed):
                self._ws.send(message)
            return
        try:
            # In parts: each has its time.
            for part in parts(b"".join(map(frame, message.split(BETWEEN))), ROOM):
                self._line.send(part)
        except Slow:
            self._end(TOO_SLOW, "You read too slowly. Resume with stream_resume.")
            raise

    def close(self) -> None:
        """Say that it is over."""
        self._end(1000, "")

    def _end(self, code: int, reason: str) -> None:
        ws = self._ws
        if ws.connected:
            with suppress(LocalProtocolError):  # it is closed already
                self._line.finish(ws.ws.send(CloseConnection(code, reason)))
            ws.connected = False
            ws.event.set()
