"""Limits on how often a principal and an address may start runs.

Starts are counted by `limits`, the library behind Flask-Limiter: in Redis or Valkey if the store is
there, else in each worker. Flask-Limiter itself counts requests, and over a WebSocket one request
starts many runs.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Any

from ..config import Settings
from ..engine.ownership import is_anonymous
from ..errors import ConfigError, TooManyRequests, Unavailable

logger = logging.getLogger(__name__)


class StartLimits:
    """Counts starts per principal and per address. Raises ConfigError for a wrong limit."""

    def __init__(self, settings: Settings) -> None:
        self._engine: Any = None
        self._limits: dict[str, list[Any]] = {}
        wanted = {"start_limit": settings.start_limit, "address_limit": settings.address_limit}
        if not any(wanted.values()):
            return
        setting = next(f"STREAM_{name.upper()}" for name, value in wanted.items() if value)
        try:
            from limits import parse_many
            from limits.storage import storage_from_string
            from limits.strategies import MovingWindowRateLimiter
        except ImportError as missing:
            raise ConfigError(
                setting, "needs: pip install 'flask-llm-stream[limits]'; '' sets no limit"
            ) from missing
        for name, value in wanted.items():
            try:
                self._limits[name] = parse_many(value) if value else []
            except ValueError as error:
                raise ConfigError(
                    f"STREAM_{name.upper()}", f"is {value!r}, but must be such as '30/minute'"
                ) from error
        storage: Any = storage_from_string(_storage(settings.store))
        self._engine = MovingWindowRateLimiter(storage)

    def hit(self, principal: str, address: str) -> None:
        if self._engine is None:
            return
        hits = [(item, "flask_stream", address) for item in self._limits["address_limit"]]
        if not is_anonymous(principal):
            # The principal's limit first: a refused start must not count for its address.
            own = self._limits["start_limit"]
            hits = [*((item, "flask_stream", principal) for item in own), *hits]
        try:
            for n, (item, *key) in enumerate(hits):
                if not self._engine.hit(item, *key):
                    logger.info("too many starts: %s, %s", key[1], item)
                    others = [hit for hit in hits[n + 1 :] if not self._engine.test(*hit)]
                    wait = max(self._wait(*hit) for hit in [hits[n], *others])
                    raise TooManyRequests("You are starting runs too often.", retry_after=wait)
        except TooManyRequests:
            raise
        except Exception as error:  # the storage's client decides what it raises
            logger.error("starts cannot be counted: %s", error)
            raise Unavailable("Runs cannot be started right now.", retry_after=2) from error

    def _wait(self, item: Any, *key: str) -> int:
        """Return the seconds until the limit allows another start."""
        reset: float = self._engine.get_window_stats(item, *key).reset_time
        return max(1, math.ceil(reset - time.time()))


def _storage(store: str) -> str:
    if store.startswith("unix://"):
        return f"redis+{store}"
    return store if store.startswith(("redis://", "rediss://")) else "memory://"
