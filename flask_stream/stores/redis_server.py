"""Reaching a Redis, and finding out at start whether it would keep logs."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from redis import BlockingConnectionPool
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import ConnectionError, NoPermissionError, RedisError
from redis.retry import Retry

from ..errors import ConfigError

logger = logging.getLogger(__name__)

#: Connections that a process has at most, beside the one for news. Who needs more has to wait.
CONNECTIONS = 16


def connection_pool(url: str, timeout: float) -> BlockingConnectionPool:
    """Connections to the server of that URL, none of them made yet. Raises ConfigError."""
    try:
        parts = urlsplit(url)
        options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
        if parts.scheme != "unix" and re.fullmatch(r"(/\d*)?", parts.path) is None:
            raise ValueError(f"the database {parts.path[1:]!r} is not a number")
        defaults = {
            "max_connections": CONNECTIONS,
            "timeout": timeout,
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "health_check_interval": 15,
        } | ({} if parts.scheme == "unix" else {"socket_keepalive": True})
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
    except (ValueError, TypeError, RedisError) as error:
        # What of a password was taken for a port or a path would be in the error's text.
        hint = "percent-encode the password, and check the port" if "@" in url else short(error)
        raise ConfigError(
            "STREAM_STORE", f"is {without_secrets(url)}, which is not a Redis URL: {hint}"
        ) from None
    return pool


def check(server: Any, shown: str) -> None:
    """Raises ConfigError if logs could not be kept in that server. Leaves no connection open."""
    try:
        info = server.info()
    except NoPermissionError:
        logger.warning("store: %s does not let its version and memory be seen", shown)
        return
    except (RedisError, OSError) as error:
        raise ConfigError(
            "STREAM_STORE",
            f"is {shown}, which does not answer: {short(error)}. "
            "Start the server, or correct the URL",
        ) from error
    finally:
        server.connection_pool.disconnect()
    problem = unfit(info)
    if problem:
        raise ConfigError("STREAM_STORE", f"is {shown}, {problem}")
    policy = str(info.get("maxmemory_policy", ""))
    if policy.startswith("allkeys-"):
        logger.warning(
            "store: %s has no maxmemory now; with one, its maxmemory-policy %s would delete logs: "
            "set it to noeviction",
            *(shown, policy),
        )
    elif policy.startswith("volatile-") and info.get("maxmemory"):
        logger.warning(
            "store: %s has the maxmemory-policy %s, which forgets counts and claims before their "
            "time when memory runs out: set it to noeviction",
            *(shown, policy),
        )


def unfit(info: Mapping[str, Any]) -> str | None:
    """Why logs cannot be kept in a server with this INFO; None if they can."""
    version = str(info.get("redis_version", ""))
    numbers = tuple(int(number) for number in re.findall(r"\d+", version))
    if numbers < (6, 2):
        return f"which is version {version}: use Redis 6.2 or later, or Valkey"
    if info.get("cluster_enabled"):
        return "which is part of a cluster: use a server with cluster-enabled no"
    policy = str(info.get("maxmemory_policy", ""))
    # The volatile-* policies spare keys without a time to live, as those of runs are.
    if policy.startswith("allkeys-") and info.get("maxmemory"):
        return (
            f"whose maxmemory-policy {policy} deletes logs when memory runs out: "
            "set it to noeviction"
        )
    return None


def without_secrets(url: str) -> str:
    """The URL for a message: without user, password and options."""
    scheme, _, rest = url.partition("://")
    rest, _, options = rest.partition("?")
    # An @ in there may belong to a password with a question mark in it.
    return f"{scheme}://{'…' if '@' in options else rest.rpartition('@')[2]}"


def short(error: Exception) -> str:
    """What went wrong, fit for one line."""
    return (str(error) or type(error).__name__)[:200].rstrip(".")
