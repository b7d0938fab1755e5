"""Checks of what clients send: fields of bodies and messages, inputs, cursors and numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from flask import abort, request
from pydantic import BaseModel, ValidationError

from ..errors import BadRequest
from ..events import Cursor

#: How deeply an object may be nested, and how many values it may have.
_MAX_DEPTH, _MAX_VALUES = 64, 10_000

Body = TypeVar("Body", bound=BaseModel)


def validated(model: type[Body], values: Mapping[str, Any]) -> Body:
    """Return the values as an instance of `model`. Raises BadRequest, which names the field."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = str(first["loc"][0]) if first["loc"] else "body"
        if first["type"] == "missing":
            detail = f"{field} is missing."
        elif first["type"] == "extra_forbidden":
            detail = f"{field} is not a known field."
        elif field == "input":
            detail = "input must be text or an object."
        elif first["type"] == "string_type":
            detail = f"{field} must be text."
        else:
            detail = f"{field}: {first['msg']}."
        raise BadRequest(detail, field=field) from None


def checked_input(
    value: str | dict[str, Any], max_question: int, max_total: int, field: str = "input"
) -> dict[str, Any]:
    """Return a run's input: an object, or `{"question": …}` for a text.

    A question has at most `max_question` characters. All texts of an object together have at most
    `max_total`. The chain itself checks later whether it accepts the object. Raises BadRequest,
    which names `field`.
    """
    if isinstance(value, dict) and value.keys() == {"question"}:
        value, field = value["question"], "input"
    if isinstance(value, dict):
        if not value:
            raise BadRequest("The input is empty.", field=field)
        if value.keys() == {"resume"}:
            raise BadRequest("Send resume as a field of its own, not inside input.", field=field)
        _check_value(value, max_total, field)
        return value
    if not isinstance(value, str):
        raise BadRequest("The question must be text.", field=field)
    if not value.strip():
        raise BadRequest("The question is empty.", field=field)
    if len(value) > max_question:
        raise BadRequest(f"The question has more than {max_question} characters.", field=field)
    _check_text(value, field)
    return {"question": value}


def checked_answer(value: Any, max_total: int) -> dict[str, Any]:
    """Return the input of a run that answers an interrupt. Raises BadRequest.

    All texts of the answer together have at most `max_total` characters.
    """
    _check_value(value, max_total, "resume")
    return {"resume": value}


def _check_value(value: Any, max_total: int, field: str) -> None:
    """Raise BadRequest if a value is too large, too deeply nested, or cannot be stored as JSON."""
    # A stack instead of recursion: clients choose the depth.
    stack, count, length = [(value, 0)], 0, 0
    while stack:
        item, depth = stack.pop()
        count += len(item) if isinstance(item, dict | list) else 0
        if depth > _MAX_DEPTH:
            raise BadRequest(f"{field} has more than {_MAX_DEPTH} nested levels.", field=field)
        if count > _MAX_VALUES:
            raise BadRequest(f"{field} has more than {_MAX_VALUES} values.", field=field)
        if isinstance(item, dict):
            stack += [(name, depth) for name in item]
            stack += [(inner, depth + 1) for inner in item.values()]
        elif isinstance(item, list):
            stack += [(inner, depth + 1) for inner in item]
        elif isinstance(item, float) and not math.isfinite(item):
            raise BadRequest("A number is too large.", field=field)
        elif isinstance(item, str):
            length += len(item)
            _check_text(item, field)
    if length > max_total:
        raise BadRequest(f"The texts have more than {max_total} characters in total.", field=field)


def _check_text(text: str, field: str) -> None:
    """Raise BadRequest for characters that UTF-8 or a store cannot hold."""
    if "\0" in text:
        raise BadRequest("The text contains a NUL character.", field=field)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequest("The text contains an unpaired surrogate.", field=field) from None


def cursor(run: str | None) -> Cursor | None:
    """Return the cursor that the request names, or None without one. Raises BadRequest."""
    # The header comes first: a browser that reconnects repeats the URL, so `after` is out of date.
    for field, text in (
        ("Last-Event-ID", request.headers.get("Last-Event-ID")),
        ("lastEventId", request.args.get("lastEventId")),  # sent by event-source-polyfill
        ("after", request.args.get("after")),
    ):
        if text:
            try:
                return Cursor.of(run, text) if run else Cursor.parse(text)
            except ValueError:
                form = "<seq> or <run>:<seq>" if run else "<run>:<seq>"
                raise BadRequest(f"{field} must have the form {form}.", field=field) from None
    return None


def query_integer(name: str, default: int) -> int:
    """Return a whole number from the query string. Raises BadRequest."""
    text = request.args.get(name)
    if text is None:
        return default
    if not re.fullmatch("[0-9]{1,9}", text):
        raise BadRequest(f"{name} must be a whole number.", field=name)
    return int(text)


def refuse_head() -> None:
    """Raise 405 for HEAD."""
    # Flask runs the view of GET for HEAD as well, and these views call the model.
    if request.method == "HEAD":
        abort(405)
