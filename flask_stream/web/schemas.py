"""The bodies of requests and of responses as pydantic models.

Requests are validated with them. Responses are built as plain dicts, which costs less, and a test
validates them: see `tests/test_openapi.py`. The OpenAPI description is made from both.
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
    """The body, or the query, of `/stream_<chain>`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    question: str
    run: str | None = None
    conversation: str | None = None
    parent: str | None = None
    multitask: str | None = None
    format: str | None = None


class Message(BaseModel):
    """A message of a WebSocket or Socket.IO client: with one of the texts, or `resume`."""

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
    seq: int = Field(ge=0, description="The number of its newest event.")
    created: Seconds
    started: Milliseconds | None = None
    first_chunk: Milliseconds | None = None
    ended: Milliseconds | None = None
    answer: str | None = None
    urls: dict[str, str]


class ConversationRun(Run):
    """A run as it stands in its conversation: with its input."""

    input: dict[str, Any]


class Conversation(BaseModel):
    """A conversation; with its runs where it is read by itself."""

    id: Id
    title: str
    created: Seconds
    updated: Seconds
    url: str
    runs: list[ConversationRun] = []


class Conversations(BaseModel):
    """A page of conversations; `next` is the `before` of the next page."""

    conversations: list[Conversation]
    next: str | None


class Ticket(BaseModel):
    """A ticket, and the URLs that hold it."""

    ticket: str
    run: Id
    expires: Seconds
    urls: dict[str, str]


class Problem(BaseModel):
    """An error, as a problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str = ""
    field: str = ""


class Live(BaseModel):
    """A worker that answers."""

    status: Literal["live"]


class Ready(BaseModel):
    """A worker that takes new runs, and what it has open."""

    status: Literal["ready"]
    live_runs: int
    open_streams: int


class Event(BaseModel):
    """A server-sent event."""

    data: str = Field(description="JSON, or with `format=text` text.")
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
