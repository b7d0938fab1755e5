"""What the HTTP interface sends, as JSON Schema: for its OpenAPI description."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

ID = {"type": "string", "pattern": "^[A-Za-z0-9_-]{16,64}$"}
CURSOR = {"type": "string", "pattern": "^([A-Za-z0-9_-]{16,64}:)?(0|[1-9][0-9]{0,15})$"}
FORMAT = {"type": "string", "enum": ["native", "text"]}

RUN = {
    "type": "object",
    "required": ["run", "chain", "conversation", "parent", "status", "seq", "created", "urls"],
    "properties": {
        "run": ID,
        "chain": {"type": "string"},
        "conversation": ID,
        "parent": {"anyOf": [ID, {"type": "null"}]},
        "status": {
            "type": "string",
            "enum": ["running", "done", "failed", "cancelled", "interrupted"],
        },
        "seq": {"type": "integer", "minimum": 0},
        "created": {"type": "number"},
        "urls": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
CONVERSATION = {
    "type": "object",
    "required": ["id", "title", "created", "updated", "url"],
    "properties": {
        "id": ID,
        "title": {"type": "string"},
        "created": {"type": "number"},
        "updated": {"type": "number"},
        "url": {"type": "string"},
        "runs": {"type": "array", "items": {"$ref": "#/components/schemas/Run"}},
    },
}
CONVERSATIONS = {
    "type": "object",
    "required": ["conversations", "next"],
    "properties": {
        "conversations": {
            "type": "array",
            "items": {"$ref": "#/components/schemas/Conversation"},
        },
        "next": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
}
TICKET = {
    "type": "object",
    "required": ["ticket", "run", "expires", "urls"],
    "properties": {
        "ticket": {"type": "string"},
        "run": ID,
        "expires": {"type": "number", "description": "Seconds since the epoch."},
        "urls": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "field": {"type": "string"},
    },
}
ERRORS = {
    400: "A field is missing, or has a value that cannot be used.",
    401: "Nobody is signed in, or the token, key or ticket is not good.",
    403: "Not from here: a foreign page, an image, a prefetch, a navigation.",
    404: "There is no such thing, or it is somebody else's.",
    405: "Not this method.",
    408: "The body did not come in time.",
    409: "The run id is another question's, the conversation is busy, or nobody has asked.",
    410: "The answer is no longer kept.",
    413: "The body is too long.",
    415: "The body is of another type than is taken, or encoded.",
    429: "More than one may have. See Retry-After.",
    503: "Not now. See Retry-After.",
}


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
