"""The names of LangGraph that it does not document. No other module spells them out.

tests/test_internals.py names the one that has changed if an upgrade breaks it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langgraph.config import get_config

#: Channels of a task's pending writes: its questions, its answers, and that it wrote nothing.
INTERRUPT, RESUME, NO_WRITES = "__interrupt__", "__resume__", "__no_writes__"
#: The task id of writes that belong to the thread itself.
NULL_TASK_ID = "00000000-0000-0000-0000-000000000000"
#: The key in `configurable` that resets subgraphs: namespace → checkpoint id.
CHECKPOINT_MAP = "checkpoint_map"
_STREAM = "__pregel_stream"


def stream_writer() -> Callable[[tuple[tuple[str, ...], str, Any]], None]:
    """Return a function that adds (namespace, mode, data) to what the running graph streams.

    `get_stream_writer` cannot do that: in a graph that a node streams itself, it writes to the
    stream of the outer node. Raises RuntimeError or KeyError outside of a node.
    """
    write: Callable[[tuple[tuple[str, ...], str, Any]], None] = get_config()["configurable"][
        _STREAM
    ]
    return write
