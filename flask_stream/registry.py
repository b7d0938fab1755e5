"""Find the implementation for a URL, a chain or a name.

Stores, sources, checkpoint back ends and dialects are registered here. Those of this package are in
the tables below. An app adds its own with the `register_…` functions before it creates its
`FlaskStream`. An implementation that needs an extra is imported when it is first used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import isasyncgenfunction, iscoroutinefunction, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .dialects.base import Dialect
from .dialects.native import Native
from .dialects.text import Text
from .errors import ConfigError, StoreError
from .sources.base import Input, Source
from .sources.function import FunctionSource
from .sources.langchain import LangChainSource
from .stores.base import Store
from .stores.memory import MemoryStore
from .stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from .checkpoints.lazy import LazySaver

#: Opens the store of a URL. The second argument is the app's instance folder, for relative paths.
OpenStore = Callable[[str, str], Store]
OpenCheckpoints = Callable[[str, str], Any]
#: Returns the source for a chain, or None if it does not support this kind of chain.
MakeSource = Callable[[Any], Source | None]

REDIS_SCHEMES = ("redis", "rediss", "unix")


# Stores


def register_store(scheme: str, open: OpenStore) -> None:
    """Register `open(url, instance_folder)` for `STREAM_STORE=<scheme>://…`."""
    _stores[scheme] = open


def open_store(url: str, folder: str) -> Store:
    """Return the store that a URL names. Raises ConfigError.

    Relative paths in `sqlite:///…` are relative to `folder`.
    """
    scheme, separator, _ = url.partition("://")
    open = _stores.get(scheme) if separator else None
    if open is None:
        known = ", ".join(f"{name}://" for name in _stores)
        raise ConfigError(
            "STREAM_STORE",
            f"is not the URL of a store: use sqlite:///file, redis://host, rediss://host, "
            f"unix://socket or memory:// (known schemes: {known})",
        )
    return open(url, folder)


def is_redis(url: str) -> bool:
    """Return whether a store's URL names a Redis or Valkey server."""
    return url.partition("://")[0] in REDIS_SCHEMES


def _open_sqlite(url: str, folder: str) -> Store:
    path = url.removeprefix("sqlite://").removeprefix("/")
    if not path:
        raise ConfigError("STREAM_STORE", f"is {url!r}, which does not name a file")
    try:
        return SqliteStore(Path(folder) / path)
    except StoreError as error:
        raise ConfigError("STREAM_STORE", f"is {url!r}: {error}") from error


def _open_redis(url: str, folder: str) -> Store:
    from .stores.redis import RedisStore

    return RedisStore(url)


def _open_memory(url: str, folder: str) -> Store:
    if url != "memory://":
        raise ConfigError("STREAM_STORE", f"is {url!r}: use memory:// alone")
    return MemoryStore()


_stores: dict[str, OpenStore] = {
    "sqlite": _open_sqlite,
    **dict.fromkeys(REDIS_SCHEMES, _open_redis),
    "memory": _open_memory,
}


# Checkpoints


def register_checkpoints(scheme: str, open: OpenCheckpoints) -> None:
    """Register `open(url, instance_folder)` for `STREAM_CHECKPOINTS=<scheme>://…`.

    It returns a LangGraph saver.
    """
    _checkpoints[scheme] = open


def open_checkpoints(url: str, folder: str) -> Any:
    """Return the saver that a URL names. Raises ConfigError.

    Relative paths in `sqlite:///…` are relative to `folder`. The saver connects when it is first
    used, in each process.
    """
    if not url:
        return None
    scheme, separator, rest = url.partition("://")
    open = _checkpoints.get(scheme) if separator else None
    if open is None or (scheme == "sqlite" and not rest.removeprefix("/")):
        raise ConfigError(
            "STREAM_CHECKPOINTS",
            "is not the URL of a checkpointer: use sqlite:///file, postgres://host/database, "
            "redis://host, rediss://host, unix://socket or memory://",
        )
    return open(url, folder)


def _sqlite_checkpoints(url: str, folder: str) -> LazySaver:
    from .checkpoints.lazy import LazySaver, serializer
    from .checkpoints.sqlite import SqliteFile

    path, serde = Path(folder) / url.removeprefix("sqlite://").removeprefix("/"), serializer()
    return LazySaver(lambda: SqliteFile(path, serde), serde)


def _postgres_checkpoints(url: str, folder: str) -> LazySaver:
    from .checkpoints.lazy import LazySaver, serializer
    from .checkpoints.postgres import PostgresPool, check

    check(url)
    serde = serializer()
    return LazySaver(lambda: PostgresPool(url, serde), serde)


def _redis_checkpoints(url: str, folder: str) -> LazySaver:
    from .checkpoints.lazy import LazySaver, serializer
    from .checkpoints.redis import RedisServer, check

    check(url)
    serde = serializer()
    return LazySaver(lambda: RedisServer(url, serde), serde)


def _memory_checkpoints(url: str, folder: str) -> LazySaver:
    if url != "memory://":
        raise ConfigError("STREAM_CHECKPOINTS", "is memory:// with text after it: remove the text")
    from .checkpoints.lazy import LazySaver, serializer
    from .checkpoints.memory import MemorySaver

    serde = serializer()
    return LazySaver(lambda: MemorySaver(serde), serde)


_checkpoints: dict[str, OpenCheckpoints] = {
    "sqlite": _sqlite_checkpoints,
    "postgres": _postgres_checkpoints,
    "postgresql": _postgres_checkpoints,
    **dict.fromkeys(REDIS_SCHEMES, _redis_checkpoints),
    "memory": _memory_checkpoints,
}


# Dialects


def register_dialect(dialect: Dialect) -> None:
    """Register a dialect for `?format=<dialect.name>`."""
    _dialects[dialect.name] = dialect


def dialects() -> dict[str, Dialect]:
    """Return the dialects by name."""
    return dict(_dialects)


_dialects: dict[str, Dialect] = {dialect.name: dialect for dialect in (Native(), Text())}


# Sources


def register_source(make: MakeSource) -> None:
    """Register a function that makes sources. `stream.add` tries it before the built-in sources."""
    _sources.append(make)


_sources: list[MakeSource] = []


def make_source(
    name: str,
    chain: Any,
    prepare: Callable[[Input], Any] | None,
    state: bool | Sequence[str] | Callable[[Any], Any],
) -> Source:
    """Return the source for a chain. Raises ConfigError for a chain that cannot be streamed."""
    for make in _sources:
        if (source := make(chain)) is not None:
            return source
    if hasattr(chain, "stream"):
        try:
            if is_graph(chain):
                from .sources.langgraph import LangGraphSource

                return LangGraphSource(chain, prepare, state=state)
            if state:
                raise ConfigError(f"chain {name!r}", "is not a graph: remove state=")
            return LangChainSource(chain, prepare)
        except ValueError as error:
            raise ConfigError(f"chain {name!r}", f"cannot take a question: {error}") from error
    if hasattr(chain, "compile") and hasattr(chain, "add_node"):
        raise ConfigError(
            f"chain {name!r}", "is a graph that is not compiled: pass graph.compile()"
        )
    if callable(chain):
        return _function_source(name, chain, prepare, state)
    raise ConfigError(
        f"chain {name!r}", f"is {chain!r}, which has no stream method and is not a function"
    )


def _function_source(name: str, function: Any, prepare: Any, state: Any) -> Source:
    if _is_async(function) or _is_async(type(function).__call__):
        raise ConfigError(
            f"chain {name!r}", "is async: write it with `def`, and `yield` the answer"
        )
    if prepare is not None or state:
        raise ConfigError(
            f"chain {name!r}",
            "is a function: remove input= and state=. To get the run's whole input, name its "
            "parameter `input`",
        )
    try:
        signature(function).bind("question")
    except TypeError as error:
        raise ConfigError(
            f"chain {name!r}",
            "is a function that cannot be called with one argument, the question",
        ) from error
    except ValueError:  # functions written in C have no signature
        pass
    return FunctionSource(function)


def _is_async(function: Any) -> bool:
    return iscoroutinefunction(function) or isasyncgenfunction(function)


def is_graph(chain: Any) -> bool:
    """Return whether `chain` is a compiled LangGraph graph, without importing langgraph."""
    return any(
        kind.__name__ == "Pregel" and kind.__module__.startswith("langgraph.")
        for kind in type(chain).__mro__
    )
