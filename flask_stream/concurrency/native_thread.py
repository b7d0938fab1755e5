"""A native thread for calls that block without gevent's knowledge."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar, cast

from .tasks import uses_greenlets

P = ParamSpec("P")


T = TypeVar("T")


class NativeThread:
    """Runs functions one after another on a thread that the operating system knows.

    For calls that block without gevent's knowledge: while one runs, other greenlets do, too.
    The thread starts with the first call, so it may be made before a fork. Under gevent it is
    called from the greenlets of one thread, else from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False
        # gevent's or the standard library's: one thread each, started by what it is given.
        self._pool: Any = None

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function` returns, or raises, on the thread.

        A caller that is interrupted leaves; the function runs to its end. Raises RuntimeError
        when the thread is closed.
        """
        pool = self._open() if self._pool is None else self._pool  # an idle one is false
        work = partial(function, *args, **kwargs)
        if not uses_greenlets():
            return cast(T, pool.submit(work).result())
        value, error = pool.spawn(_outcome, work).get()
        try:
            if error is not None:
                raise error
            return cast(T, value)
        finally:
            del error  # it holds this frame, which would hold it

    def _open(self) -> Any:
        with self._lock:
            if self._closed:
                raise RuntimeError("the thread is closed")
            if self._pool is None and uses_greenlets():
                # Not the hub's own pool: that one also looks up names, for everybody.
                from gevent.threadpool import ThreadPool

                self._pool = ThreadPool(1)
            elif self._pool is None:
                self._pool = ThreadPoolExecutor(1)
            return self._pool

    def close(self) -> None:
        """End the thread when it has done what it was given. It may be closed again."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None and uses_greenlets():
            pool.join()
            pool.kill()
        elif pool is not None:
            pool.shutdown()


def _outcome(work: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    # Returned, not raised: gevent prints what a function of a pool raises.
    try:
        return work(), None
    except BaseException as error:
        return None, error
