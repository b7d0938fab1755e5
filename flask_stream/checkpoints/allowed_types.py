"""Where graphs keep their state that have no checkpointer: LangGraph's savers, by URL.

What is stored is turned back into plain data, messages, and the types that a graph declares in
its state; into nothing else, and nothing is pickled: who can write to the database could have any
code run otherwise. See `with_types_of`.
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
    """The same saver, which gives back the graph's own types as they were.

    These are the dataclasses, the enums and the models of pydantic that the graph, its subgraphs
    and its nodes name in the schemas of their state, also within lists and dictionaries. What
    comes as another type, such as a dataclass in a field that is `Any`, or what is declared as a
    class of which it is a subclass, is given back as plain data: a dictionary of its fields. To
    have it back whole, name it in the schema, or compile the graph with a checkpointer of your
    own whose `serde` allows it.
    """
    return saver.with_allowlist({(kind.__module__, kind.__name__) for kind in _types(graph)})


def _types(graph: Any) -> Iterator[type]:
    found: dict[int, Any] = {}
    for part in (graph, *(subgraph for _, subgraph in graph.get_subgraphs(recurse=True))):
        for channel in part.channels.values():
            for name in ("ValueType", "UpdateType"):
                _walk(getattr(channel, name, None), found)
        for schema in getattr(getattr(part, "builder", None), "schemas", ()):
            _walk(schema, found)
    return (kind for kind in found.values() if _is_stored_by_name(kind))


def _walk(kind: Any, found: dict[int, Any]) -> None:
    """Add the type, and all that it is made of. By identity: not every annotation has a hash."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if id(kind) in found or get_origin(kind) is Literal:
        return
    found[id(kind)] = kind
    for part in (*get_args(kind), *_fields(kind)):
        _walk(part, found)


def _fields(kind: Any) -> Iterable[Any]:
    if not is_typeddict(kind) and not _is_stored_by_name(kind):
        return ()
    try:
        return get_type_hints(kind, include_extras=True).values()
    except (NameError, TypeError):  # names that there are for type checkers alone
        return ()


def _is_stored_by_name(kind: Any) -> bool:
    return isinstance(kind, type) and (
        dataclasses.is_dataclass(kind) or issubclass(kind, BaseModel | Enum)
    )
