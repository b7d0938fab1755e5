"""Request bodies: read with a size limit and a deadline, and parsed."""

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

#: Most bytes of a form's fields, without its file.
_MAX_FIELDS = 200_000


def json_body(max_bytes: int, timeout: float) -> dict[str, Any]:
    """Return the request's body, a JSON object in UTF-8.

    `timeout` is in seconds. Raises RequestError if the body is not a JSON object, is larger than
    `max_bytes`, or does not arrive in time.
    """
    if request.mimetype != "application/json":
        raise UnsupportedType(
            "Send JSON with Content-Type: application/json.", field="Content-Type"
        )
    raw = body(max_bytes, timeout)
    try:
        value = decode(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        raise BadRequest("The body is not valid JSON.", field="body") from None
    if not isinstance(value, dict):
        raise BadRequest("The body is not a JSON object.", field="body")
    return value


def body(max_bytes: int, timeout: float) -> bytes:
    """Return the whole body of the request.

    Raises TooLarge, RequestTimeout, BadRequest for an incomplete body, and UnsupportedType for a
    compressed one.
    """
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedType(
            "Send the body uncompressed, without Content-Encoding.", field="Content-Encoding"
        )
    if (request.content_length or 0) > max_bytes:
        raise TooLarge(f"The body has more than {max_bytes} bytes.", field="body")
    # A chunked body does not announce its length. One byte above the limit shows that it is too
    # large.
    request.max_content_length = None
    raw = _read(max_bytes + 1, timeout)
    if len(raw) > max_bytes:
        raise TooLarge(f"The body has more than {max_bytes} bytes.", field="body")
    if request.content_length is not None and len(raw) < request.content_length:
        raise BadRequest("The body is incomplete.", field="body")
    return raw


def form(max_bytes: int, timeout: float) -> tuple[dict[str, str], tuple[str, bytes]]:
    """Return the fields of a multipart body, and the name and content of its file `document`.

    Raises RequestError like `json_body`.
    """
    raw = body(max_bytes, timeout)
    # The parser's limits apply to fields and part headers, not to files.
    parser = MultiPartParser(max_form_memory_size=_MAX_FIELDS, max_form_parts=20)
    try:
        boundary = request.mimetype_params["boundary"].encode("ascii")
        values, files = parser.parse(BytesIO(raw), boundary, len(raw))
    except (KeyError, ValueError, HTTPException) as error:
        raise BadRequest("The body is not a valid multipart form.", field="body") from error
    for name in files.keys() - {"document"}:
        raise BadRequest(f"{name} is not a known field.", field=name)
    file = files.get("document")
    if file is None:
        raise BadRequest("document is missing.", field="document")
    return dict(values), (file.filename or "", file.read())


def _read(max_bytes: int, timeout: float) -> bytes:
    """Return up to `max_bytes` bytes.

    Raises RequestTimeout, or BadRequest if the connection fails.
    """
    sock = server_socket(request.environ)
    if sock is None:
        return request.stream.read(max_bytes)
    timed_out = threading.Event()

    def stop_reading() -> None:
        timed_out.set()
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RD)

    # The deadline covers the whole body. A timeout for each read would let a slow client send for
    # ever. Shutting down only the reading side leaves the connection open for the response.
    timer = threading.Timer(timeout, stop_reading)
    timer.daemon = True
    timer.start()
    try:
        raw = request.stream.read(max_bytes)
    except Exception as error:  # each server raises its own type of exception
        if timed_out.is_set():
            raise RequestTimeout("The body did not arrive in time.", field="body") from error
        raise BadRequest("The body is incomplete.", field="body") from error
    finally:
        timer.cancel()
    if timed_out.is_set():
        raise RequestTimeout("The body did not arrive in time.", field="body")
    return raw
