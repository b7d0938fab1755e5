"""Converts what a graph streams into events."""

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

#: The values of a graph's state that clients may see: all, these keys, or what a function returns.
VisibleState = bool | Sequence[str] | Callable[[Any], Any] | None


class Events:
    """The events of one run. A node of a subgraph is named by its path: `research/search`.

    `interrupted` is true after an interrupt. `questions` are the texts of the user.
    """

    def __init__(self, visible: VisibleState, prefix: str, questions: Iterable[str] = ()) -> None:
        self.interrupted = False
        self._visible = visible
        self._questions = {*questions}
        #: LangChain's message id → text so far.
        self._texts: dict[str, str] = {}
        #: Texts that subgraphs wrote as pairs or dictionaries. The graph above may stream them
        #: again as message objects.
        self._subgraph_texts: list[str] = []
        #: Steps that have not ended yet: task id → namespace and path.
        self._open_steps: dict[str, tuple[tuple[str, ...], str]] = {}
        self._messages = Messages(prefix)

    def convert(self, namespace: tuple[str, ...], mode: str, data: Any) -> Iterator[NewEvent]:
        """Yield the events of one item of `graph.stream(…, subgraphs=True)`."""
        if mode == "messages":
            yield from self._message(namespace, *data)
        elif mode == "tasks":
            yield from self._step(namespace, data)
        elif mode == "custom":
            yield _custom(data)
        elif mode == "updates":
            yield from self._written_messages(namespace, data)
            if not namespace:  # the graph above repeats a subgraph's interrupts
                yield from self._interrupts(data)
        elif namespace:
            return  # the state of subgraphs is not shown
        elif mode == "values":
            yield "state", encode({"values": plain(self._visible_values(data))})

    def end(self) -> Iterator[NewEvent]:
        """Yield the remaining events after the graph's stream has ended."""
        yield from self._messages.end()

    def _message(
        self, namespace: tuple[str, ...], message: Any, metadata: dict[str, Any]
    ) -> Iterator[NewEvent]:
        if not isinstance(message, BaseMessage):
            return
        if isinstance(message, HumanMessage):
            # A human message with a name is the answer of another agent, unless it repeats a
            # question or an answer. Others are prompts.
            if not message.name or message.text in {*self._questions, *self._texts.values()}:
                return
            message = AIMessage(message.content, id=message.id, name=message.name)
        elif isinstance(message, (SystemMessage, RemoveMessage)):
            return
        text = message.text
        if not isinstance(message, BaseMessageChunk) and text in self._subgraph_texts:
            self._subgraph_texts.remove(text)
            return
        if message.id:
            self._texts[message.id] = self._texts.get(message.id, "") + text
        node = _path(namespace, metadata["langgraph_node"])
        yield from self._messages.add(message, node, metadata["langgraph_checkpoint_ns"])

    def _written_messages(self, namespace: tuple[str, ...], update: Any) -> Iterator[NewEvent]:
        """Yield messages that were written as pairs or dictionaries: LangGraph omits these."""
        for node, changes in update.items() if isinstance(update, dict) else ():
            for changed in changes if isinstance(changes, list) else [changes]:
                written = changed.get("messages") if isinstance(changed, dict) else None
                for item in written if isinstance(written, list) else [written]:
                    message = _message(item)
                    if message is None or message.id in self._texts:
                        continue
                    if namespace:
                        self._subgraph_texts.append(message.text)
                    path = _path(namespace, node)
                    yield from self._messages.add(message, path, path)

    def _step(self, namespace: tuple[str, ...], task: dict[str, Any]) -> Iterator[NewEvent]:
        path, id = _path(namespace, task["name"]), task["id"]
        if "result" not in task:
            self._open_steps[id] = namespace, path
            yield "step", encode({"node": path, "status": "start"})
            return
        self._open_steps.pop(id, None)
        if task["error"] is None and task["interrupts"]:
            return  # not done: the step starts again with the answer
        status = "done" if task["error"] is None else "failed"
        prefix = (*namespace, f"{task['name']}:{id}")
        # The end of a node is missing if it handed over to a node of the graph above.
        for inner_id, (inner, inner_path) in [*self._open_steps.items()][::-1]:
            if inner[: len(prefix)] == prefix:
                del self._open_steps[inner_id]
                yield "step", encode({"node": inner_path, "status": status})
        yield "step", encode({"node": path, "status": status})

    def _interrupts(self, update: Any) -> Iterator[NewEvent]:
        if isinstance(update, dict) and INTERRUPT in update:
            self.interrupted = True
            questions = [(question.id, plain(question.value)) for question in update[INTERRUPT]]
            # A breakpoint of the compiled graph interrupts without a question.
            for id, value in questions or [(None, None)]:
                yield "interrupt", encode({"id": id, "value": value})

    def _visible_values(self, values: Any) -> Any:
        if isinstance(values, dict):
            values = {name: value for name, value in values.items() if name != INTERRUPT}
        if callable(self._visible):
            return self._visible(values)
        if isinstance(self._visible, Sequence):
            names: Sequence[str] = self._visible
            known = values if isinstance(values, Mapping) else {}
            return {name: known[name] for name in names if name in known}
        return values


def _message(written: Any) -> BaseMessage | None:
    """Return the answer or tool result that a node wrote as a pair or dictionary, or None."""
    if isinstance(written, (dict, tuple)):
        # LangChain raises one of these for data that is not a message.
        with suppress(ValueError, TypeError, KeyError, NotImplementedError):
            message = convert_to_messages([written])[0]
            if isinstance(message, (AIMessage, ToolMessage)):
                return message
    return None


def _path(namespace: tuple[str, ...], node: str) -> str:
    # Each part of a namespace is `node:task id`.
    return "/".join([*(part.partition(":")[0] for part in namespace), node])


def _custom(data: Any) -> NewEvent:
    """Return the event of what a node wrote. Without a `name` of its own, it is named `custom`."""
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        return custom("custom", data)
    return custom(data["name"], data.get("value"))
