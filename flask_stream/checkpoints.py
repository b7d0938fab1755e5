"""Where graphs keep their state that have no checkpointer: LangGraph's savers, by URL.

A saver connects when it is first asked, after any fork. What it has stored it does not turn into
objects of any module: LangGraph's own types and plain data only.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
)
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from .errors import ConfigError

#: Milliseconds that a locked file is waited for.
_LOCKED = 5000


def open_checkpoints(url: str, folder: str) -> BaseCheckpointSaver[Any] | None:
    """The saver that a URL names, None for none; a relative SQLite path is one in `folder`.

    Raises ConfigError.
    """
    scheme, _, rest = url.partition("://")
    if not url:
        return None
    if url == "memory://":
        return InMemorySaver(serde=_serde())
    if scheme == "sqlite" and rest.removeprefix("/"):
        path = Path(folder) / rest.removeprefix("/")
        return _Lazy(lambda: _sqlite(path))
    if scheme in ("postgres", "postgresql"):
        _needs("langgraph.checkpoint.postgres", "postgres")
        return _Lazy(lambda: _postgres(url))
    raise ConfigError(
        "STREAM_CHECKPOINTS",
        "is no URL of a checkpointer, and should be sqlite:///file, postgres://host or memory://",
    )


def _serde() -> JsonPlusSerializer:
    return JsonPlusSerializer(pickle_fallback=False, allowed_msgpack_modules=None)


def _needs(module: str, extra: str) -> None:
    try:
        found = find_spec(module)
    except ImportError:  # a package that it is in is missing, too
        found = None
    if found is None:
        raise ConfigError("STREAM_CHECKPOINTS", f"needs: pip install 'flask-llm-stream[{extra}]'")


def _sqlite(path: Path) -> BaseCheckpointSaver[Any]:
    from langgraph.checkpoint.sqlite import SqliteSaver

    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    connection = sqlite3.connect(path, check_same_thread=False)
    connection.execute(f"PRAGMA busy_timeout = {_LOCKED}")
    saver = SqliteSaver(connection, serde=_serde())
    saver.setup()
    return saver


def _postgres(url: str) -> BaseCheckpointSaver[Any]:
    from langgraph.checkpoint.postgres import PostgresSaver
    from psycopg.rows import dict_row
    from psycopg_pool import ConnectionPool

    options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    pool: Any = ConnectionPool(url, min_size=1, max_size=20, kwargs=options, open=True)
    saver: BaseCheckpointSaver[Any] = PostgresSaver(pool, serde=_serde())
    saver.setup()  # type: ignore[attr-defined]
    return saver


class _Lazy(BaseCheckpointSaver[Any]):
    """A saver that is opened when it is first asked."""

    def __init__(self, opened: Callable[[], BaseCheckpointSaver[Any]]) -> None:
        super().__init__(serde=_serde())
        self._opened = opened

    @cached_property
    def _saver(self) -> BaseCheckpointSaver[Any]:
        return self._opened()

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self._saver.get_tuple(config)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        return self._saver.list(config, filter=filter, before=before, limit=limit)

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        return self._saver.put(config, checkpoint, metadata, new_versions)

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        self._saver.put_writes(config, writes, task_id, task_path)

    def delete_thread(self, thread_id: str) -> None:
        self._saver.delete_thread(thread_id)

    def get_next_version(self, current: Any, channel: None) -> Any:
        return self._saver.get_next_version(current, channel)

    def get_delta_channel_history(self, *args: Any, **kwargs: Any) -> Any:
        return self._saver.get_delta_channel_history(*args, **kwargs)
