"""What a graph streams, as events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    BaseMessageChunk,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
)

from ..events import NewEvent, encode
from .callbacks import custom
from .langgraph_internals import INTERRUPT
from .messages import Messages, plain

#: Which values of a graph's state may be seen.
Shown = bool | Sequence[str] | Callable[[Any], Any] | None


class Events:
    """The events of one run. A node of a subgraph is named by its path: `research/search`.

    `interrupted` is whether the graph has asked a person. `asked` are the person's own words.
    """

    def __init__(self, shown: Shown, prefix: str, asked: Iterable[str] = ()) -> None:
        self.interrupted = False
        self._shown = shown
        self._asked = {*asked}
        #: What has been said so far, by the ids of the messages.
        self._texts: dict[str, str] = {}
        #: What was written below as no message object: it may come again from above as one.
        self._written_below: list[str] = []
        #: Steps that have begun and not ended: task id → namespace and path.
        self._open: dict[str, tuple[tuple[str, ...], str]] = {}
        self._messages = Messages(prefix)

    def of(self, namespace: tuple[str, ...], mode: str, data: Any) -> Iterator[NewEvent]:
        """The events of one item of `graph.stream(…, subgraphs=True)`."""
        if mode == "messages":
            yield from self._message(namespace, *data)
        elif mode == "tasks":
            yield from self._step(namespace, data)
        elif mode == "custom":
            yield _custom(data)
        elif mode == "updates":
            yield from self._written(namespace, data)
            if not namespace:  # a subgraph's interrupts come again from above
                yield from self._interrupts(data)
        elif namespace:
            return  # a subgraph's state is its own
        elif mode == "values":
            yield "state", encode({"values": plain(self._seen(data))})

    def end(self) -> Iterator[NewEvent]:
        """The graph is through."""
        yield from self._messages.end()

    def _message(
        self, namespace: tuple[str, ...], message: Any, about: dict[str, Any]
    ) -> Iterator[NewEvent]:
        if not isinstance(message, BaseMessage):
            return
        if isinstance(message, HumanMessage):
            # What a node was told by another agent, in that one's name, is that one's answer. What
            # was put to a model is told by who asked.
            if not message.name or message.text in {*self._asked, *self._texts.values()}:
                return
            message = AIMessage(message.content, id=message.id, name=message.name)
        elif isinstance(message, (SystemMessage, RemoveMessage)):
            return
        text = message.text
        if not isinstance(message, BaseMessageChunk) and text in self._written_below:
            self._written_below.remove(text)
            return
        if message.id:
            self._texts[message.id] = self._texts.get(message.id, "") + text
        node = _path(namespace, about["langgraph_node"])
        yield from self._messages.said(message, node, about["langgraph_checkpoint_ns"])

    def _written(self, namespace: tuple[str, ...], update: Any) -> Iterator[NewEvent]:
        """Messages that a node has written as pairs or objects: LangGraph streams none of these."""
        for node, changes in update.items() if isinstance(update, dict) else ():
            for changed in changes if isinstance(changes, list) else [changes]:
                said = changed.get("messages") if isinstance(changed, dict) else None
                for one in said if isinstance(said, list) else [said]:
                    message = _message(one)
                    if message is None or message.id in self._texts:
                        continue
                    if namespace:
                        self._written_below.append(message.text)
                    path = _path(namespace, node)
                    yield from self._messages.said(message, path, path)

    def _step(self, namespace: tuple[str, ...], task: dict[str, Any]) -> Iterator[NewEvent]:
        path, id = _path(namespace, task["name"]), task["id"]
        if "result" not in task:
            self._open[id] = namespace, path
            yield "step", encode({"node": path, "status": "start"})
            return
        self._open.pop(id, None)
        if task["error"] is None and task["interrupts"]:
            return  # it is not done: it begins again when it has its answer
        status = "done" if task["error"] is None else "failed"
        here = f"{task['name']}:{id}"
        # A node that hands over to a node above it says no end.
        for inner, (within, below) in [*self._open.items()][::-1]:
            if within[: len(namespace) + 1] == (*namespace, here):
                del self._open[inner]
                yield "step", encode({"node": below, "status": status})
        yield "step", encode({"node": path, "status": status})

    def _interrupts(self, update: Any) -> Iterator[NewEvent]:
        if isinstance(update, dict) and INTERRUPT in update:
            self.interrupted = True
            asked = [(one.id, plain(one.value)) for one in update[INTERRUPT]]
            # A breakpoint, which the graph was compiled with, asks nothing: it waits.
            for id, value in asked or [(None, None)]:
                yield "interrupt", encode({"id": id, "value": value})

    def _seen(self, values: Any) -> Any:
        if isinstance(values, dict):
            values = {name: value for name, value in values.items() if name != INTERRUPT}
        if callable(self._shown):
            return self._shown(values)
        if isinstance(self._shown, Sequence):
            names: Sequence[str] = self._shown
            known = values if isinstance(values, Mapping) else {}
            return {name: known[name] for name in names if name in known}
        return values


def _message(written: Any) -> BaseMessage | None:
    """The answer, or result, that a node has written as an object or a pair, if it is one."""
    if isinstance(written, (dict, tuple)):
        # Whatever LangChain raises for what is no message: then it is the node's own data.
        with suppress(ValueError, TypeError, KeyError, NotImplementedError):
            message = convert_to_messages([written])[0]
            if isinstance(message, (AIMessage, ToolMessage)):
                return message
    return None


def _path(namespace: tuple[str, ...], node: str) -> str:
    # Each part of a namespace is a node's name and the id of its task.
    return "/".join([*(part.partition(":")[0] for part in namespace), node])


def _custom(data: Any) -> NewEvent:
    """What a node wrote: an object with a `name` is that, anything else is named `custom`."""
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        return custom("custom", data)
    return custom(data["name"], data.get("value"))
