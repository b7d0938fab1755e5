"""The routes `/ws/<chain>` and `/socket.io/`: they admit WebSocket and Socket.IO clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from flask import Blueprint, Flask, Request, Response, request

from ..errors import BadRequest, Unauthorized, Unavailable
from ..security.access import Caller
from ..security.origins import Origins
from ..security.stream_permit import StreamPermit
from ..security.tickets import Ticket
from .bodies import body
from .connection_session import AnyChainSession, ChainSession
from .current import current_caller, current_runs, current_service
from .requests import refuse_head
from .server_socket import server_socket

if TYPE_CHECKING:
    from ..transports.socketio import Handshake, SocketIOTransport
    from ..transports.websocket import WebSocketTransport


def add_websocket(blueprint: Blueprint, transport: WebSocketTransport) -> None:
    """Have the blueprint answer at `/ws/<chain>`."""
    from ..transports.websocket_socket import end_request  # an extra

    class ClosedWebSocket(Response):
        """The response of a request whose connection was a WebSocket."""

        def __call__(self, environ: Any, start_response: Any) -> Any:
            end_request()

    def websocket(chain: str) -> Response:
        # All checks come before the handshake: after it, there is no status to refuse with.
        public = current_runs().admission.chain(chain).public
        caller = current_caller()
        service = current_service()
        service.access.check_handshake(request, caller, public=public)
        handshake = transport.accept(request)
        sock = _socket(request)
        permit = StreamPermit(service.access, request, caller, service.settings.recheck)
        try:
            session = ChainSession(chain, caller)
            format = request.args.get("format", "native")
            transport.serve(sock, handshake, session, permit, format)
        finally:
            permit.leave()
        return ClosedWebSocket()

    blueprint.add_url_rule("/ws/<chain>", "websocket", websocket, websocket=True)


def _socket(request: Request) -> Any:
    """Return the server's socket for a WebSocket. Raises Unavailable."""
    sock = server_socket(request.environ)
    if sock is None:
        raise Unavailable("This server has no WebSockets.")
    return sock


def add_socketio(blueprint: Blueprint, transport: SocketIOTransport, handshake: Handshake) -> None:
    """Have the blueprint answer at `/socket.io/`."""

    def socketio() -> Response:
        refuse_head()
        settings = current_service().settings
        accepted = transport.accept(request)
        sock = _socket(request) if accepted is not None else None
        sent = b""
        if request.method == "POST":
            sent = body(settings.max_body, settings.body_timeout)
        admitted = handshake(request.environ, None) if "sid" not in request.args else None
        if accepted is not None:
            return transport.upgrade(request, sock, accepted, admitted)
        return transport.answer(request, sent, admitted)

    rule = "/socket.io/"
    blueprint.add_url_rule(rule, "socketio", socketio, methods=["GET", "POST"])
    blueprint.add_url_rule(rule, "socketio_websocket", socketio, websocket=True)


class RequestOpener:
    """The caller that has opened a Socket.IO session: its id alone does not prove who one is.

    A caller who was anonymous then, and identifies itself in `auth` or never, is known by the
    session's id alone.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def sends(self, request: Request) -> bool:
        """Return whether a later request has the same principal, and the same ticket if any.

        Raises Forbidden for a request from a foreign page. A token or a ticket that excused one in
        the handshake excuses it here, if it is the same.
        """
        access, opener = current_service().access, self._caller
        if not opener.explicit:
            _check_page(access.origins, request)
        if not opener.identified:
            return True
        try:
            caller = access.caller(request)
        except Unauthorized:
            return False
        return caller.principal == opener.principal and _ticket(caller) == _ticket(opener)


def _ticket(caller: Caller) -> Ticket | None:
    return None if caller.ticket is None else caller.ticket.ticket


def _check_page(origins: Origins, request: Request) -> None:
    origins.check_page(request, public=True)
    if request.method == "GET":  # of a WebSocket, or a poll, a browser tells less
        origins.check_handshake(request, public=True)


def make_handshake(app: Flask) -> Handshake:
    """Return the function that admits Socket.IO clients.

    A client that does not identify itself in the handshake may do so in `auth`, and may ask only
    then.
    """

    def handshake(
        environ: Mapping[str, Any], auth: Any
    ) -> tuple[AnyChainSession, StreamPermit, RequestOpener]:
        with app.request_context(_with_auth(environ, auth)) as context:
            request = context.request
            service, caller = current_service(), current_caller()
            if not caller.explicit:
                _check_page(service.access.origins, request)
            permit = StreamPermit(service.access, request, caller, service.settings.recheck)
            return AnyChainSession(caller, request), permit, RequestOpener(caller)

    return handshake


def _with_auth(environ: Mapping[str, Any], auth: Any) -> dict[str, Any]:
    """Return the handshake's request with the `token` or the `ticket` of `auth`."""
    changed = {k: v for k, v in environ.items() if k != "werkzeug.request"}
    if auth is None:
        return changed
    if not isinstance(auth, dict):
        raise BadRequest("auth is not an object.", field="auth")
    for name in ("token", "ticket"):
        if not isinstance(auth.get(name, ""), str):
            raise BadRequest(f"{name} is not text.", field=name)
    if "token" in auth:
        changed["HTTP_AUTHORIZATION"] = f"Bearer {auth['token']}"
    if "ticket" in auth:
        changed["QUERY_STRING"] = urlencode({"ticket": auth["ticket"]}, errors="replace")
    return changed
