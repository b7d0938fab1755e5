"""The server of Socket.IO, and what it speaks over: bounded in what it takes and waits for.

It reads what clients send as if they were all of good will; so what it could not read, it is not
given.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from engineio.packet import CLOSE, MESSAGE, PONG, Packet
from engineio.payload import Payload
from flask import Request, Response
from flask_socketio import SocketIO
from simple_websocket import ConnectionClosed, Server
from wsproto.events import CloseConnection
from wsproto.utilities import LocalProtocolError

from ..errors import BadRequest
from .base import ConnectionLimits
from .websocket_socket import ROOM, UNHEARD, Line, Slow, check_upgrade, frame, parts

#: The engine's own words. Below errors it would tell what people ask.
engine_logger = logging.getLogger(f"{__name__}.engine")
engine_logger.setLevel(logging.ERROR)

NO_PACKET, TOO_BIG, TOO_SLOW = 1002, 1009, 1013
#: Packets that one request may have.
MOST = 10_000
_MESSAGE = "4"
#: Stands between packets in one text, as in an answer to a poll. JSON has it nowhere.
BETWEEN = "\x1e"


def make_server(app: Any, bounds: ConnectionLimits, queue: str | None) -> SocketIO:
    """A Flask-SocketIO server without a path of its own: its requests come through our views.

    `queue` is the URL of a Redis. Raises ConfigError.
    """
    options: dict[str, Any] = {}
    if queue is not None:
        from socketio import RedisManager

        # Flask-SocketIO's own channel: its processes beside the app emit there.
        options["client_manager"] = RedisManager(
            queue, channel="flask-socketio", logger=engine_logger
        )
    # 16, else, and what is more would be lost. The body has its own limit.
    Payload.max_decode_packets = MOST
    made = SocketIO()
    made.init_app(
        None,
        # The standard library's threads: under gunicorn's gevent worker those are greenlets.
        async_mode="threading",
        # What a client sends is done in the order in which it was sent.
        async_handlers=False,
        manage_session=False,
        # Who may ask is decided in our own views, as for all others.
        cors_allowed_origins=[],
        ping_interval=bounds.heartbeat,
        ping_timeout=bounds.patience,
        max_http_buffer_size=bounds.size,
        logger=engine_logger,
        engineio_logger=engine_logger,
        **options,
    )
    app.extensions["socketio"] = made
    return made


def joined(packets: Sequence[str]) -> list[str]:
    """Return the packets as one message, which `EngineSocket` writes as a frame each."""
    return [f"{BETWEEN}{_MESSAGE}".join(packets)]


def check_payload(body: bytes) -> None:
    """Raise BadRequest for what is no payload of a client's packets."""
    try:
        packets = body.decode().split(BETWEEN)
    except UnicodeDecodeError:
        packets = []
    if not 0 < len(packets) <= MOST or not all(_is_said(one) for one in packets):
        raise BadRequest("The body is no payload of Engine.IO.", field="body")


def _is_said(packet: str) -> bool:
    read = _read(packet)
    # Engine.IO would wait for ever that such a client reads what it thinks of any other.
    return read is not None and read.packet_type in (CLOSE, PONG, MESSAGE)


def _read(packet: str | bytes) -> Packet | None:
    try:
        return Packet(encoded_packet=packet)
    except (ValueError, RecursionError):
        return None


def upgrades(request: Request) -> bool:
    """Whether this is a WebSocket's handshake. Raises BadRequest for half of one."""
    if request.headers.get("Upgrade", "").lower() != "websocket":
        return False
    check_upgrade(request.headers.get)
    return True


class Taken(Response):
    """An answer that takes over the connection."""

    def __init__(self, handle: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self._handle = handle

    def __call__(self, environ: Any, start_response: Any) -> Any:
        return self._handle(environ, start_response)


class EngineSocket:
    """What Engine.IO calls a WebSocket: made for a session's handler, called with a request."""

    def __init__(self, handler: Any, bounds: ConnectionLimits) -> None:
        self._handler = handler
        self._session = handler.__self__
        self._bounds = bounds

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        self._line = line = Line.take(environ, self._bounds.patience)
        self._ws = ws = Server(environ, max_message_size=self._bounds.size)
        ws.ws = ws.ws.connection  # without what is left of the handshake: four kilobytes
        line.full = lambda: ws.connected and len(ws.input_buffer) >= UNHEARD
        # Who changes from long-polling says two things at once; until then it is told nothing.
        self._hurry = 2 if "sid=" in environ["QUERY_STRING"] else 0
        try:
            answer = self._handler(self)
        finally:
            self.close()
            line.hang_up()
        # As servers want to hear that nothing is left to be said.
        if ws.mode == "gunicorn":
            raise StopIteration
        if ws.mode == "werkzeug":
            raise ConnectionError
        return answer

    def wait(self) -> str | bytes | None:
        """The next packet; None when there are no more."""
        timeout = self._bounds.patience if self._hurry else None
        self._hurry = max(0, self._hurry - 1)
        try:
            message: str | bytes | None = self._ws.receive(timeout)
        except ConnectionClosed:
            return None
        self._line.go_on()
        if message is None:
            return None
        size = len(message if isinstance(message, bytes) else message.encode())
        if size > self._bounds.size:  # simple-websocket counts characters
            self._end(TOO_BIG, "Message is too big")
        elif _read(message) is None:
            self._end(NO_PACKET, "This is no packet of Engine.IO.")
        else:
            return message
        return None

    def send(self, message: str | bytes) -> None:
        """Say it in limited time, or several joined, if it is still there."""
        if isinstance(message, bytes):
            with suppress(ConnectionClosed):
                self._ws.send(message)
            return
        try:
            # In parts: each has its time.
            for part in parts(b"".join(map(frame, message.split(BETWEEN))), ROOM):
                self._line.send(part)
                if self._session.last_ping:  # it reads: its pong comes when it has read so far
                    self._session.last_ping = time.time()
        except Slow:
            self._end(TOO_SLOW, "You read too slowly. Resume with stream_resume.")
        except OSError:  # it has gone: nobody waits for what it says next
            self._ws.connected = False
            self._ws.event.set()

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
