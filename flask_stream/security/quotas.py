"""Quotas: tokens per day, and how many streams and uploads may be open at once.

Starts over time are counted in `start_limits`. Open streams and uploads are counted per worker,
because each worker has its own capacity. Live runs are counted by the store when it creates them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ..config import Settings
from ..engine.ownership import is_anonymous
from ..errors import TooManyRequests, Unavailable, unavailable_on_store_error
from ..stores.base import Store
from .start_limits import StartLimits

logger = logging.getLogger(__name__)

DAY = 86_400
#: Connections that a worker keeps free of streams: for health checks, starts and cancels.
SPARE = 100

#: Uploads at once, per worker and per address. Each is in memory until it is read.
UPLOADS, UPLOADS_PER_ADDRESS = 16, 4


class Quotas:
    """The quotas of one app. Raises ConfigError for a limit that cannot be enforced."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._starts = StartLimits(settings)
        self._worker = settings.max_streams_per_worker
        self._open: Counter[str] = Counter()
        self._streams = 0
        self._uploads: Counter[str] = Counter()
        self._lock = threading.Lock()

    def limit_streams(self, connections: int) -> None:
        """Keep open streams below the worker's number of connections, with some to spare."""
        room = max(1, connections - min(SPARE, connections // 10 + 1))
        self._worker = min(self._worker or room, room)

    def start(self, principal: str, address: str) -> None:
        """Count the start of a run. Raises TooManyRequests, or Unavailable if that fails."""
        budget = self._settings.daily_tokens
        with unavailable_on_store_error(
            "no run can be started", "Answers cannot be stored right now."
        ):
            if budget and self._store.count(_today(principal), 0, DAY) >= budget:
                left = DAY - int(time.time()) % DAY
                raise TooManyRequests("You have used all tokens of today.", retry_after=left)
        self._starts.hit(principal, address)

    def add_tokens(self, principal: str, tokens: int) -> None:
        """Add tokens to what the principal has used today. Raises StoreError."""
        if self._settings.daily_tokens and tokens > 0:
            # Two days: the counter may begin at any hour, and is read until midnight.
            self._store.count(_today(principal), tokens, 2 * DAY)

    def live_run_limit(self, principal: str) -> int:
        """Return how many live runs a principal may have; 0 means any number."""
        settings = self._settings
        return settings.max_runs_per_address if is_anonymous(principal) else settings.max_runs

    def open_stream(self, principal: str, address: str) -> StreamSlot:
        """Reserve one open stream. Raises TooManyRequests, or Unavailable in a full worker."""
        settings = self._settings
        keys = {f"address {address}": settings.max_streams_per_address}
        if not is_anonymous(principal):
            keys[f"principal {principal}"] = settings.max_streams
        with self._lock:
            if self._worker and self._streams >= self._worker:
                logger.warning("%d streams are open, which is this worker's limit", self._streams)
                raise Unavailable("This server has too many open streams.", retry_after=5)
            for key, most in keys.items():
                if most and self._open[key] >= most:
                    raise TooManyRequests("You have too many streams open.", retry_after=10)
            self._streams += 1
            self._open.update(keys.keys())
        return StreamSlot(self, list(keys))

    @contextmanager
    def upload(self, address: str) -> Iterator[None]:
        """Reserve one upload for the block. Raises TooManyRequests, or Unavailable if full."""
        with self._lock:
            if self._uploads.total() >= UPLOADS:
                raise Unavailable("This server is receiving too many documents.", retry_after=5)
            if self._uploads[address] >= UPLOADS_PER_ADDRESS:
                raise TooManyRequests("You are sending too many documents at once.", retry_after=5)
            self._uploads[address] += 1
        try:
            yield
        finally:
            with self._lock:
                self._uploads -= Counter([address])

    def release_stream(self, keys: list[str]) -> None:
        """Release a reserved stream."""
        with self._lock:
            self._streams -= 1
            for key in keys:
                self._open[key] -= 1
                if not self._open[key]:
                    del self._open[key]


class StreamSlot:
    """One reserved stream."""

    __slots__ = ("_keys", "_quotas")

    def __init__(self, quotas: Quotas, keys: list[str]) -> None:
        self._quotas: Quotas | None = quotas
        self._keys = keys

    def release(self) -> None:
        """Release it. A second call does nothing."""
        quotas, self._quotas = self._quotas, None
        if quotas is not None:
            quotas.release_stream(self._keys)


def _today(principal: str) -> str:
    return f"tokens:{time.strftime('%Y-%m-%d', time.gmtime())}:{principal}"
