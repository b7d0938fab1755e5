"""`redis://`, `rediss://`, `unix://`: graphs' state in Redis or Valkey, shared by many machines."""

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
        "is a Redis URL, which needs redis-py: pip install 'flask-llm-stream[redis]'",
    ) from missing

from .. import redis_connection

P = ParamSpec("P")
T = TypeVar("T")

SETTING = "STREAM_CHECKPOINTS"


def check(url: str) -> None:
    """Check that the server at this URL can store checkpoints. Leaves no connection open.

    Raises ConfigError if the URL is invalid, if the server cannot be reached, or if its version or
    configuration is unsuitable.
    """
    pool = redis_connection.connection_pool(url, redis_connection.TIMEOUT, SETTING)
    server: Any = Redis(connection_pool=pool)
    redis_connection.check(server, redis_connection.without_secrets(url), SETTING)


class RedisServer(OpenSaver):
    """A connection pool to Redis >= 6.2 or Valkey."""

    def __init__(self, url: str, serde: SerializerProtocol) -> None:
        # Does not call `check` again: a server that is unreachable now may come back.
        self._pool = redis_connection.connection_pool(url, redis_connection.TIMEOUT, SETTING)
        self._url = redis_connection.without_secrets(url)
        self.saver = RedisSaver(Redis(connection_pool=self._pool), serde=serde)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with redis_connection.store_errors(self._pool, self._url):
            return function(*args, **kwargs)

    def close(self) -> None:
        self._pool.disconnect()
