"""Flask-SocketIO's server, and the parts of it that are not public.

Nothing else in the package uses what python-engineio and python-socketio do not document;
`tests/test_internals_socketio.py` names what an upgrade has moved. It bounds what the server takes
from clients and waits for, which it does not do by itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from engineio.exceptions import EngineIOError
from engineio.payload import Payload
from flask_socketio import SocketIO

from ..errors import ConfigError
from ..events import new_id
from .base import ConnectionLimits
from .socketio_payload import MAX_PACKETS
from .socketio_socket import EngineSocket

#: Below errors, the server logs what people ask.
engine_logger = logging.getLogger(f"{__name__}.engine")
engine_logger.setLevel(logging.ERROR)

#: Events that the server triggers, and that no client may send.
_RESERVED = ("connect", "disconnect")
Handler = Callable[..., Any]


def make_server(app: Any, limits: ConnectionLimits, queue: str | None) -> SocketIO:
    """Return a Flask-SocketIO server without a path: its requests come through our views.

    `queue` is the URL of a Redis. Raises ConfigError.
    """
    options: dict[str, Any] = {}
    if queue is not None:
        from socketio import RedisManager

        # Flask-SocketIO's own channel: other processes of the app emit there.
        options["client_manager"] = RedisManager(
            queue, channel="flask-socketio", logger=engine_logger
        )
    # The default is 16, and packets beyond it are lost. The body has its own limit.
    Payload.max_decode_packets = MAX_PACKETS
    server = SocketIO()
    server.init_app(
        None,
        # The standard library's threads: under gunicorn's gevent worker those are greenlets.
        async_mode="threading",
        # Events of one client are handled in the order in which it sent them.
        async_handlers=False,
        manage_session=False,
        # Our own views decide who may ask, as for all other requests.
        cors_allowed_origins=[],
        ping_interval=limits.heartbeat,
        ping_timeout=limits.patience,
        max_http_buffer_size=limits.size,
        logger=engine_logger,
        engineio_logger=engine_logger,
        **options,
    )
    app.extensions["socketio"] = server
    return server


class SocketIOEngine:
    """One server. A *session* is Engine.IO's id of a connection, a *sid* is Socket.IO's.

    Raises ConfigError for a Flask-SocketIO that was not given its app.
    """

    def __init__(self, socketio: SocketIO) -> None:
        self.server: Any = socketio.server
        if self.server is None:
            raise ConfigError("SocketIO", "has no app yet: SocketIO(app) goes before FlaskStream")
        self._engine = self.server.eio

    # Handlers

    def wrap_handler(self, name: str, wrap: Callable[[Handler], Handler]) -> None:
        """Replace the handler of Engine.IO's `connect`, `message` or `disconnect`."""
        self._engine.on(name, wrap(self._engine.handlers[name]))

    def observe(self, on_connect: Handler, on_disconnect: Handler) -> None:
        """Call these before the app's own handlers of the namespace `/`.

        They are not registered as handlers, because the app may have its own for these events.
        """
        trigger = self.server._trigger_event

        def trigger_event(event: str, namespace: str, *args: Any) -> Any:
            if namespace == "/" and event == "connect":
                on_connect(*args)
            elif namespace == "/" and event == "disconnect":
                on_disconnect(args[0])
            return trigger(event, namespace, *args)

        self.server._trigger_event = trigger_event

    def harden(self, limits: ConnectionLimits) -> None:
        """Refuse malformed events, guessable sessions and clients that do not read."""
        handle = self.server._handle_event

        def handle_event(session: str, namespace: str, id: int | None, data: Any) -> None:
            if not isinstance(data, list) or not data or not isinstance(data[0], str):
                raise ValueError("not an event")
            if data[0] in _RESERVED:
                raise ValueError("a reserved event")
            handle(session, namespace, id, data)

        def websocket(handler: Any, engine: Any) -> EngineSocket:
            socket = handler.__self__  # Engine.IO's, whose pongs come in order

            def on_progress() -> None:
                # Its pong comes only when it has read what was sent before the ping.
                if socket.last_ping:
                    socket.last_ping = time.time()

            return EngineSocket(handler, limits, on_progress)

        self.server._handle_event = handle_event
        self._engine.generate_id = new_id  # 128 random bits, as for all other secrets
        self._engine._async = {**self._engine._async, "websocket": websocket}

    # Sessions

    def session_of(self, sid: str) -> str:
        """Return the session of a client that is connected to the namespace `/`."""
        return str(self.server.manager.eio_sid_from_sid(sid, "/"))

    def has(self, session: str) -> bool:
        """Return whether a session has not ended."""
        return session in self._engine.sockets

    def _open_socket(self, session: str) -> Any:
        socket = self._engine.sockets.get(session)
        return None if socket is None or socket.closed else socket

    def is_open(self, session: str) -> bool:
        """Return whether packets can be sent to a session."""
        return self._open_socket(session) is not None

    def uses_websocket(self, session: str) -> bool:
        """Return whether an open session has a WebSocket."""
        socket = self._open_socket(session)
        return socket is not None and bool(socket.upgraded)

    def is_upgrading(self, session: str) -> bool:
        """Return whether an open session is changing from long-polling to a WebSocket."""
        socket = self._open_socket(session)
        return socket is not None and bool(socket.upgrading)

    def waiting(self, session: str) -> int:
        """Return how many packets wait to be sent to a session."""
        socket = self._open_socket(session)
        return 0 if socket is None else int(socket.queue.qsize())

    def send(self, session: str, packet: str) -> bool:
        """Queue a Socket.IO packet; return False if the session has just ended."""
        try:
            self._engine.send(session, packet)
        except EngineIOError:
            return False
        return True

    def cut(self, session: str) -> None:
        """End a session without a close packet: a client that gets one does not come back."""
        socket = self._open_socket(session)
        if socket is not None:
            socket.close(wait=False, abort=True)

    def pending_attachments(self, session: str) -> tuple[int, int]:
        """Return how many attachments an unfinished event expects, and the bytes that have come."""
        packet = self.server._binary_packet.get(session)
        if packet is None:
            return 0, 0
        return packet.attachment_count, sum(map(len, packet.attachments))

    def forget(self, session: str) -> None:
        """Remove what the server keeps of a session that ended while it connected."""
        manager = self.server.manager
        for namespace in list(manager.get_namespaces()):
            sid = manager.sid_from_eio_sid(session, namespace)
            if sid is not None:
                manager.disconnect(sid, namespace, ignore_queue=True)
        self.server._binary_packet.pop(session, None)
