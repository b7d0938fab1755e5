"""A permit: the place of one open stream, and the right of who made the request to read on."""

from __future__ import annotations

import time

from flask import Request

from .access import Access, Caller


class StreamPermit:
    """Taken when a stream opens. Raises TooMany, or Unavailable, when there is no place."""

    def __init__(self, access: Access, request: Request, visitor: Caller, recheck: float) -> None:
        self._access = access
        self._request = request
        self._visitor = visitor
        self._recheck = recheck
        self._seat = access.quotas.sit(visitor.principal, visitor.address)

    def due(self) -> float:
        """When to look at it again, on the monotonic clock: in a while, or when it expires."""
        if not self._visitor.known:
            return float("inf")
        wait = self._recheck
        if self._visitor.expires is not None:
            wait = min(wait, max(0.0, self._visitor.expires - time.time()) + 0.01)
        return time.monotonic() + wait

    def refusal(self) -> str | None:
        """Why the client may no longer read, as a sentence; None if it may."""
        return self._access.still(self._request, self._visitor)

    def leave(self) -> None:
        """Give the place to somebody else."""
        self._seat.leave()
