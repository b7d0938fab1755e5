"""The contract of a transport: what carries events to clients, and takes what they send.

A transport knows the engine and nothing of the web: whoever admits a client hands it a
`ConnectionSession`, which says what the client may do, and a `Permit`, which says for how long.
A new transport implements `Transport`; `service.make_service` makes it, and a module of `web`
gives it a route.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import BadRequest
from ..events import Cursor

if TYPE_CHECKING:
    from ..engine.log_reader import LogReader
    from ..stores.base import Run

#: Seconds between two checks of all open streams and connections.
CHECK_INTERVAL = 0.5
#: Checks over which the connections of a worker that is being replaced are closed.
DRAIN_CHECKS = 4


class Transport(Protocol):
    """Everything that one worker has open over one transport.

    While the worker drains, a transport sends its clients away by itself: at once for a client
    that would lose nothing, and spread over a few seconds, as all of them come back.
    """

    @property
    def open(self) -> int:
        """How many clients are connected."""

    def close(self) -> None:
        """Stop the threads of the transport. The connections end with their clients or runs."""


class Permit(Protocol):
    """The reason why a client may read, and its place among the connections that it may have."""

    def due(self) -> float:
        """Return when to ask for `refusal` again, on the monotonic clock."""

    def refusal(self) -> str | None:
        """Return why the client may no longer read, as a sentence; None if it may."""

    def leave(self) -> None:
        """Give the place back. It may be called again."""


class ConnectionSession(Protocol):
    """What the client of one connection may do. All methods raise RequestError."""

    def start(self, message: Mapping[str, Any]) -> Run:
        """Start the run that a message asks for."""

    def read(self, cursor: Cursor) -> LogReader | None:
        """Return a reader of what comes after the cursor; None when all was read."""

    def cancel(self, run: str) -> Run:
        """Stop a run, and return it when it has stopped."""

    def check(self) -> None:
        """Raise the error that forbids this client to start any run."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of one connection, in seconds and bytes.

    `heartbeat` is the time between two pings, `patience` the time that a write or a pong may take,
    and `size` is that of the longest message.
    """

    heartbeat: float
    patience: float
    size: int


def parse_cursor(message: Mapping[str, Any]) -> Cursor:
    """Return the cursor that `run` and `after` of a message name. Raises BadRequest."""
    run, after = message.get("run"), message.get("after")
    if run is not None and not isinstance(run, str):
        raise BadRequest("run is not text.", field="run")
    text = str(after) if isinstance(after, int) and not isinstance(after, bool) else after
    try:
        if not isinstance(text, str):
            raise ValueError("no text")
        return Cursor.of(run, text) if run is not None else Cursor.parse(text)
    except ValueError:
        raise BadRequest("after is a seq with run, or <run>:<seq>.", field="after") from None
