"""URL → runs → transport: the HTTP interface, and nothing but it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, current_app, render_template, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from .access import check_start
from .dialects.base import Dialect
from .errors import BadRequest, RequestError
from .events import Cursor
from .problems import http_problem, problem
from .requests import Ask, Start, asked, cursor, fields, json_body, refuse_head
from .stores.base import Run

if TYPE_CHECKING:
    from .extension import Service

HERE = Path(__file__).parent
#: In a wheel the templates are inside the package; in a checkout they stand beside it.
TEMPLATES = next(p for p in (HERE / "templates", HERE.parent / "templates") if p.is_dir())
#: Seconds that a request to cancel waits for the model to have stopped.
CANCEL_WAIT = 10.0


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
    stream.add_url_rule("/health/live", view_func=live)
    stream.add_url_rule("/health/ready", view_func=ready)
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
    body = fields(Start, json_body(service().settings.max_body))
    run, new = service().runs.start(
        body.chain,
        asked(body.input, service().settings.max_question),
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
    refuse_head()
    place = cursor(run) or Cursor(run, 0)
    if place.run != run:
        raise BadRequest("The cursor is of another run.", field="Last-Event-ID")
    return _stream(place, request.args.get("format"))


def cancel(run: str) -> ResponseReturnValue:
    """`POST /runs/<run>/cancel`: answers when the model has really stopped."""
    return _described(service().runs.cancel(run, CANCEL_WAIT))


def ask(chain: str) -> ResponseReturnValue:
    """`/stream_<chain>`: start and stream in one request, or resume what it had started."""
    refuse_head()
    posted = request.method == "POST"
    service().runs.chain(chain)
    place = cursor(None)
    if place is not None:
        # A browser repeats the whole request when it reconnects, question and all.
        return _stream(place, request.args.get("format"))
    check_start(request, service().origins)
    known = {name: v for name, v in request.args.items() if name in Ask.model_fields}
    body = fields(Ask, known | json_body(service().settings.max_body) if posted else known)
    dialect = _dialect(body.format)
    run, _ = service().runs.start(
        chain,
        asked(body.question, service().settings.max_question, field="question"),
        run=body.run,
        conversation=body.conversation,
        parent=body.parent,
    )
    return _stream(Cursor(run.id, 0), dialect.name)


def live() -> ResponseReturnValue:
    """`GET /health/live`: this worker answers."""
    return {"status": "live"}


def ready() -> ResponseReturnValue:
    """`GET /health/ready`: this worker takes new runs, and what it has open. Else 503."""
    runs = service().runs
    runs.check()
    return {"status": "ready", "live_runs": runs.live, "open_streams": service().sse.open}


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


# What goes out


def _dialect(name: str | None) -> Dialect:
    dialects = service().dialects
    dialect = dialects.get(name or "native")
    if dialect is None:
        raise BadRequest(f"The format is one of {', '.join(dialects)}.", field="format")
    return dialect


def _stream(place: Cursor, format: str | None) -> ResponseReturnValue:
    dialect = _dialect(format)
    reader = service().runs.read(place)
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
