"""Bodies of requests: read to a limit and a deadline, and taken apart."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from io import BytesIO
from typing import Any

from flask import request
from werkzeug.exceptions import HTTPException
from werkzeug.formparser import MultiPartParser

from ..errors import BadRequest, RequestTimeout, TooLarge, UnsupportedType
from ..events import decode
from .server_socket import server_socket

#: Bytes that the fields of a form may have, besides its file.
_FORM = 200_000


def json_body(most: int, patience: float) -> dict[str, Any]:
    """The request's body, of at most so many bytes, that takes at most so many seconds to come.

    Raises RequestError for anything but a JSON object of UTF-8 text.
    """
    if request.mimetype != "application/json":
        raise UnsupportedType(
            "Send JSON, with Content-Type: application/json.", field="Content-Type"
        )
    raw = body(most, patience)
    try:
        value = decode(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        raise BadRequest("The body is not JSON.", field="body") from None
    if not isinstance(value, dict):
        raise BadRequest("The body is not a JSON object.", field="body")
    return value


def body(most: int, patience: float) -> bytes:
    """The request's body, whole.

    Raises TooLarge, TooSlow, BadRequest for half of it, and UnsupportedType for one packed.
    """
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedType(
            "Send the body as it is, without Content-Encoding.", field="Content-Encoding"
        )
    if (request.content_length or 0) > most:
        raise TooLarge(f"The body has more than {most} bytes.", field="body")
    # Read here to the limit and a byte: a chunked body says nothing of its length beforehand.
    request.max_content_length = None
    raw = _read(most + 1, patience)
    if len(raw) > most:
        raise TooLarge(f"The body has more than {most} bytes.", field="body")
    if request.content_length is not None and len(raw) < request.content_length:
        raise BadRequest("The body is not whole.", field="body")
    return raw


def form(most: int, patience: float) -> tuple[dict[str, str], tuple[str, bytes]]:
    """The fields of a multipart body, and its one file, `document`: name and content.

    Raises RequestError as `json_body` does.
    """
    raw = body(most, patience)
    # Of fields and of the headers of parts, which are read where all others wait; not of files.
    parser = MultiPartParser(max_form_memory_size=_FORM, max_form_parts=20)
    try:
        boundary = request.mimetype_params["boundary"].encode("ascii")
        values, files = parser.parse(BytesIO(raw), boundary, len(raw))
    except (KeyError, ValueError, HTTPException) as error:
        raise BadRequest("The body is no form.", field="body") from error
    for name in files.keys() - {"document"}:
        raise BadRequest(f"{name} is not a field.", field=name)
    file = files.get("document")
    if file is None:
        raise BadRequest("document is missing.", field="document")
    return dict(values), (file.filename or "", file.read())


def _read(most: int, patience: float) -> bytes:
    """Up to so many bytes of the body. Raises TooSlow, or BadRequest for half a body."""
    sock = server_socket(request.environ)
    if sock is None:
        return request.stream.read(most)
    rang = threading.Event()

    def ring() -> None:
        rang.set()
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RD)

    # Of all reads together: a deadline for each would let a byte now and then go on for ever.
    # Nothing is read any more once this side is shut, and the answer can still be written.
    alarm = threading.Timer(patience, ring)
    alarm.daemon = True
    alarm.start()
    try:
        raw = request.stream.read(most)
    except Exception as error:  # what a server raises for a body that ends too soon is its own
        if rang.is_set():
            raise RequestTimeout("The body did not come in time.", field="body") from error
        raise BadRequest("The body is not whole.", field="body") from error
    finally:
        alarm.cancel()
    if rang.is_set():
        raise RequestTimeout("The body did not come in time.", field="body")
    return raw
