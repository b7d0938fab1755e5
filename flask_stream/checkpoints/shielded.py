"""A graph's checkpointer as a run uses it.

- Stopping a run does not interrupt a call. Other runs share the connection, and an interrupted call
  would leave it unusable.
- The metadata of each checkpoint of a subgraph names the checkpoint of the top graph that it
  belongs to. So the checkpoints of one question can be found without loading the whole thread.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointMetadata

from ..concurrency import tasks

#: The metadata key under which a subgraph's checkpoint names the top graph's checkpoint.
TOP = "flask_stream_top"
#: The methods that a graph and its source call during a run, besides `put` and `list`.
_METHODS = ("get_tuple", "put_writes", "get_delta_channel_history")


def shielded(saver: BaseCheckpointSaver[Any]) -> BaseCheckpointSaver[Any]:
    """Return a checkpointer on the same connection whose calls are never interrupted."""
    kind = type(saver)

    def shield_method(name: str) -> Any:
        method = getattr(kind, name)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            with tasks.shield():
                return method(self, *args, **kwargs)

        call.__wrapped__ = method  # type: ignore[attr-defined] # LangGraph reads its signature
        return call

    def put(
        self: Any,
        config: RunnableConfig,
        checkpoint: Any,
        metadata: CheckpointMetadata,
        new_versions: Any,
    ) -> RunnableConfig:
        top = metadata.get("parents", {}).get("")
        if top is not None:
            metadata = {**metadata, TOP: top}  # type: ignore[misc]
        with tasks.shield():
            return kind.put(self, config, checkpoint, metadata, new_versions)

    def list(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with tasks.shield():
            return iter([*kind.list(self, *args, **kwargs)])

    copied = copy.copy(saver)
    methods = {name: shield_method(name) for name in _METHODS if hasattr(kind, name)}
    copied.__class__ = type(kind.__name__, (kind,), {**methods, "put": put, "list": list})
    return copied
