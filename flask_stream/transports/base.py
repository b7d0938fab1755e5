"""What a transport needs from whoever let a client in."""

from __future__ import annotations

from typing import Protocol


class Permit(Protocol):
    """Why a client may read, and for how long."""

    def due(self) -> float:
        """When to look at it again, on the monotonic clock."""

    def refusal(self) -> str | None:
        """Why the client may no longer read, as a sentence; None if it may."""

    def leave(self) -> None:
        """The client is gone."""


#: Seconds between two looks at all open streams and connections.
LOOK = 0.5
