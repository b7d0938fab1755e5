"""`postgres://host/database`: the state of graphs in PostgreSQL, shared by many machines.

This is LangGraph's own saver on a connection pool. psycopg cooperates with gevent if gevent has
patched `select` before psycopg is imported.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

from langgraph.checkpoint.serde.base import SerializerProtocol

from ..errors import ConfigError, StoreError
from .base import OpenSaver

try:
    import psycopg
    from langgraph.checkpoint.postgres import PostgresSaver
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.rows import dict_row
    from psycopg_pool import ConnectionPool, PoolTimeout
except ImportError as missing:
    raise ConfigError(
        "STREAM_CHECKPOINTS",
        "is a PostgreSQL URL, which needs LangGraph's saver for PostgreSQL: "
        "pip install 'flask-llm-stream[postgres]'",
    ) from missing

P = ParamSpec("P")
T = TypeVar("T")

#: The maximum number of connections per process. Further calls wait for a free one.
CONNECTIONS = 16
#: Timeouts in seconds: to connect, and to wait until another worker has created the tables.
CONNECT, PREPARE = 5, 60
#: Defaults that the URL can override. The keepalives detect a server that is unreachable.
_DEFAULTS = {
    "connect_timeout": CONNECT,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
#: The advisory lock of the worker that creates the tables.
_LOCK = 0x464C5354
_OPTIONS: dict[str, Any] = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}


def check(url: str) -> None:
    """Raise ConfigError for an invalid URL. The message does not contain the URL."""
    try:
        ports = str(conninfo_to_dict(url).get("port", ""))
        # Part of a password that is not percent-encoded ends up in the port or the path, and
        # would appear in later errors.
        if re.fullmatch(r"[\d,]*", ports) is None or "@" in urlsplit(url).path:
            raise ValueError("invalid port or database")
    except (psycopg.Error, ValueError):
        raise ConfigError(
            "STREAM_CHECKPOINTS",
            "is not a valid PostgreSQL URL such as postgres://user:password@host:5432/database: "
            "percent-encode the password, and check the port and the options",
        ) from None


class PostgresPool(OpenSaver):
    """A connection pool. Creating it also creates the tables if they do not exist."""

    def __init__(self, url: str, serde: SerializerProtocol) -> None:
        parameters = conninfo_to_dict(url)
        self._password = parameters.get("password")
        self._server = f"PostgreSQL at {parameters.get('host', 'the default socket')}"
        options = {**_DEFAULTS, **parameters, **_OPTIONS}
        try:
            _create_tables(options)
        except psycopg.Error as error:
            raise self._error(error) from None
        self._pool: Any = ConnectionPool(
            kwargs=options, min_size=1, max_size=CONNECTIONS, timeout=CONNECT, open=True
        )
        saver: Any = PostgresSaver(self._pool, serde=serde)
        # The saver's lock serializes calls on a single connection; a pool does not need it.
        saver.lock = nullcontext()
        self.saver = saver

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            try:
                return function(*args, **kwargs)
            except PoolTimeout:
                raise
            except psycopg.OperationalError:
                # The server may have restarted. All calls of a saver are safe to repeat.
                self._pool.check()
                return function(*args, **kwargs)
        except psycopg.Error as error:
            raise self._error(error) from None

    def close(self) -> None:
        self._pool.close()

    def _error(self, error: psycopg.Error) -> StoreError:
        text = str(error) or type(error).__name__
        if self._password:
            text = text.replace(str(self._password), "…")
        return StoreError(f"{self._server}: {text[:300]}")


def _create_tables(options: dict[str, Any]) -> None:
    """Create the tables if they do not exist. Of several starting workers, one creates them."""
    with psycopg.connect(**options) as connection:
        saver = PostgresSaver(connection)
        deadline = time.monotonic() + PREPARE
        while not _has_tables(connection, len(saver.MIGRATIONS) - 1):
            # Does not block: CREATE INDEX CONCURRENTLY would wait for the transaction of a blocked
            # worker.
            if _value(connection, "SELECT pg_try_advisory_lock(%s)", _LOCK):
                saver.setup()
                return
            if time.monotonic() > deadline:
                raise psycopg.OperationalError(
                    "timed out waiting for another process to create the tables"
                )
            time.sleep(0.05)


def _has_tables(connection: Any, newest: int) -> bool:
    if _value(connection, "SELECT to_regclass('checkpoint_migrations')") is None:
        return False
    version = _value(connection, "SELECT max(v) FROM checkpoint_migrations")
    return version is not None and version >= newest


def _value(connection: Any, query: str, *parameters: Any) -> Any:
    row = connection.execute(query, parameters).fetchone()
    return next(iter(row.values()))
