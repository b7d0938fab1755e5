"""A checkpoint saver that is opened when it is first used, in the process that uses it."""

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
    """Return what stores checkpoints: plain data and messages, and never a pickle."""
    return JsonPlusSerializer(pickle_fallback=False, allowed_msgpack_modules=None)


class LazySaver(BaseCheckpointSaver[str]):
    """Calls the saver that `opening` opens, at the first call of each process.

    So it may be made before a fork, and no connection is carried through one. A call is not
    broken off by a Stop: the connection is everybody's. Copies, as `with_allowlist` makes them,
    share the connection, each with its own `serde`. Every call raises StoreError when the server
    cannot be reached, and RuntimeError when the saver is closed.
    """

    def __init__(self, opening: Callable[[], OpenSaver], serde: SerializerProtocol) -> None:
        super().__init__(serde=serde)
        self._place = _Place(opening)

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
        # All at once: a page that is half read would hold the connection.
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
        version: str = self._place.opened().saver.get_next_version(current, channel)
        return version

    def close(self) -> None:
        """End the connection, for all copies. It may be closed again."""
        self._place.close()

    def _call(self, ask: Callable[[BaseCheckpointSaver[Any]], T]) -> T:
        with tasks.shield():
            opened = self._place.opened()
            saver = copy.copy(opened.saver)
            saver.serde = self.serde
            return opened.call(ask, saver)


class _Place:
    """What is open in this process."""

    def __init__(self, opening: Callable[[], OpenSaver]) -> None:
        self._opening = opening
        self._lock = threading.Lock()
        self._there: dict[int, OpenSaver] = {}  # by process: a parent's is kept, and left alone
        self._closed = False

    def opened(self) -> OpenSaver:
        return self._there.get(os.getpid()) or self._open()

    def _open(self) -> OpenSaver:
        with self._lock:
            if self._closed:
                raise RuntimeError("the checkpoints are closed")
            if os.getpid() not in self._there:
                self._there[os.getpid()] = self._opening()
            return self._there[os.getpid()]

    def close(self) -> None:
        with self._lock:
            self._closed = True
            opened = self._there.pop(os.getpid(), None)
        if opened is not None:
            opened.close()
