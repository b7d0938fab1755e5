"""What a graph streams, as events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage, RemoveMessage, SystemMessage

from ..calls import custom
from ..events import Said, encode
from ..messages import Messages, plain

_INTERRUPT = "__interrupt__"
#: Which values of a graph's state may be seen.
Shown = bool | Sequence[str] | Callable[[Any], Any] | None


class Events:
    """The events of one run. A node of a subgraph is named by its path: `research/search`.

    `interrupted` is whether the graph has asked a person.
    """

    def __init__(self, shown: Shown, prefix: str) -> None:
        self.interrupted = False
        self._shown = shown
        self._messages = Messages(prefix)

    def of(self, namespace: tuple[str, ...], mode: str, data: Any) -> Iterator[Said]:
        """The events of one item of `graph.stream(…, subgraphs=True)`."""
        if mode == "messages":
            yield from self._message(namespace, *data)
        elif mode == "tasks":
            yield from self._step(namespace, data)
        elif mode == "custom":
            yield _custom(data)
        elif namespace:
            return  # of a subgraph: its state is its own, and its interrupts come again from above
        elif mode == "updates":
            yield from self._interrupts(data)
        elif mode == "values":
            yield "state", encode({"values": plain(self._seen(data))})

    def end(self) -> Iterator[Said]:
        """The graph is through."""
        yield from self._messages.end()

    def _message(
        self, namespace: tuple[str, ...], message: Any, about: dict[str, Any]
    ) -> Iterator[Said]:
        # What was put to a model is told by who asked, not as an answer.
        if isinstance(message, BaseMessage) and not isinstance(
            message, (HumanMessage, SystemMessage, RemoveMessage)
        ):
            node = _path(namespace, about["langgraph_node"])
            yield from self._messages.said(message, node, about["langgraph_checkpoint_ns"])

    def _step(self, namespace: tuple[str, ...], task: dict[str, Any]) -> Iterator[Said]:
        if "result" not in task:
            status = "start"
        elif task["error"] is not None:
            status = "failed"
        elif task["interrupts"]:
            return  # it is not done: it begins again when it has its answer
        else:
            status = "done"
        yield "step", encode({"node": _path(namespace, task["name"]), "status": status})

    def _interrupts(self, update: Any) -> Iterator[Said]:
        if isinstance(update, dict) and _INTERRUPT in update:
            self.interrupted = True
            asked = [(one.id, plain(one.value)) for one in update[_INTERRUPT]]
            # A breakpoint, which the graph was compiled with, asks nothing: it waits.
            for id, value in asked or [(None, None)]:
                yield "interrupt", encode({"id": id, "value": value})

    def _seen(self, values: Any) -> Any:
        if isinstance(values, dict):
            values = {name: value for name, value in values.items() if name != _INTERRUPT}
        if callable(self._shown):
            return self._shown(values)
        if isinstance(self._shown, Sequence):
            names: Sequence[str] = self._shown
            known = values if isinstance(values, Mapping) else {}
            return {name: known[name] for name in names if name in known}
        return values


def _path(namespace: tuple[str, ...], node: str) -> str:
    # Each part of a namespace is a node's name and the id of its task.
    return "/".join([*(part.partition(":")[0] for part in namespace), node])


def _custom(data: Any) -> Said:
    """What a node wrote: an object with a `name` is that, anything else is named `custom`."""
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        return custom("custom", data)
    value = data.get("value")
    if data["name"] == "progress" and isinstance(value, dict) and {"done", "total"} <= value.keys():
        told = {name: plain(value.get(name)) for name in ("done", "total", "label")}
        return "progress", encode(told)
    return custom(data["name"], value)
