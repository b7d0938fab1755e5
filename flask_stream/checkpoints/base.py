"""The contract of a checkpoint back end: an open LangGraph saver and a way to call it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from langgraph.checkpoint.base import BaseCheckpointSaver

P = ParamSpec("P")
T = TypeVar("T")


class OpenSaver(ABC):
    """A LangGraph saver with an open connection.

    `saver` must only be used through `call`.
    """

    saver: BaseCheckpointSaver[Any]

    @abstractmethod
    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function`, which uses the saver, and return its result.

        Other greenlets run while the call waits. Raises StoreError if the server cannot be
        reached, and if the server or the file refuses the call.
        """

    @abstractmethod
    def close(self) -> None:
        """Close connections and end threads."""
