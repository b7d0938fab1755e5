"""The source for compiled LangGraph graphs: messages, steps, tool calls, state and interrupts.

A graph with a checkpointer stores the conversation itself, in the thread that the input names. It
gets only what is new (see `langgraph_resume`). A graph without a checkpointer gets the whole
history each time.

When a graph calls `interrupt()`, the run sends an `interrupt` event for each question and ends. The
answer is the input of a run that follows it. The answer to several questions is an object:
interrupt id → answer.

What nodes write with `get_stream_writer()` becomes `custom` events. `{"name": …, "value": …}` sets
the name; anything else is named `custom`. A value with the name `progress`, such as
`{"name": "progress", "value": {"done": 2, "total": 5, "label": "…"}}`, becomes `progress`.

The checkpointer is called in the run's own greenlet. LangGraph's `SqliteSaver` does not cooperate
with gevent: while it writes, all other streams of the worker stand still.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from functools import cached_property
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.pregel import Pregel
from langgraph.types import Command, StreamMode

from ..checkpoints.shielded import shielded
from ..concurrency import tasks
from ..errors import ErrorCode, RunFailed
from ..events import NewEvent, new_id
from .base import CONTINUE, NO_ANSWER, Input, Source
from .callbacks import RunCallbacks, StreamMarker
from .finish_reasons import FinishReason
from .inputs import InputSchema
from .langgraph_answers import apply_answer
from .langgraph_events import Events, VisibleState
from .langgraph_internals import stream_writer
from .langgraph_resume import RUN, StartMode, StartPoint, find_start, save_note

#: A checkpointer, or a function that returns it when it is first needed.
Checkpointer = BaseCheckpointSaver[Any] | Callable[[], BaseCheckpointSaver[Any] | None] | None

#: The stream mode of markers. Of all modes, nodes that stream another graph use it least.
_MARKER_MODE: StreamMode = "tasks"
_MODES: list[StreamMode] = ["messages", "updates", "custom", "tasks"]


class LangGraphSource(Source):
    """Streams a compiled graph.

    `prepare` converts a run's input for the graph. `state` is the part of the graph's state that is
    sent after each step: nothing, everything (True), some keys, or what a function returns for the
    values. `checkpointer` is used if the graph was compiled without one.
    """

    def __init__(
        self,
        graph: Pregel[Any, Any, Any, Any],
        prepare: Callable[[Input], Any] | None = None,
        *,
        state: VisibleState = None,
        checkpointer: Checkpointer = None,
    ) -> None:
        own = graph.checkpointer
        self._own = own if isinstance(own, BaseCheckpointSaver) else None
        self._default = checkpointer if own is None or own is True else None
        self._compiled = graph
        self._prepare = prepare
        self._schema = InputSchema(graph)
        self._state = state
        self._modes = [*_MODES, "values"] if state else _MODES

    @cached_property
    def _saver(self) -> BaseCheckpointSaver[Any] | None:
        # Looked up at the first run, when the app is completely configured.
        default = self._default
        saver = self._own or (default() if callable(default) else default)
        return shielded(saver) if saver is not None else None

    @cached_property
    def _graph(self) -> Pregel[Any, Any, Any, Any]:
        return self._compiled.copy(update={"checkpointer": self._saver})

    def with_checkpointer(
        self, find: Callable[[Any], BaseCheckpointSaver[Any] | None]
    ) -> LangGraphSource:
        graph = self._compiled
        return LangGraphSource(
            graph, self._prepare, state=self._state, checkpointer=lambda: find(graph)
        )

    def forget(self, thread: str) -> None:
        if self._saver is not None:
            with tasks.shield():
                self._saver.delete_thread(thread)

    def check(self, value: dict[str, Any]) -> None:
        self._schema.check(value, self._prepare is not None)

    @property
    def durable(self) -> bool:
        return self._saver is not None

    def stream(self, input: Input) -> Generator[NewEvent, None, FinishReason | None]:
        calls = RunCallbacks(_post)
        start = (
            find_start(self._saver, input)
            if self._saver is not None
            else StartPoint(StartMode.FRESH, {})
        )
        waits = start.mode is StartMode.FOLLOWS and start.waits_for_answer
        if self._saver is not None and waits and input.resume not in (NO_ANSWER, CONTINUE):
            start, answer = apply_answer(self._saver, start, input.resume)
            input = replace(input, resume=answer)
        # A restarted run continues its log, so the ids of its messages must be new.
        prefix = f"{new_id()[:6]}-m" if start.mode is StartMode.CONTINUES else "m"
        inputs = [*input.value.values(), *(turn.question for turn in input.history)]
        questions = (text for text in inputs if isinstance(text, str))
        events = Events(self._state, prefix, questions)
        config: RunnableConfig = {"callbacks": [calls], "configurable": start.configurable}
        if input.run:
            config["metadata"] = {RUN: input.run}
        # "sync" stores each step before the next one begins, so no finished step is lost.
        durability: Any = {"durability": "sync"} if self.durable else {}
        chunks: Any = self._graph.stream(
            self._graph_input(input, start),
            config,
            stream_mode=self._modes,
            subgraphs=True,
            **durability,
        )
        try:
            for namespace, mode, data in chunks:
                if mode == _MARKER_MODE and isinstance(data, StreamMarker):
                    yield from calls.take_posted(data)
                else:
                    yield from events.convert(namespace, mode, data)
                if calls.pending:
                    yield from calls.take_pending()
        except Exception as error:
            yield from calls.drain()
            if calls.failed_with(error):
                raise RunFailed(ErrorCode.MODEL_ERROR) from error
            raise
        finally:
            chunks.close()
        if events.interrupted and self._saver is not None and input.run:
            save_note(self._saver, start, input.run)
        yield from events.end()
        yield from calls.end()
        return calls.finish_reason

    def _graph_input(self, input: Input, start: StartPoint) -> Any:
        """Return the graph's input. Raises ValueError for an answer to an unknown question."""
        if start.mode is StartMode.CONTINUES:
            return None
        if input.resume is not NO_ANSWER:
            if start.mode is not StartMode.FOLLOWS:
                raise ValueError("the checkpointer has no state of the run that asked")
            # A breakpoint has no question: LangGraph would use an answer for the next one.
            answered = start.waits_for_answer and input.resume is not CONTINUE
            return Command(resume=input.resume) if answered else None
        follows = start.mode is StartMode.FOLLOWS
        if self._prepare is not None:
            return _with_message_ids(self._prepare(input))
        if follows:
            known = len(input.history) - start.missed_turns
            input = replace(input, history=input.history[max(0, known) :])
        converted = self._schema(input)
        if follows and isinstance(converted, dict) and "messages" in converted:
            converted["messages"] = [*start.unanswered(), *converted["messages"]]
        return _with_message_ids(converted)


def _post(marker: StreamMarker) -> None:
    """Add the marker to the graph's stream, to keep the order of events.

    Raises RuntimeError or KeyError outside of a node.
    """
    stream_writer()(((), _MARKER_MODE, marker))


def _with_message_ids(converted: Any) -> Any:
    """Return the input with an id for each message. The graph does not stream messages it knows."""
    if not isinstance(converted, dict):
        return converted
    return {name: _set_ids(value) for name, value in converted.items()}


def _set_ids(value: Any) -> Any:
    if isinstance(value, BaseMessage):
        return value if value.id else value.model_copy(update={"id": new_id()})
    return [_set_ids(item) for item in value] if isinstance(value, list) else value
