"""`redis://`, `rediss://`, `unix://`: graphs' state in Redis or Valkey, for many machines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from langgraph.checkpoint.serde.base import SerializerProtocol

from ..errors import ConfigError
from .base import OpenSaver
from .redis_saver import RedisSaver

try:
    from redis import Redis
except ImportError as missing:
    raise ConfigError(
        "STREAM_CHECKPOINTS",
        "is in Redis, and its client is not installed: pip install 'flask-llm-stream[redis]'",
    ) from missing

from .. import redis_connection as redis_pool

P = ParamSpec("P")
T = TypeVar("T")

SETTING = "STREAM_CHECKPOINTS"


def check(url: str) -> None:
    """Ask the server of that URL whether it would keep checkpoints; no connection is left open.

    Raises ConfigError for a URL that is none, and for a server that is not there or would not.
    """
    pool = redis_pool.connection_pool(url, redis_pool.TIMEOUT, SETTING)
    server: Any = Redis(connection_pool=pool)
    redis_pool.check(server, redis_pool.without_secrets(url), SETTING)


class RedisServer(OpenSaver):
    """Connections to a Redis >= 6.2 or a Valkey."""

    def __init__(self, url: str, serde: SerializerProtocol) -> None:
        # What was right at start is not asked again: a server that is away is waited for.
        self._pool = redis_pool.connection_pool(url, redis_pool.TIMEOUT, SETTING)
        self._shown = redis_pool.without_secrets(url)
        self.saver = RedisSaver(Redis(connection_pool=self._pool), serde=serde)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with redis_pool.store_errors(self._pool, self._shown):
            return function(*args, **kwargs)

    def close(self) -> None:
        self._pool.disconnect()
