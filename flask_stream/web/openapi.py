"""The OpenAPI 3.1 document of the HTTP interface, served at `STREAM_OPENAPI`.

It is generated from the pydantic models that validate requests and, in the tests, responses.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ..config import Settings
from ..engine.start_request import MULTITASK
from ..security.identity import COOKIE
from .schemas import ERRORS, RESPONSES, Ask, MakeTicket, Rename, Start

_REF = "#/components/schemas/{model}"
_ID = {"type": "string", "pattern": "^[A-Za-z0-9_-]{16,64}$"}
_CURSOR = {"type": "string", "pattern": "^([A-Za-z0-9_-]{16,64}:)?(0|[1-9][0-9]{0,15})$"}


def description(
    settings: Settings, chains: list[str], formats: list[str], root: str
) -> dict[str, Any]:
    """Return the OpenAPI document. `root` is the path at which the app is mounted."""
    _, schemas = models_json_schema(
        [(model, "validation") for model in RESPONSES], ref_template=_REF
    )
    components = {
        "securitySchemes": {
            "session": {"type": "apiKey", "in": "cookie", "name": COOKIE},
            "bearer": {"type": "http", "scheme": "bearer"},
            "ticket": {"type": "apiKey", "in": "query", "name": "ticket"},
        },
        "schemas": schemas["$defs"],
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": settings.title,
            "version": _version(),
            "description": "Each run is a log of events. A stream reads one log.",
        },
        "servers": [{"url": root + settings.url_prefix or "/"}],
        "security": [{}, {"session": []}, {"bearer": []}, {"ticket": []}],
        "paths": _paths(settings, chains, formats),
        "components": components,
    }


def _paths(settings: Settings, chains: list[str], formats: list[str]) -> dict[str, Any]:
    format = {"type": "string", "enum": formats}
    run = _parameter("path", "run", _ID, required=True)
    cursor = [
        _parameter("header", "Last-Event-ID", _CURSOR),
        _parameter("query", "after", _CURSOR),
        _parameter("query", "lastEventId", _CURSOR),
    ]
    question: dict[str, Any] = {
        "type": "string",
        "minLength": 1,
        "maxLength": settings.max_question,
        "pattern": r"\S",
    }
    start = _schema(Start)
    start["properties"]["chain"]["enum"] = chains
    # The chain's own schema says which objects it accepts.
    start["properties"]["input"] = {"anyOf": [question, {"type": "object", "minProperties": 1}]}
    names = ("chain", "run", "conversation", "parent", "multitask")
    upload = {
        "type": "object",
        "properties": {name: {"type": "string"} for name in names}
        | {"document": {"type": "string", "format": "binary"}},
        "required": ["chain", "document"],
        "additionalProperties": False,
    }
    start["oneOf"] = [{"required": ["input"]}, {"required": ["resume"]}]
    ask = _schema(Ask)
    ask["properties"]["question"] = question
    ask["properties"]["format"] = format
    ticket = _schema(MakeTicket)
    ticket["properties"]["chain"]["enum"] = chains
    for body in (start, ask, ticket):
        for name in ("run", "conversation", "parent"):
            if name in body["properties"]:
                body["properties"][name] = {"anyOf": [_ID, {"type": "null"}]}
        if "multitask" in body["properties"]:
            body["properties"]["multitask"] = {"type": "string", "enum": list(MULTITASK)}
    query = [
        # A query string cannot say null.
        _parameter("query", name, schema.get("anyOf", [schema])[0], required=name == "question")
        for name, schema in ask["properties"].items()
    ]
    paths: dict[str, Any] = {
        "/runs": {
            "post": _operation(
                "startRun",
                "Start a run. Sending the same `run` id again returns the same run.",
                {201: _json("Run"), 200: _json("Run")},
                (400, 401, 403, 404, 408, 409, 413, 415, 429, 503),
                body=start,
                form=upload,
            )
        },
        "/runs/{run}": {
            "parameters": [run],
            "get": _operation(
                "getRun", "Return the run's status.", {200: _json("Run")}, (400, 401, 404, 410, 503)
            ),
        },
        "/runs/{run}/events": {
            "parameters": [run],
            "get": _operation(
                "readRun",
                "Stream the run's events after a cursor, as they come.",
                _EVENTS,
                (400, 401, 404, 410, 429, 503),
                parameters=[*cursor, _parameter("query", "format", format)],
            ),
        },
        "/runs/{run}/cancel": {
            "parameters": [run],
            "post": _operation(
                "cancelRun",
                "Stop the run. Responds when the model has stopped.",
                {200: _json("Run")},
                (400, 401, 403, 404, 410, 503),
            ),
        },
        "/conversations": {
            "get": _operation(
                "listConversations",
                "List the caller's conversations, the most recently updated first.",
                {200: _json("Conversations")},
                (400, 401, 503),
                parameters=[
                    _parameter("query", "limit", {"type": "integer", "minimum": 1, "maximum": 100}),
                    _parameter("query", "before", {"type": "string"}),
                ],
            )
        },
        "/conversations/{id}": {
            "parameters": [_parameter("path", "id", _ID, required=True)],
            "get": _operation(
                "getConversation",
                "Return a conversation and its runs. Their `parent` ids form a tree.",
                {200: _json("Conversation")},
                (400, 401, 404, 503),
            ),
            "patch": _operation(
                "renameConversation",
                "Change the conversation's title.",
                {200: _json("Conversation")},
                (400, 401, 403, 404, 408, 413, 415, 503),
                body=_schema(Rename),
            ),
            "delete": _operation(
                "removeConversation",
                "Stop the conversation's live runs, and delete it with all its runs.",
                {204: {"description": "The conversation was deleted."}},
                (400, 401, 403, 404, 503),
            ),
        },
        "/tickets": {
            "post": _operation(
                "makeTicket",
                "Create a ticket: the right to start one run, and to read and cancel it.",
                {201: _json("Ticket")},
                (400, 401, 403, 404, 408, 413, 415, 503),
                body=ticket,
            )
        },
        "/health/live": {
            "get": _operation("live", "Whether this worker responds.", {200: _json("Live")}, ())
        },
        "/health/ready": {
            "get": _operation(
                "ready", "Whether this worker accepts new runs.", {200: _json("Ready")}, (503,)
            )
        },
        settings.openapi: {
            "get": _operation("describe", "Return this document.", {200: _OBJECT}, ())
        },
    }
    errors = (400, 401, 403, 404, 409, 410, 429, 503)
    for chain in chains:
        summary = f"Start a run of {chain} and stream it in one request."
        paths[f"/stream_{chain}"] = {
            "get": _operation(
                f"ask_{chain}", summary, _EVENTS, errors, parameters=[*cursor, *query]
            ),
            "post": _operation(
                f"post_{chain}", summary, _EVENTS, (*errors, 408, 413, 415), body=ask
            ),
        }
    return paths


def _operation(
    id: str,
    summary: str,
    responses: dict[int, dict[str, Any]],
    errors: tuple[int, ...],
    *,
    body: dict[str, Any] | None = None,
    form: dict[str, Any] | None = None,
    parameters: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    refused = {str(e): {"description": ERRORS[e], "content": problem} for e in (*errors, 405)}
    if any(parameter["in"] == "query" for parameter in parameters or []):
        # The server itself sends this one, not as a problem document.
        refused["414"] = {"description": "The URL is too long. Send a long question in a body."}
    operation: dict[str, Any] = {
        "operationId": id,
        "summary": summary,
        "responses": {str(status): response for status, response in responses.items()} | refused,
    }
    if body is not None:
        content = {"application/json": {"schema": body}}
        if form is not None:
            content["multipart/form-data"] = {"schema": form}
        operation["requestBody"] = {"required": True, "content": content}
    if parameters is not None:
        operation["parameters"] = parameters
    return operation


def _parameter(
    location: str, name: str, schema: dict[str, Any], required: bool = False
) -> dict[str, Any]:
    return {"in": location, "name": name, "schema": schema, "required": required}


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema()
    schema.pop("description", None)
    return schema


def _json(name: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"description": name, "content": {"application/json": {"schema": schema}}}


_OBJECT = {
    "description": "An object.",
    "content": {"application/json": {"schema": {"type": "object"}}},
}
_EVENTS: dict[int, dict[str, Any]] = {
    200: {
        "description": "Server-sent events. The schema describes one event.",
        "content": {"text/event-stream": {"schema": {"$ref": "#/components/schemas/Event"}}},
    },
    204: {"description": "The client has read all events and must not reconnect."},
}


def _version() -> str:
    try:
        return version("flask-llm-stream")
    except PackageNotFoundError:  # run from a checkout
        return "0"
