"""The opening handshake of a WebSocket, checked before anything is answered."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from websockets.datastructures import Headers
from websockets.exceptions import InvalidHeader
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from ..errors import BadRequest, InternalError

#: The library logs each connection that opens or closes, at INFO.
_logger = logging.getLogger(f"{__name__}.protocol")
_logger.setLevel(logging.WARNING)
#: The headers that open a WebSocket. The others offer extensions and subprotocols, which are
#: not used: to compress would cost a third of a megabyte per connection, for frames of a few bytes.
_HEADERS = ("Connection", "Upgrade", "Sec-WebSocket-Key", "Sec-WebSocket-Version")


@dataclass(frozen=True, slots=True)
class AcceptedHandshake:
    """The `101` answer that is to be sent, and the protocol of what follows it."""

    response: bytes
    protocol: ServerProtocol


def accept_handshake(header: Callable[[str], str | None], max_size: int) -> AcceptedHandshake:
    """Return what accepts a request as a WebSocket. Nothing is sent yet. Raises BadRequest.

    `header` returns the value of a request header. Messages may have `max_size` bytes.
    """
    if not header("Host"):
        raise BadRequest("The request has no Host header.", field="Host")
    headers = Headers()
    for name in _HEADERS:
        value = header(name)
        if value is not None:
            headers[name] = value
    opening = ServerProtocol(logger=_logger)
    response = opening.accept(Request("/", headers))
    error = opening.handshake_exc
    if isinstance(error, InvalidHeader):  # InvalidUpgrade and InvalidHeaderValue are, too
        raise BadRequest(
            f"The {error.name} header does not open a WebSocket.", field=error.name
        ) from error
    if error is not None or response.status_code != 101:
        raise InternalError
    # The server has read the request, so this protocol begins after it.
    protocol = ServerProtocol(state=State.OPEN, max_size=max_size, logger=_logger)
    return AcceptedHandshake(response.serialize(), protocol)
