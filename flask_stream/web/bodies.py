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

#: Bytes of a form's fields, without its file.
_FORM = 200_000


def json_body(most: int, patience: float) -> dict[str, Any]:
    """Return the request's body, a JSON object of at most `most` bytes, within `patience` s.

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
    """Return the whole body of the request.

    Raises TooLarge, RequestTimeout, BadRequest for an incomplete body, and UnsupportedType for a
    compressed one.
    """
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedType(
            "Send the body as it is, without Content-Encoding.", field="Content-Encoding"
        )
    if (request.content_length or 0) > most:
        raise TooLarge(f"The body has more than {most} bytes.", field="body")
    # Read up to the limit and one byte more: a chunked body does not announce its length.
    request.max_content_length = None
    raw = _read(most + 1, patience)
    if len(raw) > most:
        raise TooLarge(f"The body has more than {most} bytes.", field="body")
    if request.content_length is not None and len(raw) < request.content_length:
        raise BadRequest("The body is not whole.", field="body")
    return raw


def form(most: int, patience: float) -> tuple[dict[str, str], tuple[str, bytes]]:
    """Return the fields of a multipart body, and the name and content of its file `document`.

    Raises RequestError as `json_body` does.
    """
    raw = body(most, patience)
    # This limits fields and part headers, not files.
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
    """Return up to `most` bytes. Raises RequestTimeout, or BadRequest for an incomplete body."""
    sock = server_socket(request.environ)
    if sock is None:
        return request.stream.read(most)
    timed_out = threading.Event()

    def stop_reading() -> None:
        timed_out.set()
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RD)

    # One deadline for all reads: with one for each, a slow client could go on for ever. Shutting
    # the reading side ends the read, and the response can still be written.
    timer = threading.Timer(patience, stop_reading)
    timer.daemon = True
    timer.start()
    try:
        raw = request.stream.read(most)
    except Exception as error:  # each server raises its own exception here
        if timed_out.is_set():
            raise RequestTimeout("The body did not come in time.", field="body") from error
        raise BadRequest("The body is not whole.", field="body") from error
    finally:
        timer.cancel()
    if timed_out.is_set():
        raise RequestTimeout("The body did not come in time.", field="body")
    return raw
