"""The names of LangGraph that it does not document. No other module spells them out.

tests/test_internals.py says which of these has moved when an upgrade breaks it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langgraph.config import get_config

#: The channels of a task's pending writes: what it asks, what it was answered, that it is done.
INTERRUPT, RESUME, NO_WRITES = "__interrupt__", "__resume__", "__no_writes__"
#: The task id of writes that belong to the thread itself.
NULL_TASK_ID = "00000000-0000-0000-0000-000000000000"
#: The key of `configurable` that sends subgraphs back: namespace → checkpoint id.
CHECKPOINT_MAP = "checkpoint_map"
_STREAM = "__pregel_stream"


def stream_writer() -> Callable[[tuple[tuple[str, ...], str, Any]], None]:
    """Return a function that adds (namespace, mode, data) to what the running graph streams.

    A node's own writer would not do: in a graph that a node streams, it is the node's. Raises
    RuntimeError or KeyError outside of a node.
    """
    write: Callable[[tuple[tuple[str, ...], str, Any]], None] = get_config()["configurable"][
        _STREAM
    ]
    return write
