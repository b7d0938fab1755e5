"""All that the package uses of gevent. No other module names it.

Everything else uses `threading`, which gunicorn's gevent worker turns into greenlets. gevent is
needed for what `threading` cannot do: raise an exception in a thread that waits.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextvars import Context
from typing import Any
from weakref import ref

from gevent import monkey

#: Every greenlet that was started since `track` was called, as long as it lives.
_started: set[ref[Any]] = set()
_tracking = threading.Lock()
_tracked = False


def uses_greenlets() -> bool:
    """Return whether the threads of `threading` are greenlets."""
    return bool(monkey.is_module_patched("threading"))


def track() -> None:
    """Record every greenlet that is started from now on. Can be called again."""
    global _tracked
    with _tracking:
        if not _tracked:
            from gevent import Greenlet

            Greenlet.add_spawn_callback(_record)
            _tracked = True


def _record(greenlet: Any) -> None:
    _started.add(ref(greenlet, _started.discard))


def tracked() -> list[Any]:
    """Return the recorded greenlets that still exist."""
    # One C call takes the copy, so a native thread cannot change the set meanwhile.
    found = (reference() for reference in tuple(_started))
    return [greenlet for greenlet in found if greenlet is not None]


def context_of(greenlet: Any) -> Context | None:
    """Return the context that a greenlet works in; None without one, or in another thread."""
    try:
        context: Context | None = greenlet.gr_context
    except ValueError:  # it runs in another native thread
        return None
    return context


def start(target: Callable[[], None], name: str) -> Any:
    """Start a greenlet and return it."""
    from gevent import Greenlet

    greenlet = Greenlet(target)
    greenlet.name = name
    greenlet.start()
    return greenlet


def call_in_hub(function: Callable[..., None], *args: Any) -> None:
    """Call `function` in the hub, at the end of this turn of the loop.

    No greenlet runs meanwhile, and only there may an exception be thrown into one.
    """
    from gevent import get_hub

    get_hub().loop.run_callback(function, *args)


def native_thread_pool() -> Any:
    """Return a pool of one native thread: `spawn(function, …)`, `join()`, `kill()`.

    It is not the hub's own pool, which also resolves host names for everybody.
    """
    from gevent.threadpool import ThreadPool

    return ThreadPool(1)


def plain_socket(sock: Any) -> socket.socket:
    """Return the socket inside a gevent socket, whose calls never wait; another one as it is."""
    inner: socket.socket = getattr(sock, "_sock", sock)
    return inner
