"""A checkpointer that a Stop does not catch in the middle.

Its connection is everybody's: a call that is broken off would leave it unusable for them, too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver

from ..concurrency import tasks

#: What a graph, or this source, calls of a checkpointer while a run goes on.
_CALLS = ("get_tuple", "put", "put_writes", "get_delta_channel_history")


def shielded(saver: BaseCheckpointSaver[Any]) -> BaseCheckpointSaver[Any]:
    """The same checkpointer on the same connection; its calls are done whole or not at all."""
    kind = type(saver)

    def whole(name: str) -> Any:
        call = getattr(kind, name)

        def shielded(self: Any, *args: Any, **kwargs: Any) -> Any:
            with tasks.shield():
                return call(self, *args, **kwargs)

        shielded.__wrapped__ = call  # type: ignore[attr-defined] # its signature is looked at
        return shielded

    def list(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with tasks.shield():
            return iter([*kind.list(self, *args, **kwargs)])

    twin = copy.copy(saver)
    twin.__class__ = type(kind.__name__, (kind,), {n: whole(n) for n in _CALLS} | {"list": list})
    return twin
