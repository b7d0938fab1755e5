"""A graph's checkpointer as a run uses it.

- A Stop does not interrupt a call: others share the connection, and a broken call would leave it
  unusable for them.
- Each checkpoint of a subgraph names in its metadata the graph's own checkpoint that it belongs
  to, so those of one question are found without loading the whole thread.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointMetadata

from ..concurrency import tasks

#: The metadata key of a subgraph's checkpoint for the graph's own checkpoint that it belongs to.
TOP = "flask_stream_top"
#: What a graph and its source call while a run goes on, apart from `put` and `list`.
_CALLS = ("get_tuple", "put_writes", "get_delta_channel_history")


def shielded(saver: BaseCheckpointSaver[Any]) -> BaseCheckpointSaver[Any]:
    """Return a checkpointer on the same connection whose calls are never interrupted."""
    kind = type(saver)

    def whole(name: str) -> Any:
        call = getattr(kind, name)

        def shielded(self: Any, *args: Any, **kwargs: Any) -> Any:
            with tasks.shield():
                return call(self, *args, **kwargs)

        shielded.__wrapped__ = call  # type: ignore[attr-defined] # LangGraph reads its signature
        return shielded

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

    twin = copy.copy(saver)
    calls = {name: whole(name) for name in _CALLS if hasattr(kind, name)}
    twin.__class__ = type(kind.__name__, (kind,), {**calls, "put": put, "list": list})
    return twin
