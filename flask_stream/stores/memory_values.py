"""Values with a time to live, for the store in memory."""

from __future__ import annotations

import heapq
import time
from typing import Generic, TypeVar

V = TypeVar("V")


class ExpiringValues(Generic[V]):
    """A mapping whose values expire after their time to live. It is not thread-safe."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[V, float]] = {}  # each with the time when it expires
        self._queue: list[tuple[float, str]] = []  # a heap of these times

    def get(self, key: str) -> V | None:
        """Return the value, or None if it is not set or has expired."""
        while self._queue and self._queue[0][0] <= time.monotonic():
            until, expired = heapq.heappop(self._queue)
            # A value that was removed and set again expires later.
            if expired in self._values and self._values[expired][1] == until:
                del self._values[expired]
        return self._values[key][0] if key in self._values else None

    def set(self, key: str, value: V, ttl: float) -> None:
        """Set a value. A new one expires after `ttl` seconds; an existing one keeps its expiry."""
        if key in self._values:
            self._values[key] = (value, self._values[key][1])
        else:
            until = time.monotonic() + ttl
            self._values[key] = (value, until)
            heapq.heappush(self._queue, (until, key))

    def remove(self, key: str) -> None:
        """Remove a value. Raise KeyError if it is not set."""
        del self._values[key]
