"""A native thread for calls that block without gevent's knowledge."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar, cast

from .greenlets import native_thread_pool, uses_greenlets

P = ParamSpec("P")
T = TypeVar("T")


class NativeThread:
    """Runs functions one after another on a thread of the operating system.

    Use it for calls that block without gevent's knowledge: other greenlets run meanwhile. The
    thread starts with the first call, so an instance can be made before a fork. Under gevent,
    `call` is for the greenlets of one thread; elsewhere, for any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False
        # gevent's or the standard library's: each starts its one thread when it gets work.
        self._pool: Any = None

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` on the thread, and return or raise what it does.

        If the caller is interrupted, the function still runs to its end. Raises RuntimeError when
        the thread is closed.
        """
        pool = self._open() if self._pool is None else self._pool  # an idle pool is false
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
            if self._pool is None:
                self._pool = native_thread_pool() if uses_greenlets() else ThreadPoolExecutor(1)
            return self._pool

    def close(self) -> None:
        """End the thread after the calls it has been given. Can be called again."""
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
