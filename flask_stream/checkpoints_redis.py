"""`redis://`, `rediss://`, `unix://`: graphs' state in Redis or Valkey, for many machines."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar
from urllib.parse import urlsplit

from langgraph.checkpoint.serde.base import SerializerProtocol

from .checkpoints_lazy import Opened
from .checkpoints_redis_saver import RedisSaver
from .errors import ConfigError, StoreError

try:
    from redis import BlockingConnectionPool, Redis
    from redis.backoff import NoBackoff
    from redis.exceptions import ConnectionError, RedisError
    from redis.retry import Retry
except ImportError as missing:
    raise ConfigError(
        "STREAM_CHECKPOINTS",
        "is in Redis, and its client is not installed: pip install 'flask-llm-stream[redis]'",
    ) from missing

P = ParamSpec("P")
T = TypeVar("T")

#: Connections that a process has at most. Who needs more has to wait.
CONNECTIONS = 16
#: Seconds that the server may take to answer.
TIMEOUT = 5.0


def connection_pool(url: str) -> BlockingConnectionPool:
    """Connections to the server of that URL, none of them made yet.

    Raises ConfigError, without the URL: what of a password was taken for a port would be seen.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme != "unix" and re.fullmatch(r"(/\d*)?", parts.path) is None:
            raise ValueError("the database is not a number")
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=TIMEOUT,
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            health_check_interval=15,
            protocol=2,
            # Once, for a connection that was closed meanwhile. All calls may be made again.
            retry=Retry(NoBackoff(), 1, (ConnectionError,)),
        )
        # Made and thrown away: this is when an option that there is not is found.
        pool.connection_class(**pool.connection_kwargs)
    except (ValueError, TypeError, RedisError):
        raise ConfigError(
            "STREAM_CHECKPOINTS",
            "is no URL of Redis, as in redis://user:password@host:6379/0: percent-encode the "
            "password, and check the port and the options",
        ) from None
    return pool


class RedisServer(Opened):
    """Connections to a Redis >= 6.2 or a Valkey."""

    def __init__(self, url: str, serde: SerializerProtocol) -> None:
        self._pool = connection_pool(url)
        self.saver = RedisSaver(Redis(connection_pool=self._pool), serde=serde)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except (RedisError, OSError) as error:
            raise StoreError(f"Redis: {str(error) or type(error).__name__}"[:300]) from error

    def close(self) -> None:
        self._pool.disconnect()
