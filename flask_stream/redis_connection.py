"""Connections to Redis or Valkey, and checks at start that the server can keep data.

The store and the checkpoints use them. Each passes the name of its setting for error messages.
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

#: Most connections of a pool. Callers wait when all are in use.
CONNECTIONS = 16
#: Seconds to wait for the server's response.
TIMEOUT = 5.0


def connection_pool(url: str, timeout: float, setting: str) -> BlockingConnectionPool:
    """Return a pool of connections to a server, which return bytes. It does not connect yet.

    `timeout` is how many seconds to wait for a response and for a free connection, unless the URL's
    own options set it. Raises ConfigError. Its message does not contain the URL, because a part of
    the password may have been parsed as the port or the path.
    """
    problem = _url_problem(url)
    if problem is None:
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
                # One retry, for a connection that the server has closed meanwhile. Timeouts are not
                # retried: the caller has waited, and decides whether to try again.
                "retry": Retry(NoBackoff(), 1, (ConnectionError,)),
            }
            pool = BlockingConnectionPool(**defaults | options | fixed)  # type: ignore[no-untyped-call]
            # Creating a connection object fails for an unknown option.
            pool.connection_class(**pool.connection_kwargs)
            return pool
        except (ValueError, TypeError, RedisError) as error:
            problem = "the options are invalid" if "@" in url else short(error)
    hint = "; percent-encode the password" if "@" in url else ""
    raise ConfigError(
        setting, f"is not a Redis URL such as redis://user:password@host:6379/0: {problem}{hint}"
    )


def _url_problem(url: str) -> str | None:
    """Return what is wrong with a URL's host, port or database, without quoting it."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - reading it validates it
    except ValueError:
        return "the host or the port is invalid"
    if parts.scheme != "unix" and re.fullmatch(r"(/\d*)?", parts.path) is None:
        return "the database is not a number"
    return None


def check(server: Any, shown: str, setting: str) -> Mapping[str, Any]:
    """Return the server's INFO, or an empty mapping and log a warning if INFO is not permitted.

    `server` is a redis-py client, `shown` its URL without secrets. Raises ConfigError if the server
    does not answer, or may lose data. Leaves no connection open.
    """
    try:
        info: Mapping[str, Any] = server.info()
    except NoPermissionError:
        logger.warning(
            "%s: %s does not permit INFO, so its version and memory settings are not checked",
            setting,
            shown,
        )
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
            "%s: %s has no maxmemory limit. With one, its maxmemory-policy %s would delete stored "
            "data: set it to noeviction",
            *(setting, shown, policy),
        )
    return info


def unfit(info: Mapping[str, Any]) -> str | None:
    """Return why a server with this INFO may lose data, or None if it does not."""
    version = str(info.get("redis_version", ""))
    numbers = tuple(int(number) for number in re.findall(r"\d+", version))
    if numbers < (6, 2):
        return f"which is version {version}: use Redis 6.2 or later, or Valkey"
    if info.get("cluster_enabled"):
        return "which is part of a cluster: use a server with cluster-enabled no"
    policy = str(info.get("maxmemory_policy", ""))
    # The volatile-* policies delete only keys that have a time to live. Runs have none.
    if policy.startswith("allkeys-") and info.get("maxmemory"):
        return (
            f"whose maxmemory-policy {policy} deletes stored data when memory runs out: "
            "set it to noeviction"
        )
    return None


@contextmanager
def store_errors(pool: BlockingConnectionPool, shown: str) -> Iterator[None]:
    """Raise StoreError for any error that the client raises inside the block."""
    try:
        yield
    except (RedisError, OSError) as error:
        if isinstance(error, ReadOnlyError):
            # After a failover this server is a replica. Its name may resolve to another one now.
            pool.disconnect(inuse_connections=False)
        raise StoreError(f"{shown}: {short(error)}") from error


def without_secrets(url: str) -> str:
    """Return the URL without user, password and options, for messages."""
    scheme, _, rest = url.partition("://")
    rest, _, options = rest.partition("?")
    # An @ in the options may belong to a password that contains a question mark.
    return f"{scheme}://{'…' if '@' in options else rest.rpartition('@')[2]}"


def short(error: Exception) -> str:
    """Return the error's text, shortened for one line."""
    return (str(error) or type(error).__name__)[:200].rstrip(".")
