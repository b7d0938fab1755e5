"""Pydantic models of the bodies of requests and responses.

Requests are validated with them. Responses are plain dicts, which are cheaper to build;
`tests/test_openapi.py` validates them. The OpenAPI document is generated from both.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Id = Annotated[str, Field(pattern="^[A-Za-z0-9_-]{16,64}$")]
Milliseconds = Annotated[int, Field(description="Milliseconds since the run was created.")]
Seconds = Annotated[float, Field(description="Seconds since the epoch.")]

# Requests


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
    """The body or the query string of `/stream_<chain>`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    question: str
    run: str | None = None
    conversation: str | None = None
    parent: str | None = None
    multitask: str | None = None
    format: str | None = None


class Message(BaseModel):
    """A message of a WebSocket or Socket.IO client.

    It has exactly one of `question`, `message`, `input` and `resume`.
    """

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


# Responses


class Run(BaseModel):
    """A run."""

    run: Id
    chain: str
    conversation: Id
    parent: Id | None
    status: Literal["running", "done", "failed", "cancelled", "interrupted"]
    seq: int = Field(ge=0, description="The number of the run's newest event.")
    created: Seconds
    started: Milliseconds | None = None
    first_chunk: Milliseconds | None = None
    ended: Milliseconds | None = None
    answer: str | None = None
    urls: dict[str, str]


class ConversationRun(Run):
    """A run in a conversation, with its input."""

    input: dict[str, Any]


class Conversation(BaseModel):
    """A conversation. `runs` is empty in a list of conversations."""

    id: Id
    title: str
    created: Seconds
    updated: Seconds
    url: str
    runs: list[ConversationRun] = []


class Conversations(BaseModel):
    """A page of conversations. `next` is the value of `before` for the next page."""

    conversations: list[Conversation]
    next: str | None


class Ticket(BaseModel):
    """A ticket, and URLs that contain it."""

    ticket: str
    run: Id
    expires: Seconds
    urls: dict[str, str]


class Problem(BaseModel):
    """An error as a problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str = ""
    field: str = ""


class Live(BaseModel):
    """The response of a worker that is alive."""

    status: Literal["live"]


class Ready(BaseModel):
    """The response of a worker that accepts new runs."""

    status: Literal["ready"]
    live_runs: int
    open_streams: int


class Event(BaseModel):
    """A server-sent event."""

    data: str = Field(description="JSON, or plain text with `format=text`.")
    id: str = Field("", pattern="^[A-Za-z0-9_-]{16,64}:[1-9][0-9]{0,15}$")
    event: str = Field("", pattern="^[a-z_]+$")


RESPONSES: list[type[BaseModel]] = [
    Run,
    Conversation,
    Conversations,
    Ticket,
    Problem,
    Live,
    Ready,
    Event,
]

#: What each error status means.
ERRORS = {
    400: "A field is missing or has an invalid value.",
    401: "The caller is not signed in, or the token, key or ticket is invalid or has expired.",
    403: "The request comes from another site's page, an image, a prefetch or a navigation.",
    404: "It does not exist, or belongs to somebody else.",
    405: "The method is not allowed.",
    408: "The body did not arrive in time.",
    409: "The run id is in use, the conversation is busy, or the run has not asked for an answer.",
    410: "The answer is no longer stored.",
    413: "The body is too large.",
    415: "The body has an unsupported type or encoding.",
    429: "A limit is reached. See Retry-After.",
    503: "The service cannot do this right now. See Retry-After.",
}
