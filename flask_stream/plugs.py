"""Which plug a setting or a chain asks for: a URL's store or checkpoints, a chain's source.

To add a store, or a source, add it here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from inspect import isasyncgenfunction, iscoroutinefunction, signature
from pathlib import Path
from typing import Any

from .errors import ConfigError, StoreError
from .sources.base import Input, Source
from .sources.function import FunctionSource
from .sources.langchain import LangChainSource
from .stores.base import Store
from .stores.memory import MemoryStore
from .stores.sqlite import SqliteStore

logger = logging.getLogger(__name__)


def is_redis(url: str) -> bool:
    """Whether a store's URL is that of a Redis or Valkey."""
    return url.partition("://")[0] in ("redis", "rediss", "unix")


def open_store(url: str, folder: str) -> Store:
    """The store that a URL names; a relative SQLite path is one in `folder`. Raises ConfigError."""
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite":
        path = rest.removeprefix("/")
        if not path:
            raise ConfigError("STREAM_STORE", f"is {url!r}, which names no file")
        try:
            return SqliteStore(Path(folder) / path)
        except StoreError as error:
            raise ConfigError("STREAM_STORE", f"is {url!r}: {error}") from error
    if is_redis(url):
        # Imported when it is wanted: redis-py is an extra.
        from .stores.redis import RedisStore

        return RedisStore(url)
    if url == "memory://":
        return MemoryStore()
    raise ConfigError(
        "STREAM_STORE",
        "is no URL of a store, and should be sqlite:///file, redis://host, rediss://host, "
        "unix://socket or memory://",
    )


def make_source(
    name: str,
    chain: Any,
    prepare: Callable[[Input], Any] | None,
    state: bool | Sequence[str] | Callable[[Any], Any],
) -> Source:
    """The source that asks a chain. Raises ConfigError for one that cannot be asked like this."""
    if hasattr(chain, "stream"):
        try:
            if is_graph(chain):
                # Imported when it is wanted: langgraph is an extra.
                from .sources.langgraph import LangGraphSource

                return LangGraphSource(chain, prepare, state=state)
            if state:
                raise ConfigError(f"chain {name!r}", "is no graph: it takes no state=")
            return LangChainSource(chain, prepare)
        except ValueError as error:
            raise ConfigError(f"chain {name!r}", f"cannot be asked: {error}") from error
    if hasattr(chain, "compile") and hasattr(chain, "add_node"):
        raise ConfigError(f"chain {name!r}", "is a graph that is not compiled: add graph.compile()")
    if callable(chain):
        if _is_async(chain) or _is_async(type(chain).__call__):
            raise ConfigError(f"chain {name!r}", "is async: write `def`, and `yield` from it")
        if prepare is not None or state:
            told = "is a function: it takes neither input= nor state=; let its parameter be called "
            raise ConfigError(f"chain {name!r}", told + "`input` to have all that was asked")
        try:
            signature(chain).bind("question")
        except TypeError as error:
            told = "is a function that cannot be called with one argument, the question"
            raise ConfigError(f"chain {name!r}", told) from error
        except ValueError:  # one of C, which tells nothing of itself
            pass
        return FunctionSource(chain)
    raise ConfigError(f"chain {name!r}", f"is {chain!r}, which has no stream and is no function")


def _is_async(function: Any) -> bool:
    return iscoroutinefunction(function) or isasyncgenfunction(function)


class Checkpoints:
    """Where one app's graphs keep their state that have no checkpointer of their own.

    LangGraph is imported when a graph first asks. What is wrong with a URL that somebody has
    named is told at once: raises ConfigError.
    """

    def __init__(self, url: str, folder: str) -> None:
        self._url = url
        self._folder = folder
        self._lock = threading.Lock()
        self._saver: Any = None
        self._closed = False
        if not url.startswith("sqlite:///"):
            self._made()

    def of(self, graph: Any) -> Any:
        """The saver for a graph, None where none is kept. Raises RuntimeError when closed."""
        saver = self._made()
        if saver is None:
            return None
        from .checkpoints import with_types_of

        return with_types_of(saver, graph)

    def close(self) -> None:
        """End threads and connections. It may be closed again."""
        with self._lock:
            self._closed = True
            saver, self._saver = self._saver, None
        if saver is not None:
            saver.close()

    def _made(self) -> Any:
        with self._lock:
            if self._closed:
                raise RuntimeError("the checkpoints are closed")
            if self._url:
                self._saver = checkpointer(self._url, self._folder)
                self._url = ""  # once: also where it is none
            return self._saver


def checkpointer(url: str, folder: str) -> Any:
    """The saver that a URL names; None for none. Raises ConfigError."""
    if find_spec("langgraph") is None:  # an extra
        raise ConfigError("STREAM_CHECKPOINTS", "needs: pip install 'flask-llm-stream[graph]'")
    from .checkpoints import open_checkpoints

    # Its SQLite is one more: who has it not, and named nothing, has no state.
    if url.startswith("sqlite:") and find_spec("langgraph.checkpoint.sqlite") is None:
        logger.warning("graphs keep no state: pip install 'flask-llm-stream[graph]'")
        return None
    return open_checkpoints(url, folder)


def is_graph(chain: Any) -> bool:
    """Whether it is a compiled LangGraph graph, found out without importing that."""
    return any(
        kind.__name__ == "Pregel" and kind.__module__.startswith("langgraph.")
        for kind in type(chain).__mro__
    )
