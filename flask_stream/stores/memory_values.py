"""Values with a time to live, for the store in memory."""

from __future__ import annotations

import heapq
import time
from typing import Generic, TypeVar

V = TypeVar("V")


class ExpiringValues(Generic[V]):
    """Values by key, each gone when its time to live is over. Not safe for threads."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[V, float]] = {}  # with the time when each expires
        self._queue: list[tuple[float, str]] = []  # a heap of those times

    def get(self, key: str) -> V | None:
        """Return the value, or None."""
        while self._queue and self._queue[0][0] <= time.monotonic():
            until, expired = heapq.heappop(self._queue)
            # Not a value that was removed and set again: it has more time.
            if expired in self._values and self._values[expired][1] == until:
                del self._values[expired]
        return self._values[key][0] if key in self._values else None

    def set(self, key: str, value: V, ttl: float) -> None:
        """Set a value: a new one for `ttl` seconds, an existing one for the rest of its time."""
        if key in self._values:
            self._values[key] = (value, self._values[key][1])
        else:
            until = time.monotonic() + ttl
            self._values[key] = (value, until)
            heapq.heappush(self._queue, (until, key))

    def remove(self, key: str) -> None:
        """Remove a value that is there."""
        del self._values[key]
