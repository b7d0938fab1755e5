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
from contextlib import suppress
from io import BytesIO
from typing import Any, Protocol

from engineio.payload import Payload
from flask import Request, Response
from flask_socketio import SocketIO
from socketio.exceptions import ConnectionRefusedError as Refused

from ..errors import BadRequest, ConfigError, RequestError, Unavailable
from ..events import new_id
from ..line import check_upgrade
from ..tasks import Every
from .base import LOOK, SPREAD, Bounds, Desk, Permit
from .socketio_client import Client
from .socketio_wire import Wire, joined

logger = logging.getLogger(__name__)
#: The engine's own words. Below errors it would tell what people ask.
engine_logger = logging.getLogger(f"{__name__}.engine")
engine_logger.setLevel(logging.ERROR)

#: Where in a request stands who was let in with it.
_LET_IN = "flask_stream.let_in"
LetIn = tuple[Desk, Permit]
NAMES = {"stream_question": Client.ask, "stream_resume": Client.resume}
NAMES |= {"stream_cancel": Client.cancel}


class Door(Protocol):
    """Lets clients in: asked with their handshake, and with what they say of themselves in it."""

    def __call__(self, environ: Mapping[str, Any], auth: Any) -> LetIn:
        """Their desk, and a place that has to be left. Raises RequestError."""


def make_server(app: Any, bounds: Bounds, queue: str | None) -> SocketIO:
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
    # How many packets one request may have: 16, else, and what is more would be lost. The body has
    # its own limit.
    Payload.max_decode_packets = 10_000
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


class SocketIOs:
    """All Socket.IO clients of a worker, on a server of ours or one that the app has."""

    def __init__(
        self, app: Any, bounds: Bounds, queue: str | None, draining: Callable[[], bool], door: Door
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
        self._clients: dict[str, Client] = {}
        self._lock = threading.Lock()
        self._look: Every | None = None
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
        came = self._engine.handlers["connect"]

        def connect(session: str, environ: dict[str, Any]) -> Any:
            self._enter(session, environ.pop(_LET_IN).pop())
            return came(session, environ)

        def message(session: str, data: Any) -> None:
            try:
                said(session, data)
            except Exception as error:  # no Socket.IO, whatever else it is
                logger.info("socketio: a client is sent away: %s", type(error).__name__)
                socket = self._engine.sockets.get(session)
                if socket is not None:
                    socket.close(wait=False)

        self._engine.generate_id = new_id  # 128 random bits, as all that is a secret here
        self._engine.on("connect", connect)
        self._engine.on("message", message)
        self._server.on("connect", self._greet)
        bounds = self._bounds
        self._engine._async = {
            **self._engine._async,
            "websocket": lambda handler, server: Wire(handler, bounds),
        }

    # In

    def prepare(self, request: Request) -> None:
        """See whether a request can be answered here. Raises BadRequest, and Unavailable."""
        headers, session = request.headers, request.args.get("sid")
        if "j" in request.args:
            raise BadRequest("There is no JSONP.", field="j")
        if upgrades(request):
            check_upgrade(headers.get("Sec-WebSocket-Version"), headers.get("Sec-WebSocket-Key"))
        if session is None:
            if self._draining():
                raise Unavailable("This worker is being replaced.", retry_after=1)
        elif session not in self._engine.sockets:
            raise BadRequest(
                "This worker has no such session. With several workers, long-polling needs sticky "
                'sessions, or clients that say transports: ["websocket"].',
                field="sid",
            )

    def answer(self, request: Request, body: bytes, let_in: LetIn | None) -> Response:
        """What Engine.IO answers; `let_in` is for who opens a session."""
        # Kept as long as the session: without what this one request was read from.
        environ = {k: v for k, v in request.environ.items() if k != "werkzeug.request"}
        environ["flask.app"] = self._app
        environ["wsgi.input"], environ["CONTENT_LENGTH"] = BytesIO(body), str(len(body))
        waiting = environ[_LET_IN] = [let_in] if let_in is not None else []

        def handle(_: Any, start_response: Any) -> Any:
            try:
                return self._server.handle_request(environ, start_response)
            finally:
                for _, permit in waiting:  # Engine.IO has refused it
                    permit.leave()

        if upgrades(request):
            return _Taken(handle)
        # Not our environ: from_app would hand out a copy.
        said = Response.from_app(handle, request.environ, buffered=True)
        return Response(said.get_data(), said.status, said.headers)

    def _enter(self, session: str, let_in: LetIn) -> Client:
        # Another's wire knows nothing of several packets in one.
        client = Client(self._server, session, *let_in, joined if self.own else list)
        with self._lock:
            self._clients[session] = client
            if self._look is None:
                self._look = Every(LOOK, self._look_after, "socketio")
        return client

    def _greet(self, sid: str, environ: dict[str, Any], auth: Any = None) -> None:
        client = self._clients[self._session(sid)]
        client.sid = sid
        try:
            if auth:
                let_in = self._door(environ, auth)
                client.leave()
                client.greet(*let_in)
            client.talk.desk.check()
        except RequestError as error:
            told = {"status": error.status, "field": error.field}
            raise Refused(error.detail, told) from None

    def _handler(self, what: Callable[[Client, Any], dict[str, Any]]) -> Callable[..., Any]:
        def handle(sid: str, *args: Any) -> Any:
            # Whatever asks who may do something asks the app.
            with self._app.app_context():
                session = self._session(sid)
                client = self._clients.get(session)
                if client is None:
                    client = self._join(session, sid, args)
                return None if client is None else client.hear(what, args)

        return handle

    def _join(self, session: str, sid: str, args: Any) -> Client | None:
        """Let in a client of the app's own server, when it first asks for a run."""
        try:
            let_in = self._door(self._server.get_environ(sid), None)
        except RequestError as error:
            told = {"error": error.detail, "status": error.status, "field": error.field}
            self._server.emit("stream_error", {"id": None} | told, to=sid, ignore_queue=True)
            return None
        client = self._enter(session, let_in)
        client.sid = sid
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
            if now >= client.check:
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


def upgrades(request: Request) -> bool:
    """Whether this is a WebSocket's handshake."""
    return request.headers.get("Upgrade", "").lower() == "websocket"


class _Taken(Response):
    """An answer that takes over the connection."""

    def __init__(self, handle: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self._handle = handle

    def __call__(self, environ: Any, start_response: Any) -> Any:
        return self._handle(environ, start_response)
