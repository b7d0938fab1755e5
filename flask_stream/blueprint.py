"""URL → runs → transport: the HTTP interface, and nothing but it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from flask import Blueprint, Response, abort, current_app, render_template, request, url_for
from flask.typing import ResponseReturnValue
from pydantic import BaseModel, ConfigDict, ValidationError
from werkzeug.exceptions import HTTPException

from .access import check_start
from .dialects.base import Dialect
from .errors import BadRequest, NotFound, RequestError, TooLarge, UnsupportedType
from .events import Cursor
from .stores.base import Run

if TYPE_CHECKING:
    from .extension import Service

HERE = Path(__file__).parent
#: In a wheel the templates are inside the package; in a checkout they stand beside it.
TEMPLATES = next(p for p in (HERE / "templates", HERE.parent / "templates") if p.is_dir())
#: Seconds that a request to cancel waits for the model to have stopped.
CANCEL_WAIT = 10.0


class Start(BaseModel):
    """The body of `POST /runs`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    chain: str
    input: str | dict[str, Any]
    run: str | None = None
    conversation: str | None = None
    parent: str | None = None


class Ask(BaseModel):
    """The body, or the query, of `/stream_<chain>`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    question: str
    run: str | None = None
    conversation: str | None = None
    parent: str | None = None
    format: str | None = None


Body = TypeVar("Body", bound=BaseModel)


def make_blueprint(page: bool) -> Blueprint:
    """The blueprint of one app; with the page or without."""
    stream = Blueprint(
        "stream",
        __name__,
        static_folder="static",
        static_url_path="/static/stream",
        template_folder=str(TEMPLATES),
    )
    stream.add_url_rule("/runs", view_func=start, methods=["POST"])
    stream.add_url_rule("/runs/<run>", view_func=status)
    stream.add_url_rule("/runs/<run>/events", view_func=events)
    stream.add_url_rule("/runs/<run>/cancel", view_func=cancel, methods=["POST"])
    stream.add_url_rule("/stream_<chain>", view_func=ask, methods=["GET", "POST"])
    if page:
        stream.add_url_rule("/", view_func=chat)
    stream.register_error_handler(RequestError, problem)
    stream.register_error_handler(HTTPException, http_problem)
    return stream


def service() -> Service:
    """The service of the app that handles this request."""
    found: Service = current_app.extensions["flask_stream"]
    return found


# Views


def start() -> ResponseReturnValue:
    """`POST /runs`: start a run, or find the one of that id."""
    check_start(request, service().origins)
    body = _fields(Start, _json())
    run, new = service().runs.start(
        body.chain,
        _input(body.input),
        run=body.run,
        conversation=body.conversation,
        parent=body.parent,
    )
    headers = {"Location": url_for(".status", run=run.id)}
    return _described(run), 201 if new else 200, headers


def status(run: str) -> ResponseReturnValue:
    """`GET /runs/<run>`: the run as JSON."""
    return _described(service().runs.get(run))


def events(run: str) -> ResponseReturnValue:
    """`GET /runs/<run>/events`: the run's log from a cursor on, and what is still to come."""
    _not_head()
    cursor = _cursor(run) or Cursor(run, 0)
    if cursor.run != run:
        raise BadRequest("The cursor is of another run.", field="Last-Event-ID")
    return _stream(cursor, request.args.get("format"))


def cancel(run: str) -> ResponseReturnValue:
    """`POST /runs/<run>/cancel`: answers when the model has really stopped."""
    return _described(service().runs.cancel(run, CANCEL_WAIT))


def ask(chain: str) -> ResponseReturnValue:
    """`/stream_<chain>`: start and stream in one request, or resume what it had started."""
    _not_head()
    posted = request.method == "POST"
    service().runs.chain(chain)
    cursor = _cursor(None)
    if cursor is not None:
        # A browser repeats the whole request when it reconnects, question and all.
        return _stream(cursor, request.args.get("format"))
    check_start(request, service().origins)
    known = {name: v for name, v in request.args.items() if name in Ask.model_fields}
    body = _fields(Ask, known | _json() if posted else known)
    dialect = _dialect(body.format)
    run, _ = service().runs.start(
        chain,
        _input(body.question, field="question"),
        run=body.run,
        conversation=body.conversation,
        parent=body.parent,
    )
    return _stream(Cursor(run.id, 0), dialect.name)


def chat() -> ResponseReturnValue:
    """`GET /`: the page."""
    settings = service().settings
    data = {
        "chain": "chat",
        "runs": url_for(".start"),
        "max_question": settings.max_question,
        "title": settings.title,
    }
    return render_template("chat.html", data=data)


# What comes in


def _json() -> dict[str, Any]:
    """The request's body. Raises RequestError for anything but a JSON object of UTF-8 text."""
    if request.mimetype != "application/json":
        raise UnsupportedType("Send JSON, with Content-Type: application/json.")
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedType("Send the body as it is, without Content-Encoding.")
    most = service().settings.max_body
    # Read here to the limit and a byte: a chunked body says nothing of its length beforehand.
    request.max_content_length = None
    raw = request.stream.read(most + 1) if (request.content_length or 0) <= most else None
    if raw is None or len(raw) > most:
        raise TooLarge(f"The body has more than {most} bytes.")
    try:
        body = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise BadRequest("The body is not JSON.", field="body") from None
    if not isinstance(body, dict):
        raise BadRequest("The body is not a JSON object.", field="body")
    return body


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _fields(model: type[Body], values: Mapping[str, Any]) -> Body:
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


def _input(value: str | dict[str, Any], field: str = "input") -> dict[str, Any]:
    """A run's input, its question checked. Raises BadRequest."""
    if isinstance(value, dict):
        extra = value.keys() - {"question"}
        if extra:
            raise BadRequest(f"{min(extra)} is not a field of input.", field="input")
        value = value.get("question", "")
        field = "input"
    if not isinstance(value, str):
        raise BadRequest("The question is not text.", field=field)
    most = service().settings.max_question
    if not value.strip():
        raise BadRequest("The question is empty.", field=field)
    if len(value) > most:
        raise BadRequest(f"The question has more than {most} characters.", field=field)
    if "\0" in value:
        raise BadRequest("The question has a NUL character.", field=field)
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise BadRequest("The question has half of a surrogate pair.", field=field)
    return {"question": value}


def _cursor(run: str | None) -> Cursor | None:
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
                raise BadRequest("A cursor is <run>:<seq>.", field=field) from None
    return None


def _dialect(name: str | None) -> Dialect:
    dialects = service().dialects
    dialect = dialects.get(name or "native")
    if dialect is None:
        raise BadRequest(f"The format is one of {', '.join(dialects)}.", field="format")
    return dialect


def _not_head() -> None:
    # A view of GET is run for HEAD as well, and this one would ask the model.
    if request.method == "HEAD":
        abort(405)


# What goes out


def _stream(cursor: Cursor, format: str | None) -> ResponseReturnValue:
    dialect = _dialect(format)
    reader = service().runs.read(cursor)
    if reader is None:
        # The one answer that tells a browser not to come back.
        done = Response(status=204, headers={"Cache-Control": "no-store"})
        del done.headers["Content-Type"]
        return done
    return service().sse.respond(reader, dialect)


def _described(run: Run) -> dict[str, Any]:
    return {
        "run": run.id,
        "chain": run.chain,
        "conversation": run.conversation,
        "parent": run.parent,
        "status": run.status,
        "seq": run.seq,
        "created": run.created,
        "urls": {
            "self": url_for(".status", run=run.id),
            "events": url_for(".events", run=run.id),
            "cancel": url_for(".cancel", run=run.id),
        },
    }


def problem(error: RequestError) -> Response:
    """An error as a problem document (RFC 9457)."""
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
    }
    if error.field is not None:
        document["field"] = error.field
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return Response(
        json.dumps(document) + "\n",
        status=error.status,
        mimetype="application/problem+json",
        headers={"Cache-Control": "no-store", **headers},
    )


def http_problem(error: HTTPException) -> Response:
    """What Flask itself refuses, in the same form."""
    if error.code == 404:
        return problem(NotFound("There is nothing here."))
    response = Response(
        json.dumps({"type": "about:blank", "title": error.name, "status": error.code}) + "\n",
        status=error.code,
        mimetype="application/problem+json",
    )
    valid = getattr(error, "valid_methods", None)
    if valid:
        response.headers["Allow"] = ", ".join(sorted(valid))
    return response
