"""Socket.IO: questions in, `stream_<type>` out, over long-polling or WebSocket.

`stream_question`, `stream_resume` and `stream_cancel` are acknowledged with the run's id, or with
an error. Out come `stream_start`, `stream_chunk` `{content}`, `stream_end` `{full_response}` or
`stream_error` `{error}`, and `stream_<type>` for all other events of a run, each with its `id`,
`<run>:<seq>`. A client that comes back resumes with the last one; the model is not called again.

Events of a run come from its log. The message queue, where the store is Redis, is for what an app
itself emits to the clients of all workers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from io import BytesIO
from typing import Any, Protocol

from flask import Request, Response
from socketio.exceptions import ConnectionRefusedError as Refused

from ..concurrency.periodic import Periodic
from ..errors import BadRequest, RequestError, Unavailable
from .base import CHECK_INTERVAL, DRAIN_CHECKS, ConnectionLimits
from .socketio_client import Admitted, SocketIOClient
from .socketio_engine import Handler, SocketIOEngine, make_server
from .socketio_payload import check_payload
from .socketio_socket import SOCKET_KEY, join_packets
from .websocket_handshake import AcceptedHandshake, accept_handshake

logger = logging.getLogger(__name__)

#: Where the environment of a request that opens a session has its client.
_ADMITTED_KEY = "flask_stream.admitted"
ACTIONS = {
    "stream_question": SocketIOClient.ask,
    "stream_resume": SocketIOClient.resume,
    "stream_cancel": SocketIOClient.cancel,
}


class Handshake(Protocol):
    """Admits a client by its handshake, and by what it sends as `auth`."""

    def __call__(self, environ: Mapping[str, Any], auth: Any) -> Admitted:
        """Return the client's session, its permit and who it is. Raises RequestError."""


class SocketIOTransport:
    """All Socket.IO clients of a worker, on a server of ours or one that the app has."""

    def __init__(
        self,
        app: Any,
        limits: ConnectionLimits,
        queue: str | None,
        draining: Callable[[], bool],
        handshake: Handshake,
    ) -> None:
        self._app = app
        self._limits = limits
        self._draining = draining
        self._handshake = handshake
        of_app = app.extensions.get("socketio")
        #: Whether the server is ours: then its requests come through our views.
        self.own = of_app is None
        self._engine = SocketIOEngine(of_app or make_server(app, limits, queue))
        self._server = self._engine.server
        self._clients: dict[str, SocketIOClient] = {}
        self._lock = threading.Lock()
        self._periodic: Periodic | None = None
        self._closed_per_check = 0
        for name, action in ACTIONS.items():
            self._server.on(name, self._handler(action))
        self._engine.wrap_handler("disconnect", self._wrap_disconnect)
        if self.own:
            self._engine.wrap_handler("connect", self._wrap_connect)
            self._engine.wrap_handler("message", self._wrap_message)
            self._engine.observe(self._on_connect, self._on_disconnect)
            self._engine.harden(limits)

    @property
    def open(self) -> int:
        """How many clients are connected."""
        return len(self._clients)

    def _wrap_disconnect(self, original: Handler) -> Handler:
        def disconnect(session: str, reason: str) -> None:
            try:
                original(session, reason)
            finally:
                self._remove(session)

        return disconnect

    def _wrap_connect(self, original: Handler) -> Handler:
        def connect(session: str, environ: dict[str, Any]) -> Any:
            self._add(session, environ.pop(_ADMITTED_KEY).pop())
            return original(session, environ)

        return connect

    def _wrap_message(self, original: Handler) -> Handler:
        def message(session: str, data: Any) -> None:
            client = self._clients.get(session)
            if client is None:  # sent away because of an earlier message
                return
            try:
                client.wait_for_room()
                client.check_attachments(data, self._limits.size)
                original(session, data)
            except Exception as error:  # malformed, in whatever way
                logger.info("socketio: a client is sent away: %s", type(error).__name__)
                client.disconnect()
            if session not in self._clients:
                client.forget()

        return message

    # In

    def accept(self, request: Request) -> AcceptedHandshake | None:
        """Check a request; return what accepts it if it opens a WebSocket. Raises RequestError."""
        session = request.args.get("sid")
        if "j" in request.args:
            raise BadRequest("JSONP is not supported.", field="j")
        accepted = None
        if request.headers.get("Upgrade", "").lower() == "websocket":
            accepted = accept_handshake(request.headers.get, self._limits.size)
        if session is None:
            if request.method == "POST":
                raise BadRequest("A session is opened with a GET.", field="sid")
            if self._draining():
                raise Unavailable("This worker is being replaced.", retry_after=1)
        elif (client := self._clients.get(session)) is None or not client.opener.sends(request):
            raise BadRequest(
                "This worker has no such session. With several workers, long-polling needs sticky "
                'sessions, or clients that say transports: ["websocket"].',
                field="sid",
            )
        return accepted

    def upgrade(
        self, request: Request, sock: Any, handshake: AcceptedHandshake, admitted: Admitted | None
    ) -> Response:
        """Return the response that serves a WebSocket on the server's socket."""
        environ = self._environ(request, b"")
        environ[SOCKET_KEY] = (sock, handshake)
        return _Upgrade(self._call_engine(environ, admitted))

    def answer(self, request: Request, body: bytes, admitted: Admitted | None) -> Response:
        """Return Engine.IO's answer. Raises BadRequest.

        `admitted` is the client, if the request opens a session.
        """
        client, stamp = self._clients.get(request.args.get("sid", "")), request.args.get("t")
        if request.method == "POST":
            check_payload(body)
            if client is not None and not client.is_new_post(stamp):
                return Response("OK", mimetype="text/plain")
        handle = self._call_engine(self._environ(request, body), admitted)
        polled = request.method == "GET" and client is not None
        with client.poll(stamp) if client is not None and polled else nullcontext():
            # Not our environ: from_app would hand out a copy.
            response = Response.from_app(handle, request.environ, buffered=True)
        return Response(response.get_data(), response.status, response.headers)

    def _environ(self, request: Request, body: bytes) -> dict[str, Any]:
        """Return an environment that may be kept as long as the session."""
        kept = {k: v for k, v in request.environ.items() if k != "werkzeug.request"}
        kept |= {"wsgi.input": BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        return kept | {"flask.app": self._app}

    def _call_engine(self, environ: dict[str, Any], admitted: Admitted | None) -> Handler:
        waiting = environ[_ADMITTED_KEY] = [admitted] if admitted is not None else []

        def handle(_: Any, start_response: Any) -> Any:
            try:
                return self._server.handle_request(environ, start_response)
            finally:
                for _, permit, _ in waiting:  # Engine.IO has refused it
                    permit.leave()

        return handle

    def _add(self, session: str, admitted: Admitted) -> SocketIOClient:
        # The WebSocket of an app's own server does not split what was joined.
        new = SocketIOClient(self._engine, session, admitted, join_packets if self.own else list)
        with self._lock:
            client = self._clients.setdefault(session, new)
            if self._periodic is None:
                self._periodic = Periodic(CHECK_INTERVAL, self._check_clients, "socketio")
        if client is not new:
            new.leave()
        return client

    def _on_connect(self, sid: str, environ: dict[str, Any], auth: Any = None) -> None:
        session = self._engine.session_of(sid)
        client = self._clients.get(session)
        if client is None:
            raise Refused("Connect again.")
        try:
            self._identify(client, environ, auth) if auth else client.reset()
            client.subscriptions.session.check()
            client.set_sid(sid)
        except RequestError as error:
            raise Refused(error.detail, {"status": error.status, "field": error.field}) from None
        finally:
            if session not in self._clients:  # it has left meanwhile
                client.leave()

    def _identify(self, client: SocketIOClient, environ: dict[str, Any], auth: Any) -> None:
        client.leave()  # so that it takes one place, not two
        try:
            client.admit(self._handshake(environ, auth))
        except RequestError:
            try:
                client.admit(self._handshake(environ, None))
            except RequestError:
                client.disconnect()
            raise

    def _on_disconnect(self, sid: str) -> None:
        client = self._clients.get(self._engine.session_of(sid))
        if client is not None:
            client.set_sid(None)
            client.subscriptions.close()

    def _handler(self, action: Callable[[SocketIOClient, Any], dict[str, Any]]) -> Handler:
        def handle(sid: str, *args: Any) -> Any:
            # Whatever decides what a client may do needs the app.
            with self._app.app_context():
                session = self._engine.session_of(sid)
                client = self._clients.get(session)
                if client is None:
                    client = self._admit_late(session, sid)
                return None if client is None else client.handle(action, args)

        return handle

    def _admit_late(self, session: str, sid: str) -> SocketIOClient | None:
        """Admit a client of the app's own server, when it first asks for a run."""
        environ = self._server.get_environ(sid)
        if environ is None:  # it has left meanwhile
            return None
        try:
            admitted = self._handshake(environ, None)
        except RequestError as error:
            data = {"id": None, "error": error.detail, "status": error.status, "field": error.field}
            self._server.emit("stream_error", data, to=sid, ignore_queue=True)
            return None
        client = self._add(session, admitted)
        client.set_sid(sid)
        if not self._engine.has(session):
            self._remove(session)
        return client

    # Leaving

    def _remove(self, session: str) -> None:
        with self._lock:
            client = self._clients.pop(session, None)
        if client is not None:
            client.leave()

    def _check_clients(self) -> None:
        now = time.monotonic()
        for client in list(self._clients.values()):
            if client.sid is None and now - client.since > self._limits.patience:
                client.disconnect()  # it holds a connection, and does not use it
            elif now >= client.check_due:
                with suppress(KeyError):  # it has just left
                    client.is_allowed()
        if self._draining():
            # Not all at once: they all come back to the workers that stay.
            self._closed_per_check = self._closed_per_check or self.open // DRAIN_CHECKS + 1
            for client in list(self._clients.values())[: self._closed_per_check]:
                client.disconnect()

    def close(self) -> None:
        """Stop the threads of the transport."""
        if self._periodic is not None:
            self._periodic.stop()
        if self.own:
            self._server.shutdown()


class _Upgrade(Response):
    """The response that serves a WebSocket."""

    def __init__(self, handle: Handler) -> None:
        super().__init__()
        self._handle = handle

    def __call__(self, environ: Any, start_response: Any) -> Any:
        return self._handle(environ, start_response)
