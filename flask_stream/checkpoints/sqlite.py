"""`sqlite:///file`: graphs' state in a file, for any number of workers on one machine.

LangGraph's own saver, on a thread of its own: SQLite waits for its file without gevent's
knowledge, and no stream of the worker would move meanwhile.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from langgraph.checkpoint.serde.base import SerializerProtocol

from ..concurrency.native_thread import NativeThread
from ..errors import ConfigError, StoreError
from .base import OpenSaver

try:
    from langgraph.checkpoint.sqlite import SqliteSaver
except ImportError as missing:
    raise ConfigError(
        "STREAM_CHECKPOINTS",
        "is in SQLite, and LangGraph's saver for it is not installed: "
        "pip install 'flask-llm-stream[graph]'",
    ) from missing

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds that a call waits for a lock that another process holds.
BUSY = 10.0


class SqliteFile(OpenSaver):
    """An open file; it is made, for this user alone, where it is not there yet."""

    def __init__(self, path: Path, serde: SerializerProtocol) -> None:
        self._path = path
        self._thread = NativeThread()
        try:
            self._connection = self.call(_connect, path)
            self.saver = SqliteSaver(self._connection, serde=serde)
            self.call(self.saver.setup)
        except BaseException:
            self._thread.close()
            raise

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return self._thread.call(function, *args, **kwargs)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self._path}: {error}") from error

    def close(self) -> None:
        with suppress(RuntimeError):  # it is closed already
            self._thread.call(self._connection.close)
        self._thread.close()


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite gives the mode of a file to its companions, too.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    # Made on the thread that uses it; closed on another when the interpreter goes.
    connection = sqlite3.connect(path, timeout=BUSY, check_same_thread=False)
    try:
        until = time.monotonic() + BUSY
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError:
                # Workers that start together: here alone SQLite does not wait for a lock.
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)
        # A process that dies takes no commit back; a machine that dies may take the last ones.
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection
