"""How much: starts and tokens over time, and what may be open at once.

Starts are counted by `limits`, the engine of Flask-Limiter, in Redis or Valkey where the store is
there, else in each worker. (Flask-Limiter itself counts requests; over a WebSocket one request
starts many runs, and an app may have a Flask-Limiter of its own.) Open streams are counted in each
worker, since each has its own room. Live runs are counted by the store itself, as it creates them.
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
#: Connections that a worker keeps for health checks, starts and Stop, however many streams it has.
SPARE = 100

#: Documents that may come in at once: each is in memory until it is read, one after the other.
UPLOADS, UPLOADS_PER_ADDRESS = 16, 4


class Quotas:
    """The limits of one app. Raises ConfigError for one that cannot be kept."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._starts = StartLimits(settings)
        self._worker = settings.max_streams_per_worker
        self._open: Counter[str] = Counter()
        self._seats = 0
        self._uploads: Counter[str] = Counter()
        self._lock = threading.Lock()

    def fit(self, connections: int) -> None:
        """Keep open streams below what the server's worker can hold, with room for the rest."""
        room = max(1, connections - min(SPARE, connections // 10 + 1))
        self._worker = min(self._worker or room, room)

    def start(self, principal: str, address: str) -> None:
        """Count the start of a run. Raises TooMany, or Unavailable when it cannot be counted."""
        budget = self._settings.daily_tokens
        with unavailable_on_store_error(
            "no run can be started", "Answers cannot be stored right now."
        ):
            if budget and self._store.count(_today(principal), 0, DAY) >= budget:
                left = DAY - int(time.time()) % DAY
                raise TooManyRequests("Today's tokens are used up.", retry_after=left)
        self._starts.hit(principal, address)

    def spent(self, principal: str, tokens: int) -> None:
        """Take tokens off today's budget. Raises StoreError."""
        if self._settings.daily_tokens and tokens > 0:
            # A day more: it is asked for until midnight, and began at any hour.
            self._store.count(_today(principal), tokens, 2 * DAY)

    def most(self, principal: str) -> int:
        """How many live runs a principal may have; 0 for any number."""
        settings = self._settings
        return settings.max_runs_per_address if is_anonymous(principal) else settings.max_runs

    def sit(self, principal: str, address: str) -> StreamSlot:
        """A place for one more open stream. Raises TooMany, or Unavailable in a full worker."""
        settings = self._settings
        keys = {f"address {address}": settings.max_streams_per_address}
        if not is_anonymous(principal):
            keys[f"principal {principal}"] = settings.max_streams
        with self._lock:
            if self._worker and self._seats >= self._worker:
                logger.warning("%d streams are open: this worker takes no more", self._seats)
                raise Unavailable("Too many streams are open here.", retry_after=5)
            for key, most in keys.items():
                if most and self._open[key] >= most:
                    raise TooManyRequests("You have too many streams open.", retry_after=10)
            self._seats += 1
            self._open.update(keys.keys())
        return StreamSlot(self, list(keys))

    @contextmanager
    def upload(self, address: str) -> Iterator[None]:
        """While a document comes and is read. Raises TooMany, or Unavailable in a full worker."""
        with self._lock:
            if self._uploads.total() >= UPLOADS:
                raise Unavailable("Too many documents are coming in.", retry_after=5)
            if self._uploads[address] >= UPLOADS_PER_ADDRESS:
                raise TooManyRequests("You send too many documents at once.", retry_after=5)
            self._uploads[address] += 1
        try:
            yield
        finally:
            with self._lock:
                self._uploads -= Counter([address])

    def rise(self, keys: list[str]) -> None:
        """Give a seat back."""
        with self._lock:
            self._seats -= 1
            for key in keys:
                self._open[key] -= 1
                if not self._open[key]:
                    del self._open[key]


class StreamSlot:
    """The place of one open stream; to be left once."""

    __slots__ = ("_keys", "_quotas")

    def __init__(self, quotas: Quotas, keys: list[str]) -> None:
        self._quotas: Quotas | None = quotas
        self._keys = keys

    def leave(self) -> None:
        """Give the place to somebody else. Leaving again does nothing."""
        quotas, self._quotas = self._quotas, None
        if quotas is not None:
            quotas.rise(self._keys)


def _today(principal: str) -> str:
    return f"tokens:{time.strftime('%Y-%m-%d', time.gmtime())}:{principal}"
