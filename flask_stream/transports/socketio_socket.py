"""Engine.IO's WebSocket transport, on the same sockets as `/ws/<chain>`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from .base import ConnectionLimits
from .socketio_payload import SEPARATOR, decode_packet
from .websocket_frames import binary_frame, join_frames, text_frame
from .websocket_socket import SlowClient, WebSocket, WebSocketClosed, end_request

#: Where a request's environment has the server's socket and the handshake, for `EngineSocket`.
SOCKET_KEY = "flask_stream.websocket"
INVALID_PACKET, TOO_SLOW = 1002, 1013
#: Engine.IO's packet type for a Socket.IO packet, which it puts before the first one itself.
_MESSAGE = "4"
#: A client that changes from long-polling sends so many packets at once, before it is answered.
_UPGRADE_PACKETS = 2


def join_packets(packets: Sequence[str]) -> list[str]:
    """Return Socket.IO packets as one message, which `EngineSocket` sends as a frame each."""
    return [f"{SEPARATOR}{_MESSAGE}".join(packets)]


class EngineSocket:
    """What Engine.IO calls a WebSocket: made for a session's handler, called with a request.

    `on_progress` is called whenever the client has made room for more.
    """

    def __init__(
        self,
        handler: Callable[[Any], Any],
        limits: ConnectionLimits,
        on_progress: Callable[[], None],
    ) -> None:
        self._handler = handler
        self._limits = limits
        self._on_progress = on_progress

    def __call__(self, environ: dict[str, Any], start_response: Any) -> NoReturn:
        sock, handshake = environ.pop(SOCKET_KEY)
        self._websocket = WebSocket(sock, handshake, self._limits.patience)
        self._urgent = _UPGRADE_PACKETS if "sid=" in environ["QUERY_STRING"] else 0
        try:
            self._handler(self)
        finally:
            self._websocket.finish()
        end_request()

    def wait(self) -> str | bytes | None:
        """Return the next packet; None when there are no more."""
        timeout = self._limits.patience if self._urgent else None
        self._urgent = max(0, self._urgent - 1)
        try:
            message = self._websocket.receive(timeout)
        except SlowClient:
            self._close_slow()
            return None
        except WebSocketClosed:
            return None
        if message is not None and decode_packet(message) is None:
            self._websocket.close(INVALID_PACKET, "This is not an Engine.IO packet.")
            return None
        return message

    def send(self, message: str | bytes) -> None:
        """Send a packet, or several joined with `SEPARATOR`, if the client is still there."""
        if isinstance(message, bytes):
            frames = [binary_frame(message)]
        else:
            frames = list(map(text_frame, message.split(SEPARATOR)))
        try:
            for write in join_frames(frames):  # each has a deadline of its own
                self._websocket.send(write)
                self._on_progress()
        except SlowClient:
            self._close_slow()
        except OSError:  # it has left, which `wait` reports
            pass

    def _close_slow(self) -> None:
        self._websocket.close(TOO_SLOW, "You read too slowly. Resume with stream_resume.")

    def close(self) -> None:
        """Close the connection, unless it is closed."""
        with suppress(OSError):
            self._websocket.close(1000, "")
