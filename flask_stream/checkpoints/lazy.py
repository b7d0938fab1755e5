"""A checkpoint saver that each process opens at its first call."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from ..concurrency import tasks
from .base import OpenSaver

T = TypeVar("T")


def serializer() -> JsonPlusSerializer:
    """Return a serializer of plain data and messages that never pickles or unpickles."""
    return JsonPlusSerializer(pickle_fallback=False, allowed_msgpack_modules=None)


class LazySaver(BaseCheckpointSaver[str]):
    """Forwards each call to the saver that `open_saver` returns. Each process opens its own.

    A lazy saver can be created before a fork: no connection is shared between processes. Stopping
    a run does not interrupt a call, because all runs share the connection. Copies, such as those
    that `with_allowlist` returns, share the connection and have their own `serde`. Every call
    raises StoreError if the server cannot be reached, and RuntimeError if the saver is closed.
    """

    def __init__(self, open_saver: Callable[[], OpenSaver], serde: SerializerProtocol) -> None:
        super().__init__(serde=serde)
        self._process_savers = _ProcessSavers(open_saver)

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self._call(lambda saver: saver.get_tuple(config))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        # Reads everything at once: an iterator that is not exhausted would block the connection.
        return iter(
            self._call(
                lambda saver: [*saver.list(config, filter=filter, before=before, limit=limit)]
            )
        )

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        return self._call(lambda saver: saver.put(config, checkpoint, metadata, new_versions))

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        self._call(lambda saver: saver.put_writes(config, writes, task_id, task_path))

    def delete_thread(self, thread_id: str) -> None:
        self._call(lambda saver: saver.delete_thread(thread_id))

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        return self._call(
            lambda saver: saver.get_delta_channel_history(config=config, channels=channels)
        )

    def get_next_version(self, current: str | None, channel: None) -> str:
        version: str = self._process_savers.current().saver.get_next_version(current, channel)
        return version

    def close(self) -> None:
        """Close the connection of all copies. Closing twice has no effect."""
        self._process_savers.close()

    def _call(self, function: Callable[[BaseCheckpointSaver[Any]], T]) -> T:
        with tasks.shield():
            opened = self._process_savers.current()
            saver = copy.copy(opened.saver)
            saver.serde = self.serde
            return opened.call(function, saver)


class _ProcessSavers:
    """The open saver of each process."""

    def __init__(self, open_saver: Callable[[], OpenSaver]) -> None:
        self._open_saver = open_saver
        self._lock = threading.Lock()
        #: Process id → saver. A fork keeps its parent's saver and does not touch it: garbage
        #: collection would close the parent's connection.
        self._savers: dict[int, OpenSaver] = {}
        self._closed = False

    def current(self) -> OpenSaver:
        """Return the saver of this process. Opens it if necessary."""
        return self._savers.get(os.getpid()) or self._open()

    def _open(self) -> OpenSaver:
        with self._lock:
            if self._closed:
                raise RuntimeError("the checkpointer is closed")
            if os.getpid() not in self._savers:
                self._savers[os.getpid()] = self._open_saver()
            return self._savers[os.getpid()]

    def close(self) -> None:
        with self._lock:
            self._closed = True
            opened = self._savers.pop(os.getpid(), None)
        if opened is not None:
            opened.close()
