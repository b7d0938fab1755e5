"""The Python types that a saver may create when it loads the state of a graph.

A saver loads plain data, messages, and the types that the graph declares in its state. It creates
no other types and never unpickles. Otherwise, anyone who can write to the database could run
arbitrary code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import (
    Annotated,
    Any,
    Literal,
    get_args,
    get_origin,
    get_type_hints,
)

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.pregel import Pregel
from pydantic import BaseModel
from typing_extensions import is_typeddict


def with_types_of(
    saver: BaseCheckpointSaver[Any], graph: Pregel[Any, Any, Any, Any]
) -> BaseCheckpointSaver[Any]:
    """Return a copy of the saver that also restores the types of this graph's state.

    These are the dataclasses, enums and pydantic models that the state schemas of the graph, its
    subgraphs and its nodes name, also inside lists and dictionaries. A value of any other type is
    restored as a dictionary of its fields. That includes a dataclass in a field declared as `Any`,
    and an instance of a subclass of the declared class. To restore such a type, name it in the
    schema, or compile the graph with your own checkpointer whose `serde` allows it.
    """
    return saver.with_allowlist({(kind.__module__, kind.__name__) for kind in _state_types(graph)})


def _state_types(graph: Any) -> Iterator[type]:
    """Yield the types in the state of the graph and its subgraphs that are stored by name."""
    found: dict[int, Any] = {}
    for part in (graph, *(subgraph for _, subgraph in graph.get_subgraphs(recurse=True))):
        for channel in part.channels.values():
            for name in ("ValueType", "UpdateType"):
                _collect(getattr(channel, name, None), found)
        for schema in getattr(getattr(part, "builder", None), "schemas", ()):
            _collect(schema, found)
    return (kind for kind in found.values() if _is_stored_by_name(kind))


def _collect(kind: Any, found: dict[int, Any]) -> None:
    """Add a type and the types that it contains. Some cannot be hashed, so ids are the keys."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if id(kind) in found or get_origin(kind) is Literal:
        return
    found[id(kind)] = kind
    for part in (*get_args(kind), *_field_types(kind)):
        _collect(part, found)


def _field_types(kind: Any) -> Iterable[Any]:
    if not is_typeddict(kind) and not _is_stored_by_name(kind):
        return ()
    try:
        return get_type_hints(kind, include_extras=True).values()
    except (NameError, TypeError):  # names that only type checkers know
        return ()


def _is_stored_by_name(kind: Any) -> bool:
    return isinstance(kind, type) and (
        dataclasses.is_dataclass(kind) or issubclass(kind, BaseModel | Enum)
    )
