"""`memory://`: the state of graphs in the memory of this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from .base import OpenSaver

P = ParamSpec("P")
T = TypeVar("T")


class MemorySaver(OpenSaver):
    """Checkpoints in memory. They are lost when the process ends."""

    def __init__(self, serde: JsonPlusSerializer) -> None:
        self.saver = InMemorySaver(serde=serde)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)

    def close(self) -> None:
        pass
