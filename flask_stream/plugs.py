"""Which plug a setting or a chain asks for: the store of a URL, the source of a chain.

To add a store, or a source, add it here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from inspect import signature
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
    saver: Callable[[Any], Any],
) -> Source:
    if hasattr(chain, "stream"):
        try:
            if is_graph(chain):
                # Imported when it is wanted: langgraph is an extra.
                from .sources.langgraph import LangGraphSource

                return LangGraphSource(
                    chain, prepare, state=state, checkpointer=lambda: saver(chain)
                )
            return LangChainSource(chain, prepare)
        except ValueError as error:
            raise ConfigError(f"chain {name!r}", f"cannot be asked: {error}") from error
    if hasattr(chain, "compile") and hasattr(chain, "add_node"):
        raise ConfigError(f"chain {name!r}", "is a graph that is not compiled: add graph.compile()")
    if callable(chain):
        try:
            signature(chain).bind("question")
        except TypeError as error:
            told = "is a function that cannot be called with one argument, the question"
            raise ConfigError(f"chain {name!r}", told) from error
        except ValueError:  # one of C, which tells nothing of itself
            pass
        return FunctionSource(chain)
    raise ConfigError(f"chain {name!r}", f"is {chain!r}, which has no stream and is no function")


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
