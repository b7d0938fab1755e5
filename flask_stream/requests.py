"""What comes in over HTTP, checked: bodies, questions and cursors."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import BytesIO
from typing import Any, TypeVar

from flask import abort, request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from werkzeug.exceptions import HTTPException
from werkzeug.formparser import MultiPartParser

from .errors import BadRequest, TooLarge, TooSlow, UnsupportedType
from .events import Cursor


class Start(BaseModel):
    """The body of `POST /runs`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    chain: str
    input: str | dict[str, Any] | None = None
    resume: Any = None
    run: str | None = None
    conversation: str | None = None
    parent: str | None = None
    multitask: str | None = None


class Ask(BaseModel):
    """The body, or the query, of `/stream_<chain>`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    question: str
    run: str | None = None
    conversation: str | None = None
    parent: str | None = None
    multitask: str | None = None
    format: str | None = None


Body = TypeVar("Body", bound=BaseModel)


class Message(BaseModel):
    """What a WebSocket's or Socket.IO's client asks with: one of the texts, or `resume`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    question: str | None = None
    message: str | None = None
    input: str | dict[str, Any] | None = None
    resume: Any = None
    run: str | None = None
    conversation: str | None = None
    session_id: str | None = Field(None, min_length=1, max_length=200)
    parent: str | None = None
    multitask: str | None = None


class MakeTicket(BaseModel):
    """The body of `POST /tickets`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    chain: str
    conversation: str | None = None
    parent: str | None = None
    user: str | None = Field(None, pattern=r"^[A-Za-z0-9_.@+-]{1,128}$")


class Rename(BaseModel):
    """The body of `PATCH /conversations/<id>`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    title: str


def json_body(most: int, patience: float) -> dict[str, Any]:
    """The request's body, of at most so many bytes, that takes at most so many seconds to come.

    Raises RequestError for anything but a JSON object of UTF-8 text.
    """
    if request.mimetype != "application/json":
        raise UnsupportedType(
            "Send JSON, with Content-Type: application/json.", field="Content-Type"
        )
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedType(
            "Send the body as it is, without Content-Encoding.", field="Content-Encoding"
        )
    raw = body(most, patience)
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise BadRequest("The body is not JSON.", field="body") from None
    if not isinstance(value, dict):
        raise BadRequest("The body is not a JSON object.", field="body")
    return value


def body(most: int, patience: float) -> bytes:
    """The request's body, whole. Raises TooLarge, TooSlow, or BadRequest for half of it."""
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
    parser = MultiPartParser(max_form_memory_size=most, max_form_parts=20)
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
    sock = request.environ.get("gunicorn.socket") or request.environ.get("werkzeug.socket")
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
            raise TooSlow("The body did not come in time.", field="body") from error
        raise BadRequest("The body is not whole.", field="body") from error
    finally:
        alarm.cancel()
    if rang.is_set():
        raise TooSlow("The body did not come in time.", field="body")
    return raw


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def fields(model: type[Body], values: Mapping[str, Any]) -> Body:
    """The values as the model has them. Raises BadRequest for the first that does not fit."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = str(first["loc"][0]) if first["loc"] else "body"
        if first["type"] == "missing":
            said = f"{field} is missing."
        elif first["type"] == "extra_forbidden":
            said = f"{field} is not a field."
        elif model is Start and field == "input":
            said = "input is neither text nor an object."
        else:
            said = f"{field} is not text."
        raise BadRequest(said, field=field) from None


def asked(value: str | dict[str, Any], most: int, field: str = "input") -> dict[str, Any]:
    """A run's input: a question, of at most so many characters, or an object of the chain's own.

    Whether the chain takes such an object is not looked at here. Raises BadRequest, which names
    `field`.
    """
    if isinstance(value, dict) and value.keys() == {"question"}:
        value, field = value["question"], "input"
    if isinstance(value, dict):
        if not value:
            raise BadRequest("The input is empty.", field=field)
        _check_text(value, field)
        return value
    if not isinstance(value, str):
        raise BadRequest("The question is not text.", field=field)
    if not value.strip():
        raise BadRequest("The question is empty.", field=field)
    if len(value) > most:
        raise BadRequest(f"The question has more than {most} characters.", field=field)
    _check_text(value, field)
    return {"question": value}


def _check_text(value: Any, field: str) -> None:
    """Raise BadRequest for characters that are no text, wherever they are in a JSON value."""
    for text in _texts(value):
        if "\0" in text:
            raise BadRequest("The text has a NUL character.", field=field)
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise BadRequest("The text has half of a surrogate pair.", field=field)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def cursor(run: str | None) -> Cursor | None:
    """Where a client says that it is; None at the start. Raises BadRequest."""
    # A browser that reconnects repeats the URL, `after` and all, and knows better by now.
    for field, text in (
        ("Last-Event-ID", request.headers.get("Last-Event-ID")),
        ("after", request.args.get("after")),
    ):
        if text:
            try:
                return Cursor.of(run, text) if run else Cursor.parse(text)
            except ValueError:
                form = "<seq> or <run>:<seq>" if run else "<run>:<seq>"
                raise BadRequest(f"A cursor is {form}.", field=field) from None
    return None


def number(name: str, usual: int) -> int:
    """A whole number of the query. Raises BadRequest."""
    text = request.args.get(name)
    if text is None:
        return usual
    if not re.fullmatch("[0-9]{1,9}", text):
        raise BadRequest(f"{name} is no number.", field=name)
    return int(text)


def refuse_head() -> None:
    """Raise 405 for HEAD."""
    # A view of GET is run for HEAD as well, and this one would ask the model.
    if request.method == "HEAD":
        abort(405)
