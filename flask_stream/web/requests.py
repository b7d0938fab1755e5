"""What is asked, checked: the fields of bodies and messages, questions and cursors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from flask import abort, request
from pydantic import BaseModel, ValidationError

from ..errors import BadRequest
from ..events import Cursor

#: How deep an object may be, and how many values it may have.
_DEEP, _MANY = 64, 10_000


Body = TypeVar("Body", bound=BaseModel)


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
        elif field == "input":
            said = "input is neither text nor an object."
        elif first["type"] == "string_type":
            said = f"{field} is not text."
        else:
            said = f"{field}: {first['msg']}."
        raise BadRequest(said, field=field) from None


def asked(
    value: str | dict[str, Any], most: int, longest: int, field: str = "input"
) -> dict[str, Any]:
    """A run's input: a question, of at most `most` characters, or an object of the chain's own.

    All texts of an object have at most `longest` characters together. Whether the chain takes
    such an object is not looked at here. Raises BadRequest, which names `field`.
    """
    if isinstance(value, dict) and value.keys() == {"question"}:
        value, field = value["question"], "input"
    if isinstance(value, dict):
        if not value:
            raise BadRequest("The input is empty.", field=field)
        if value.keys() == {"resume"}:
            raise BadRequest("Send resume beside input, or the text as a question.", field=field)
        _check_value(value, longest, field)
        return value
    if not isinstance(value, str):
        raise BadRequest("The question is not text.", field=field)
    if not value.strip():
        raise BadRequest("The question is empty.", field=field)
    if len(value) > most:
        raise BadRequest(f"The question has more than {most} characters.", field=field)
    _check_text(value, field)
    return {"question": value}


def answered(value: Any, most: int) -> dict[str, Any]:
    """A run's input that is an answer, of at most so many characters. Raises BadRequest."""
    _check_value(value, most, "resume")
    return {"resume": value}


def _check_value(value: Any, most: int, field: str) -> None:
    """Raise BadRequest for what is too much, too deep, or no JSON, wherever it is in a value."""
    left, values, length = [(value, 0)], 0, 0
    while left:
        one, depth = left.pop()
        values += len(one) if isinstance(one, dict | list) else 0
        if depth > _DEEP or values > _MANY:
            told = f"is deeper than {_DEEP}" if depth > _DEEP else f"has more than {_MANY} values"
            raise BadRequest(f"{field} {told}.", field=field)
        if isinstance(one, dict):
            left += [(name, depth) for name in one]
            left += [(inner, depth + 1) for inner in one.values()]
        elif isinstance(one, list):
            left += [(inner, depth + 1) for inner in one]
        elif isinstance(one, float) and not math.isfinite(one):
            raise BadRequest("A number is too large.", field=field)
        elif isinstance(one, str):
            length += len(one)
            _check_text(one, field)
    if length > most:
        raise BadRequest(f"The texts have more than {most} characters together.", field=field)


def _check_text(text: str, field: str) -> None:
    """Raise BadRequest for characters that are no text."""
    if "\0" in text:
        raise BadRequest("The text has a NUL character.", field=field)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequest("The text has half of a surrogate pair.", field=field) from None


def cursor(run: str | None) -> Cursor | None:
    """Where a client says that it is; None at the start. Raises BadRequest."""
    # A browser that reconnects repeats the URL, `after` and all, and knows better by now.
    for field, text in (
        ("Last-Event-ID", request.headers.get("Last-Event-ID")),
        ("lastEventId", request.args.get("lastEventId")),  # as event-source-polyfill sends it
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
