"""Socket.IO: questions in, `stream_<type>` out, over long-polling or WebSocket.

`stream_question`, `stream_resume` and `stream_cancel` are acknowledged with the run's id, or with
why not. Out come `stream_start`, `stream_chunk` `{content}`, `stream_end` `{full_response}` or
`stream_error` `{error}`, and `stream_<type>` for what else a run has to say, each with its `id`,
`<run>:<seq>`. A client that comes back resumes with the last one; the model is not asked again.

What a run says comes from its log, in whichever worker the client is. The message queue, where
the store is Redis, is for what an app itself emits to clients of all workers.
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
from flask_socketio import SocketIO
from socketio.exceptions import ConnectionRefusedError as Refused

from ..concurrency.periodic import Periodic
from ..errors import BadRequest, ConfigError, RequestError, Unavailable
from ..events import new_id
from .base import LOOK, SPREAD, ConnectionLimits
from .socketio_client import Admitted, SocketIOClient
from .socketio_wire import EngineSocket, Taken, check_payload, joined, make_server, upgrades

logger = logging.getLogger(__name__)

#: Where in a request stands who was let in with it.
_LET_IN = "flask_stream.let_in"
#: What a server tells itself, and no client tells it.
_RESERVED = ("connect", "disconnect")
NAMES = {"stream_question": SocketIOClient.ask, "stream_resume": SocketIOClient.resume}
NAMES |= {"stream_cancel": SocketIOClient.cancel}


class Handshake(Protocol):
    """Lets clients in: asked with their handshake, and with what they say of themselves in it."""

    def __call__(self, environ: Mapping[str, Any], auth: Any) -> Admitted:
        """Their desk, a place that has to be left, and who it is. Raises RequestError."""


class SocketIOTransport:
    """All Socket.IO clients of a worker, on a server of ours or one that the app has."""

    def __init__(
        self,
        app: Any,
        bounds: ConnectionLimits,
        queue: str | None,
        draining: Callable[[], bool],
        door: Handshake,
    ) -> None:
        self._app = app
        self._bounds = bounds
        self._draining = draining
        self._door = door
        joined: SocketIO | None = app.extensions.get("socketio")
        #: Whether the server is ours: its requests come to `answer` then.
        self.own = joined is None
        self._server: Any = (joined or make_server(app, bounds, queue)).server
        if self._server is None:
            raise ConfigError("SocketIO", "has no app yet: SocketIO(app) goes before FlaskStream")
        self._engine = self._server.eio
        self._clients: dict[str, SocketIOClient] = {}
        self._lock = threading.Lock()
        self._look: Periodic | None = None
        self._share = 0
        self._attach()

    @property
    def open(self) -> int:
        """How many clients are connected."""
        return len(self._clients)

    def _attach(self) -> None:
        for name, what in NAMES.items():
            self._server.on(name, self._handler(what))
        gone, said = self._engine.handlers["disconnect"], self._engine.handlers["message"]

        def disconnect(session: str, reason: str) -> None:
            try:
                gone(session, reason)
            finally:
                self._leave(session)

        self._engine.on("disconnect", disconnect)
        if not self.own:
            return
        came, bounds = self._engine.handlers["connect"], self._bounds

        def connect(session: str, environ: dict[str, Any]) -> Any:
            self._enter(session, environ.pop(_LET_IN).pop())
            return came(session, environ)

        def message(session: str, data: Any) -> None:
            client = self._clients.get(session)
            if client is None:  # sent away for what it has said before
                return
            try:
                client.wait()
                client.check_attached(data, bounds.size)
                said(session, data)
            except Exception as error:  # no Socket.IO, whatever else it is
                logger.info("socketio: a client is sent away: %s", type(error).__name__)
                client.go()
            if session not in self._clients:
                client.forget()

        self._engine.generate_id = new_id  # 128 random bits, as all that is a secret here
        self._engine.on("connect", connect)
        self._engine.on("message", message)
        hear, trigger = self._server._handle_event, self._server._trigger_event

        def event(session: str, namespace: str, id: int | None, data: Any) -> None:
            if not isinstance(data, list) or not data or not isinstance(data[0], str):
                raise ValueError("no event")
            if data[0] in _RESERVED:
                raise ValueError("no event of a client's")
            hear(session, namespace, id, data)

        def happened(event: str, namespace: str, *args: Any) -> Any:
            # Not as handlers: the app may have its own for these.
            if namespace == "/" and event == "connect":
                self._greet(*args)
            elif namespace == "/" and event == "disconnect":
                self._part(args[0])
            return trigger(event, namespace, *args)

        self._server._handle_event, self._server._trigger_event = event, happened
        self._engine._async = {
            **self._engine._async,
            "websocket": lambda handler, server: EngineSocket(handler, bounds),
        }

    # In

    def prepare(self, request: Request) -> None:
        """See whether a request can be answered here. Raises RequestError."""
        session = request.args.get("sid")
        if "j" in request.args:
            raise BadRequest("There is no JSONP.", field="j")
        upgrades(request)
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

    def answer(self, request: Request, body: bytes, let_in: Admitted | None) -> Response:
        """What Engine.IO answers; `let_in` is for who opens a session. Raises BadRequest."""
        client, stamp = self._clients.get(request.args.get("sid", "")), request.args.get("t")
        if request.method == "POST":
            check_payload(body)
            if client is not None and not client.posts(stamp):
                return Response("OK", mimetype="text/plain")
        # Kept as long as the session: without what this one request was read from.
        environ = {k: v for k, v in request.environ.items() if k != "werkzeug.request"}
        environ["flask.app"] = self._app
        environ["wsgi.input"], environ["CONTENT_LENGTH"] = BytesIO(body), str(len(body))
        waiting = environ[_LET_IN] = [let_in] if let_in is not None else []

        def handle(_: Any, start_response: Any) -> Any:
            try:
                return self._server.handle_request(environ, start_response)
            finally:
                for _, permit, _ in waiting:  # Engine.IO has refused it
                    permit.leave()

        if upgrades(request):
            return Taken(handle)
        polled = request.method == "GET" and client is not None
        with client.polls(stamp) if client is not None and polled else nullcontext():
            # Not our environ: from_app would hand out a copy.
            said = Response.from_app(handle, request.environ, buffered=True)
        return Response(said.get_data(), said.status, said.headers)

    def _enter(self, session: str, let_in: Admitted) -> SocketIOClient:
        # Another's wire knows nothing of several packets in one.
        new = SocketIOClient(self._server, session, let_in, joined if self.own else list)
        with self._lock:
            client = self._clients.setdefault(session, new)
            if self._look is None:
                self._look = Periodic(LOOK, self._look_after, "socketio")
        if client is not new:
            new.leave()
        return client

    def _greet(self, sid: str, environ: dict[str, Any], auth: Any = None) -> None:
        session = self._session(sid)
        client = self._clients.get(session)
        if client is None:
            raise Refused("Connect again.")
        try:
            if auth:
                self._introduce(client, environ, auth)
            else:
                client.begin()
            client.talk.desk.check()
            client.is_called(sid)
        except RequestError as error:
            told = {"status": error.status, "field": error.field}
            raise Refused(error.detail, told) from None
        finally:
            if session not in self._clients:  # it has gone meanwhile
                client.leave()

    def _introduce(self, client: SocketIOClient, environ: dict[str, Any], auth: Any) -> None:
        client.leave()  # it takes one place, not two
        try:
            client.greet(self._door(environ, auth))
        except RequestError:
            try:
                client.greet(self._door(environ, None))
            except RequestError:
                client.go()
            raise

    def _part(self, sid: str) -> None:
        client = self._clients.get(self._session(sid))
        if client is not None:
            client.is_called(None)
            client.talk.leave()

    def _handler(self, what: Callable[[SocketIOClient, Any], dict[str, Any]]) -> Callable[..., Any]:
        def handle(sid: str, *args: Any) -> Any:
            # Whatever asks who may do something asks the app.
            with self._app.app_context():
                session = self._session(sid)
                client = self._clients.get(session)
                if client is None:
                    client = self._join(session, sid, args)
                return None if client is None else client.hear(what, args)

        return handle

    def _join(self, session: str, sid: str, args: Any) -> SocketIOClient | None:
        """Let in a client of the app's own server, when it first asks for a run."""
        environ = self._server.get_environ(sid)
        if environ is None:  # it has gone meanwhile
            return None
        try:
            let_in = self._door(environ, None)
        except RequestError as error:
            told = {"error": error.detail, "status": error.status, "field": error.field}
            self._server.emit("stream_error", {"id": None} | told, to=sid, ignore_queue=True)
            return None
        client = self._enter(session, let_in)
        client.is_called(sid)
        if session not in self._engine.sockets:
            self._leave(session)
        return client

    def _session(self, sid: str) -> str:
        return str(self._server.manager.eio_sid_from_sid(sid, "/"))

    # Going

    def _leave(self, session: str) -> None:
        with self._lock:
            client = self._clients.pop(session, None)
        if client is not None:
            client.leave()

    def _look_after(self) -> None:
        now = time.monotonic()
        for client in list(self._clients.values()):
            if client.sid is None and now - client.since > self._bounds.patience:
                client.go()  # it holds a connection, and does nothing with it
            elif now >= client.check:
                with suppress(KeyError):  # it has just gone
                    client.allowed()
        if self._draining():
            # Not all at once: they all come back to the workers that stay.
            self._share = self._share or len(self._clients) // SPREAD + 1
            for client in list(self._clients.values())[: self._share]:
                client.go()

    def close(self) -> None:
        """Look after clients no more."""
        if self._look is not None:
            self._look.stop()
        if self.own:
            self._server.shutdown()
