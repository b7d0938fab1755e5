"""`postgres://host/database`: graphs' state in PostgreSQL, for many machines.

LangGraph's own saver on a pool of connections. psycopg waits as gevent does where `select` is
patched before it is imported.
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
        "is in PostgreSQL, and LangGraph's saver for it is not installed: "
        "pip install 'flask-llm-stream[postgres]'",
    ) from missing

P = ParamSpec("P")
T = TypeVar("T")

#: Connections that a process has at most. Who needs more has to wait.
CONNECTIONS = 16
#: Seconds that a connection may take, and that a worker waits for another to make the tables.
CONNECT, PREPARE = 5, 60
#: What the URL may say otherwise. A server that the network has lost is noticed.
_DEFAULTS = {
    "connect_timeout": CONNECT,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
#: The advisory lock of who makes the tables.
_LOCK = 0x464C5354
_OPTIONS: dict[str, Any] = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}


def check(url: str) -> None:
    """Raises ConfigError for a URL that is none. Its text is not in the message."""
    try:
        ports = str(conninfo_to_dict(url).get("port", ""))
        # A password that is not percent-encoded goes on in there, and would be in later errors.
        if re.fullmatch(r"[\d,]*", ports) is None or "@" in urlsplit(url).path:
            raise ValueError("no port, or no database")
    except (psycopg.Error, ValueError):
        raise ConfigError(
            "STREAM_CHECKPOINTS",
            "is no URL of PostgreSQL, as in postgres://user:password@host:5432/database: "
            "percent-encode the password, and check the port and the options",
        ) from None


class PostgresPool(OpenSaver):
    """Connections to a server, where the tables are made if they are not there yet."""

    def __init__(self, url: str, serde: SerializerProtocol) -> None:
        given = conninfo_to_dict(url)
        self._password = given.get("password")
        self._shown = f"PostgreSQL at {given.get('host', 'its usual socket')}"
        options = {**_DEFAULTS, **given, **_OPTIONS}
        try:
            _prepare(options)
        except psycopg.Error as error:
            raise self._error(error) from None
        self._pool: Any = ConnectionPool(
            kwargs=options, min_size=1, max_size=CONNECTIONS, timeout=CONNECT, open=True
        )
        saver: Any = PostgresSaver(self._pool, serde=serde)
        # It is for who shares a single connection.
        saver.lock = nullcontext()
        self.saver = saver

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            try:
                return function(*args, **kwargs)
            except PoolTimeout:
                raise
            except psycopg.OperationalError:
                # A server that was restarted. All calls of a saver may be made again.
                self._pool.check()
                return function(*args, **kwargs)
        except psycopg.Error as error:
            raise self._error(error) from None

    def close(self) -> None:
        self._pool.close()

    def _error(self, error: psycopg.Error) -> StoreError:
        said = str(error) or type(error).__name__
        if self._password:
            said = said.replace(str(self._password), "…")
        return StoreError(f"{self._shown}: {said[:300]}")


def _prepare(options: dict[str, Any]) -> None:
    """Have the tables, made by one of all the workers that start together."""
    with psycopg.connect(**options) as connection:
        saver = PostgresSaver(connection)
        until = time.monotonic() + PREPARE
        while not _is_prepared(connection, len(saver.MIGRATIONS) - 1):
            # Not waited for: an index that is made "concurrently" waits for who waits.
            if _value(connection, "SELECT pg_try_advisory_lock(%s)", _LOCK):
                saver.setup()
                return
            if time.monotonic() > until:
                raise psycopg.OperationalError("another process makes the tables, for too long")
            time.sleep(0.05)


def _is_prepared(connection: Any, newest: int) -> bool:
    if _value(connection, "SELECT to_regclass('checkpoint_migrations')") is None:
        return False
    version = _value(connection, "SELECT max(v) FROM checkpoint_migrations")
    return version is not None and version >= newest


def _value(connection: Any, query: str, *parameters: Any) -> Any:
    row = connection.execute(query, parameters).fetchone()
    return next(iter(row.values()))
