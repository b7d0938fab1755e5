"""Reaching a Redis or Valkey, and finding out at start whether it keeps what it is given.

For the store and the checkpoints alike: each names its own setting, which errors then name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from redis import BlockingConnectionPool
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import ConnectionError, NoPermissionError, ReadOnlyError, RedisError
from redis.retry import Retry

from .errors import ConfigError, StoreError

logger = logging.getLogger(__name__)

#: Connections that a pool has at most. Who needs more has to wait.
CONNECTIONS = 16
#: Seconds that the server may take to answer.
TIMEOUT = 5.0


def connection_pool(url: str, timeout: float, setting: str) -> BlockingConnectionPool:
    """Connections to the server of that URL, none of them made yet. They answer with bytes.

    `timeout` is how many seconds the server may take to answer, and a connection to come free,
    unless the URL's own options say otherwise. Raises ConfigError without the URL: what of a
    password was taken for a port or a path would be seen.
    """
    wrong = _wrong_place(url)
    if wrong is None:
        try:
            options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
            defaults = {
                "max_connections": CONNECTIONS,
                "timeout": timeout,
                "socket_timeout": timeout,
                "socket_connect_timeout": timeout,
                "health_check_interval": 15,
            } | ({} if url.startswith("unix:") else {"socket_keepalive": True})
            fixed = {
                "protocol": 2,
                "decode_responses": False,
                # Once, for a connection that was closed meanwhile. Not what timed out: the caller
                # has waited long enough, and knows better whether to try again.
                "retry": Retry(NoBackoff(), 1, (ConnectionError,)),
            }
            pool = BlockingConnectionPool(**defaults | options | fixed)  # type: ignore[no-untyped-call]
            # Made and thrown away: this is when an option that there is not is found.
            pool.connection_class(**pool.connection_kwargs)
            return pool
        except (ValueError, TypeError, RedisError) as error:
            wrong = "the options are wrong" if "@" in url else short(error)
    hint = "; percent-encode the password" if "@" in url else ""
    raise ConfigError(
        setting, f"is not a Redis URL, as in redis://user:password@host:6379/0: {wrong}{hint}"
    )


def _wrong_place(url: str) -> str | None:
    """What is wrong with a URL's host, port or database; none of it is in the sentence."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - it is read from the text only now
    except ValueError:
        return "the host or the port is wrong"
    if parts.scheme != "unix" and re.fullmatch(r"(/\d*)?", parts.path) is None:
        return "the database is not a number"
    return None


def check(server: Any, shown: str, setting: str) -> Mapping[str, Any]:
    """The server's INFO; nothing, with a warning, where the server does not let it be seen.

    `server` is a client of redis-py, `shown` its URL without secrets. Raises ConfigError for a
    server that does not answer or would not keep what it is given. Leaves no connection open.
    """
    try:
        info: Mapping[str, Any] = server.info()
    except NoPermissionError:
        logger.warning("%s: %s does not let its version and memory be seen", setting, shown)
        return {}
    except (RedisError, OSError) as error:
        raise ConfigError(
            setting,
            f"is {shown}, which does not answer: {short(error)}. "
            "Start the server, or correct the URL",
        ) from error
    finally:
        server.connection_pool.disconnect()
    problem = unfit(info)
    if problem:
        raise ConfigError(setting, f"is {shown}, {problem}")
    policy = str(info.get("maxmemory_policy", ""))
    if policy.startswith("allkeys-"):
        logger.warning(
            "%s: %s has no maxmemory now; with one, its maxmemory-policy %s would delete what is "
            "kept there: set it to noeviction",
            *(setting, shown, policy),
        )
    return info


def unfit(info: Mapping[str, Any]) -> str | None:
    """Why nothing can be kept in a server with this INFO; None if it can."""
    version = str(info.get("redis_version", ""))
    numbers = tuple(int(number) for number in re.findall(r"\d+", version))
    if numbers < (6, 2):
        return f"which is version {version}: use Redis 6.2 or later, or Valkey"
    if info.get("cluster_enabled"):
        return "which is part of a cluster: use a server with cluster-enabled no"
    policy = str(info.get("maxmemory_policy", ""))
    # The volatile-* policies spare keys without a time to live, as what has to stay has.
    if policy.startswith("allkeys-") and info.get("maxmemory"):
        return (
            f"whose maxmemory-policy {policy} deletes what is kept there when memory runs out: "
            "set it to noeviction"
        )
    return None


@contextmanager
def store_errors(pool: BlockingConnectionPool, shown: str) -> Iterator[None]:
    """Raises StoreError for whatever the client raises within."""
    try:
        yield
    except (RedisError, OSError) as error:
        if isinstance(error, ReadOnlyError):
            # A failover has made this server a replica: its name may lead elsewhere now.
            pool.disconnect(inuse_connections=False)
        raise StoreError(f"{shown}: {short(error)}") from error


def without_secrets(url: str) -> str:
    """The URL for a message: without user, password and options."""
    scheme, _, rest = url.partition("://")
    rest, _, options = rest.partition("?")
    # An @ in there may belong to a password with a question mark in it.
    return f"{scheme}://{'…' if '@' in options else rest.rpartition('@')[2]}"


def short(error: Exception) -> str:
    """What went wrong, fit for one line."""
    return (str(error) or type(error).__name__)[:200].rstrip(".")
