"""Where graphs keep their state that have no checkpointer: LangGraph's savers, by URL.

What is stored is turned back into plain data, messages, and the types that a graph declares in
its state; into nothing else, and nothing is pickled: who can write to the database could have any
code run otherwise. See `with_types_of`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.pregel import Pregel
from pydantic import BaseModel
from typing_extensions import is_typeddict

from .checkpoints_lazy import LazySaver, Opened
from .errors import ConfigError

P = ParamSpec("P")
T = TypeVar("T")


def open_checkpoints(url: str, folder: str) -> LazySaver | None:
    """The saver that a URL names, None for none; a relative SQLite path is one in `folder`.

    It connects when it is first asked, in each process. Raises ConfigError for a URL that is
    none, for a Redis that would not keep what it is given, and where a package is missing; what
    it raises later is told by `LazySaver`.
    """
    serde = JsonPlusSerializer(pickle_fallback=False, allowed_msgpack_modules=None)
    scheme, _, rest = url.partition("://")
    # Each imported when it is wanted: they are extras.
    if not url:
        return None
    if url == "memory://":
        return LazySaver(lambda: _Memory(serde), serde)
    if scheme == "sqlite" and rest.removeprefix("/"):
        from .checkpoints_sqlite import SqliteFile

        path = Path(folder) / rest.removeprefix("/")
        return LazySaver(lambda: SqliteFile(path, serde), serde)
    if scheme in ("postgres", "postgresql"):
        from .checkpoints_postgres import PostgresPool, check

        check(url)
        return LazySaver(lambda: PostgresPool(url, serde), serde)
    if scheme in ("redis", "rediss", "unix"):
        from .checkpoints_redis import RedisServer
        from .checkpoints_redis import check as check_redis

        check_redis(url)
        return LazySaver(lambda: RedisServer(url, serde), serde)
    raise ConfigError(
        "STREAM_CHECKPOINTS",
        "is no URL of a checkpointer, and should be sqlite:///file, postgres://host/database, "
        "redis://host, rediss://host, unix://socket or memory://",
    )


class _Memory(Opened):
    """This process's memory, gone with it."""

    def __init__(self, serde: JsonPlusSerializer) -> None:
        self.saver = InMemorySaver(serde=serde)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)

    def close(self) -> None:
        pass


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
