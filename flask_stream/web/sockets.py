"""`/ws/<chain>` and `/socket.io/`: what lets a WebSocket or a Socket.IO client in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from flask import Blueprint, Flask, Request, Response, g, request

from ..errors import BadRequest, Unauthorized
from ..security.access import Caller
from ..security.origins import Origins
from ..security.stream_permit import StreamPermit
from ..security.tickets import Ticket
from .bodies import body
from .connection_session import AnyChainSession, ChainSession
from .current import current_caller, current_runs, current_service
from .requests import refuse_head

if TYPE_CHECKING:
    from ..transports.socketio import Handshake, SocketIOTransport
    from ..transports.websocket import WebSocketTransport


def add_websocket(blueprint: Blueprint, sockets: WebSocketTransport) -> None:
    """Have the blueprint answer at `/ws/<chain>`."""
    from flask_sock import Sock  # an extra

    name = f"{blueprint.name}.websocket"

    def let_in() -> None:
        # Before the handshake: after it, there is no status any more to refuse with.
        if request.endpoint == name:
            chain = (request.view_args or {})["chain"]
            public = current_runs().starts.chain(chain).public
            visitor = current_caller()
            access = current_service().access
            access.check_handshake(request, visitor, public=public)
            sockets.prepare(request)
            g.stream_visitor = visitor
            g.stream_permit = StreamPermit(
                access, request, visitor, current_service().settings.recheck
            )

    def let_go(error: BaseException | None) -> None:
        permit: StreamPermit | None = g.pop("stream_permit", None)
        if permit is not None:
            permit.leave()

    def websocket(ws: Any, chain: str) -> None:
        format = request.args.get("format", "native")
        # From here on it leaves by itself: looking at it again is a request within this one.
        permit = g.pop("stream_permit")
        sockets.serve(ws, ChainSession(chain, g.stream_visitor), permit, format)

    blueprint.before_request(let_in)
    blueprint.teardown_request(let_go)
    Sock().route("/ws/<chain>", bp=blueprint)(websocket)


def add_socketio(blueprint: Blueprint, clients: SocketIOTransport, door: Handshake) -> None:
    """Have the blueprint answer at `/socket.io/`."""

    def socketio() -> Response:
        refuse_head()
        settings = current_service().settings
        clients.prepare(request)
        sent = b""
        if request.method == "POST":
            sent = body(settings.max_body, settings.body_timeout)
        opens = "sid" not in request.args
        return clients.answer(request, sent, door(request.environ, None) if opens else None)

    rule = "/socket.io/"
    blueprint.add_url_rule(rule, "socketio", socketio, methods=["GET", "POST"])
    blueprint.add_url_rule(rule, "socketio_websocket", socketio, websocket=True)


class RequestOpener:
    """Who has opened a Socket.IO session: the session's id alone makes nobody that one.

    Whoever was nobody then, and says who it is in `auth` or never, is known by the id alone.
    """

    def __init__(self, visitor: Caller) -> None:
        self._visitor = visitor

    def sends(self, request: Request) -> bool:
        """Whether a later request is of the same principal, with the same ticket if any.

        Raises Forbidden for one that a foreign page makes. What excuses that in the handshake, a
        token or a ticket, excuses it here where it is the same.
        """
        access, opened = current_service().access, self._visitor
        if not opened.explicit:
            _check_page(access.origins, request)
        if not opened.identified:
            return True
        try:
            visitor = access.caller(request)
        except Unauthorized:
            return False
        return visitor.principal == opened.principal and _ticket(visitor) == _ticket(opened)


def _ticket(visitor: Caller) -> Ticket | None:
    return None if visitor.ticket is None else visitor.ticket.ticket


def _check_page(origins: Origins, request: Request) -> None:
    origins.check_page(request, public=True)
    if request.method == "GET":  # as a WebSocket, or a poll, of which a browser says less
        origins.check_handshake(request, public=True)


def make_handshake(app: Flask) -> Handshake:
    """What lets Socket.IO clients in.

    Who says nothing of themselves in the handshake may do so in `auth`, and may ask only then.
    """

    def door(
        environ: Mapping[str, Any], auth: Any
    ) -> tuple[AnyChainSession, StreamPermit, RequestOpener]:
        with app.request_context(_with(environ, auth)) as context:
            now = context.request
            access, visitor = current_service().access, current_caller()
            if not visitor.explicit:
                _check_page(access.origins, now)
            permit = StreamPermit(access, now, visitor, current_service().settings.recheck)
            return AnyChainSession(visitor, now), permit, RequestOpener(visitor)

    return door


def _with(environ: Mapping[str, Any], auth: Any) -> dict[str, Any]:
    """The handshake's request, with the `token` or the `ticket` in what a client says of itself."""
    changed = {k: v for k, v in environ.items() if k != "werkzeug.request"}
    if auth is None:
        return changed
    if not isinstance(auth, dict):
        raise BadRequest("auth is no object.", field="auth")
    for name in ("token", "ticket"):
        if not isinstance(auth.get(name, ""), str):
            raise BadRequest(f"{name} is not text.", field=name)
    if "token" in auth:
        changed["HTTP_AUTHORIZATION"] = f"Bearer {auth['token']}"
    if "ticket" in auth:
        changed["QUERY_STRING"] = urlencode({"ticket": auth["ticket"]}, errors="replace")
    return changed
