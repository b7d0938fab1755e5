"""The permit of one open stream: its place in the quotas, and its caller's right to read on."""

from __future__ import annotations

import time

from flask import Request

from .access import Access, Caller


class StreamPermit:
    """Reserves a stream for a caller. Raises TooManyRequests or Unavailable if none is free."""

    def __init__(self, access: Access, request: Request, caller: Caller, recheck: float) -> None:
        self._access = access
        self._request = request
        self._caller = caller
        self._recheck = recheck
        self._slot = access.quotas.open_stream(caller.principal, caller.address)

    def due(self) -> float:
        """Return when to check the caller again, on the monotonic clock."""
        if not self._caller.identified:
            return float("inf")
        wait = self._recheck
        if self._caller.expires is not None:
            wait = min(wait, max(0.0, self._caller.expires - time.time()) + 0.01)
        return time.monotonic() + wait

    def refusal(self) -> str | None:
        """Return why the client may no longer read, as a sentence; None if it may."""
        return self._access.recheck(self._request, self._caller)

    def leave(self) -> None:
        """Release the reserved stream."""
        self._slot.release()
