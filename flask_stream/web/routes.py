"""The routes of the HTTP interface, and their views."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flask import Blueprint, jsonify, make_response, render_template, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from ..concurrency.native_thread import NativeThread
from ..config import Settings
from ..engine.conversations import DEFAULT_LIMIT
from ..engine.history import shown
from ..engine.runner import STOP_WAIT
from ..engine.start_request import NEWEST, StartRequest
from ..errors import BadRequest, RequestError
from ..events import Cursor, new_id
from ..security.access import Access, Caller
from ..security.headers import headers
from ..security.tickets import Ticket
from .bodies import form
from .cli import make_key
from .current import (
    check_identified,
    check_start,
    conversation_owner,
    current_caller,
    current_runs,
    current_service,
    json_object,
    question_input,
    resume_input,
    start_run,
)
from .document_text import text_of
from .host_app import BLUEPRINT, first_request_check
from .openapi import description
from .problems import http_problem, problem
from .requests import cursor, query_integer, refuse_head, validated
from .responses import conversation_json, dialect_of, permit_for, run_json, stream, with_session
from .schemas import Ask, MakeTicket, Rename, Start

PACKAGE = Path(__file__).parent.parent
#: In a wheel the templates are inside the package, in a checkout beside it.
TEMPLATES = next(p for p in (PACKAGE / "templates", PACKAGE.parent / "templates") if p.is_dir())
#: The thread that parses uploaded documents.
document_thread = NativeThread()


def make_blueprint(settings: Settings, access: Access) -> Blueprint:
    """Return the blueprint of one app."""
    blueprint = Blueprint(
        BLUEPRINT,
        __name__,
        url_prefix=settings.url_prefix or None,
        static_folder=str(PACKAGE / "static"),
        static_url_path="/static/stream",
        template_folder=str(TEMPLATES),
    )
    # APIFlask reads this from each blueprint when it generates its OpenAPI document. This blueprint
    # serves its own.
    blueprint.enable_openapi = False  # type: ignore[attr-defined]
    blueprint.before_request(first_request_check())
    blueprint.before_request(_check_change)
    blueprint.after_request(headers(settings.frame_ancestors))
    access.origins.protect(blueprint)
    blueprint.add_url_rule("/runs", view_func=start, methods=["POST"])
    blueprint.add_url_rule("/runs/<run>", view_func=status)
    blueprint.add_url_rule("/runs/<run>/events", view_func=events)
    blueprint.add_url_rule("/runs/<run>/cancel", view_func=cancel, methods=["POST"])
    blueprint.add_url_rule("/stream_<chain>", view_func=ask, methods=["GET", "POST"])
    blueprint.add_url_rule("/conversations", view_func=conversations)
    blueprint.add_url_rule(
        "/conversations/<id>", view_func=conversation, methods=["GET", "PATCH", "DELETE"]
    )
    blueprint.add_url_rule("/tickets", view_func=tickets, methods=["POST"])
    if settings.openapi:
        blueprint.add_url_rule(settings.openapi, view_func=openapi)
    blueprint.add_url_rule("/health/live", view_func=live)
    blueprint.add_url_rule("/health/ready", view_func=ready)
    if settings.page:
        blueprint.add_url_rule("/", view_func=chat)
        blueprint.add_url_rule("/c/<conversation>", view_func=chat)
    blueprint.register_error_handler(RequestError, problem)
    blueprint.register_error_handler(HTTPException, http_problem)
    blueprint.cli.add_command(make_key)
    return blueprint


def _check_change() -> None:
    if request.method not in ("GET", "HEAD", "OPTIONS"):
        current_service().access.check_change(request)


# Views


def start() -> ResponseReturnValue:
    """`POST /runs`: start a run, or return the existing run of that id."""
    caller = current_caller()
    check_identified(caller)
    uploads = request.mimetype == "multipart/form-data"
    if uploads:
        body = validated(Start, _uploaded(caller))
    else:
        body = validated(Start, json_object())
        check_start(caller, body.chain)
    if (body.input is None) == ("resume" not in body.model_fields_set):
        raise BadRequest("Send either input, or resume to answer an interrupt.", field="input")
    value = (
        resume_input(body.resume) if body.input is None else question_input(body.chain, body.input)
    )
    run, new = start_run(caller, _start_request(body, body.chain, value), counted=uploads)
    response = jsonify(run_json(run))
    response.status_code = 201 if new else 200
    response.headers["Location"] = url_for(".status", run=run.id)
    return with_session(caller, response)


def _uploaded(caller: Caller) -> dict[str, Any]:
    """Return the fields of a form, with the text of its file as `input`.

    Checks permission and limits, and counts the start, before it parses the file.
    """
    settings, quotas = current_service().settings, current_service().access.quotas
    with quotas.upload(caller.address):
        values, (name, data) = form(settings.max_upload, settings.body_timeout)
        check_start(caller, values.get("chain", ""))
        quotas.start(caller.principal, caller.address)
        # A document that takes long to parse must not block the worker.
        text = document_thread.call(text_of, name, data, settings.max_document, settings.max_pages)
    return values | {"input": {"document": text}}


def status(run: str) -> ResponseReturnValue:
    """`GET /runs/<run>`: the run as JSON."""
    return run_json(current_runs().get(run, current_caller(run).principal))


def events(run: str) -> ResponseReturnValue:
    """`GET /runs/<run>/events`: stream the run's events, from a cursor on."""
    refuse_head()
    caller = current_caller(run)
    after = cursor(run) or Cursor(run, 0)
    if after.run != run:
        raise BadRequest("The cursor belongs to another run.", field="Last-Event-ID")
    return stream(caller, after, request.args.get("format"), permit_for(caller))


def cancel(run: str) -> ResponseReturnValue:
    """`POST /runs/<run>/cancel`: stop the run, and respond when the model has stopped."""
    return run_json(current_runs().cancel(run, STOP_WAIT, current_caller(run).principal))


def ask(chain: str) -> ResponseReturnValue:
    """`/stream_<chain>`: start and stream in one request, or resume the stream."""
    refuse_head()
    caller = current_caller()
    current_runs().admission.chain(chain)
    after = cursor(None)
    if after is not None:
        # An EventSource repeats the whole request when it reconnects.
        caller.check_run(after.run)
        return stream(caller, after, request.args.get("format"), permit_for(caller))
    values = {name: v for name, v in request.args.items() if name in Ask.model_fields}
    check_start(caller, chain)
    body = validated(Ask, values | json_object() if request.method == "POST" else values)
    dialect = dialect_of(body.format)
    value = question_input(chain, body.question, "question")
    # The permit comes first, so that the model is not called for an answer that cannot be sent.
    permit = permit_for(caller)
    try:
        run, _ = start_run(caller, _start_request(body, chain, value))
    except BaseException:
        permit.leave()
        raise
    return with_session(caller, stream(caller, Cursor(run.id, 0), dialect.name, permit))


def _start_request(body: Start | Ask, chain: str, value: dict[str, Any]) -> StartRequest:
    parent = body.parent if "parent" in body.model_fields_set else NEWEST
    return StartRequest(
        chain,
        value,
        run=body.run,
        conversation=body.conversation,
        parent=parent or None,  # a query string cannot say null: an empty value means it
        multitask=body.multitask,
    )


def conversations() -> ResponseReturnValue:
    """`GET /conversations`: a page of the caller's conversations, the newest first."""
    owner = conversation_owner()
    page, before = current_runs().conversations.page(
        owner, query_integer("limit", DEFAULT_LIMIT), request.args.get("before")
    )
    return {"conversations": [conversation_json(item) for item in page], "next": before}


def conversation(id: str) -> ResponseReturnValue:
    """`GET`, `PATCH`, `DELETE /conversations/<id>`: read, rename or remove it."""
    owner = conversation_owner()
    store = current_runs().conversations
    if request.method == "DELETE":
        store.remove(owner, id)
        return "", 204
    if request.method == "PATCH":
        return conversation_json(store.rename(owner, id, validated(Rename, json_object()).title))
    found, runs = store.get(owner, id)
    items = [run_json(run) | {"input": shown(json.loads(run.input))} for run in runs]
    return conversation_json(found) | {"runs": items}


def tickets() -> ResponseReturnValue:
    """`POST /tickets`: create a ticket, which is the right to start one run."""
    caller = current_caller()
    body = validated(MakeTicket, json_object())
    current_runs().admission.chain(body.chain)
    principal = current_service().access.ticket_principal(caller, body.user)
    current_runs().admission.check_parent(principal, body.conversation, body.parent or NEWEST)
    ticket = Ticket(new_id(), body.chain, principal, body.conversation, body.parent)
    text, expires = current_service().access.tickets.issue(ticket)
    urls = {
        "stream": url_for(".ask", chain=body.chain, ticket=text),
        "events": url_for(".events", run=ticket.run, ticket=text),
        "cancel": url_for(".cancel", run=ticket.run, ticket=text),
    }
    return {"ticket": text, "run": ticket.run, "expires": expires, "urls": urls}, 201


def openapi() -> ResponseReturnValue:
    """`GET /openapi.json`, or the path in `STREAM_OPENAPI`: the OpenAPI document."""
    service = current_service()
    names = service.runs.admission.chain_names()
    return description(service.settings, names, list(service.dialects), request.root_path)


def live() -> ResponseReturnValue:
    """`GET /health/live`: always 200."""
    return {"status": "live"}


def ready() -> ResponseReturnValue:
    """`GET /health/ready`: 200 while this worker accepts new runs, else 503."""
    current_runs().check_ready()
    return {
        "status": "ready",
        "live_runs": current_runs().live_run_count,
        "open_streams": current_service().open_connections,
    }


def chat(conversation: str | None = None) -> ResponseReturnValue:
    """`GET /`, `GET /c/<conversation>`: the chat page, for a new or an existing conversation.

    `?chain=` selects a chain. The default is `chat`, or the first chain if none has that name.
    """
    settings = current_service().settings
    names = current_runs().admission.chain_names()
    chain = request.args.get("chain") or ("chat" if "chat" in names else None)
    data = {
        "chain": chain or next(iter(names), "chat"),
        "conversation": conversation,
        "conversations": url_for(".conversations"),
        "home": url_for(".chat"),
        "runs": url_for(".start"),
        "max_question": settings.max_question,
        "title": settings.title,
    }
    response = make_response(render_template("stream/chat.html", data=data))
    current_service().access.set_session(request, response)
    return response
