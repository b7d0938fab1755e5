"""`sqlite:///file`: the state of graphs in a file, shared by the workers of one machine.

This is LangGraph's own saver on a native thread. SQLite does not cooperate with gevent: while it
waits for its file in a greenlet, all streams of the worker stand still.
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
        "is a SQLite URL, which needs LangGraph's saver for SQLite: "
        "pip install 'flask-llm-stream[graph]'",
    ) from missing

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds that a call waits for another process to release its lock.
BUSY = 10.0


class SqliteFile(OpenSaver):
    """An open file. A new file is readable and writable by its owner only."""

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
        with suppress(RuntimeError):  # it is already closed
            self._thread.call(self._connection.close)
        self._thread.close()


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite creates the -wal and -shm files with the mode of this file.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    # Created and used on the native thread, but closed on another when the interpreter exits.
    connection = sqlite3.connect(path, timeout=BUSY, check_same_thread=False)
    try:
        deadline = time.monotonic() + BUSY
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError:
                # Only this statement does not wait for a lock, which another starting worker may
                # hold.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        # No commit is lost if the process crashes. The last commits may be lost if the machine
        # crashes.
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection
