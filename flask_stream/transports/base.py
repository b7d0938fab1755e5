"""What a transport needs from whoever let a client in, and what all of them have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import BadRequest
from ..events import Cursor

if TYPE_CHECKING:
    from ..engine.log_reader import LogReader
    from ..stores.base import Run

#: Seconds between two looks at all open streams and connections.
LOOK = 0.5
#: Looks over which the connections of a worker that leaves are closed.
SPREAD = 4


class Permit(Protocol):
    """Why a client may read, and for how long."""

    def due(self) -> float:
        """When to look at it again, on the monotonic clock."""

    def refusal(self) -> str | None:
        """Why the client may no longer read, as a sentence; None if it may."""

    def leave(self) -> None:
        """The client is gone."""


class ConnectionSession(Protocol):
    """What a connection may do: decided by whoever has let it in. All raise RequestError."""

    def start(self, message: Mapping[str, Any]) -> Run:
        """Start what a message asks for."""

    def read(self, cursor: Cursor) -> LogReader | None:
        """A reader of what comes after the cursor; None when all was read."""

    def cancel(self, run: str) -> Run:
        """Stop a run."""

    def check(self) -> None:
        """Raise what forbids to start anything at all."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Seconds between pings and for a write or a pong to take; bytes of a message."""

    heartbeat: float
    patience: float
    size: int


def place(message: Mapping[str, Any]) -> Cursor:
    """Where `run` and `after` say that a client is. Raises BadRequest."""
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
