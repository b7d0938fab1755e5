"""The contract of a checkpoint back end: an open LangGraph saver, and how to call it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
)

P = ParamSpec("P")


T = TypeVar("T")


class OpenSaver(ABC):
    """An open saver of LangGraph's kind, and how to call it."""

    saver: BaseCheckpointSaver[Any]

    @abstractmethod
    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function`, one of the saver's own, returns; other greenlets go on meanwhile.

        Raises StoreError for whatever the server or the file refuses.
        """

    @abstractmethod
    def close(self) -> None:
        """End threads and connections."""
