"""Compiled LangGraph graphs: messages, steps, tool calls, state and interrupts of all nodes.

A graph with a checkpointer keeps the conversation itself, in the thread that the input names, and
is asked with what is new only: see `langgraph_threads`. One without is asked with the whole
history, each time.

A run of a graph that asks a person (`interrupt()`) says `interrupt`, once for each question, and
is over; the answer comes as the input of a run that follows it. To several questions it is an
object: interrupt id → answer.

The nodes' `get_stream_writer()` says `custom` events: `{"name": …, "value": …}`, or anything else
under the name `custom`. `{"name": "progress", "value": {"done": 2, "total": 5, "label": "…"}}` is
a `progress` event.

A synchronous checkpointer is called where the run is. `SqliteSaver` waits for its file without
gevent's knowledge: while one writes, no other stream of the worker moves.
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
from .langgraph_events import Events, Shown
from .langgraph_internals import stream_writer
from .langgraph_resume import RUN, StartMode, StartPoint, answer, find_start, note

#: A checkpointer, or what finds one when it is first needed.
Offered = BaseCheckpointSaver[Any] | Callable[[], BaseCheckpointSaver[Any] | None] | None

#: The mode in which a place is posted: the one that a node asks of another graph least of all.
_POSTED: StreamMode = "tasks"
_MODES: list[StreamMode] = ["messages", "updates", "custom", "tasks"]


class LangGraphSource(Source):
    """Asks a compiled graph.

    `prepare` turns a run's input into the graph's own. `state` is what may be seen of the graph's
    state after each step: nothing, all (True), some keys, or what a function makes of the values.
    `checkpointer` is for a graph that was compiled without one.
    """

    def __init__(
        self,
        graph: Pregel[Any, Any, Any, Any],
        prepare: Callable[[Input], Any] | None = None,
        *,
        state: Shown = None,
        checkpointer: Offered = None,
    ) -> None:
        own = graph.checkpointer
        self._own = own if isinstance(own, BaseCheckpointSaver) else None
        self._offered = checkpointer if own is None or own is True else None
        self._compiled = graph
        self._prepare = prepare
        self._fitting = InputSchema(graph)
        self._state = state
        self._modes = [*_MODES, "values"] if state else _MODES

    @cached_property
    def _saver(self) -> BaseCheckpointSaver[Any] | None:
        # Looked for when the graph is first asked: by then, the app is all there.
        offered = self._offered
        saver = self._own or (offered() if callable(offered) else offered)
        return shielded(saver) if saver is not None else None

    @cached_property
    def _graph(self) -> Pregel[Any, Any, Any, Any]:
        return self._compiled.copy(update={"checkpointer": self._saver})

    def with_checkpointer(
        self, find_start: Callable[[Any], BaseCheckpointSaver[Any] | None]
    ) -> LangGraphSource:
        graph = self._compiled
        return LangGraphSource(
            graph, self._prepare, state=self._state, checkpointer=lambda: find_start(graph)
        )

    def forget(self, thread: str) -> None:
        if self._saver is not None:
            with tasks.shield():
                self._saver.delete_thread(thread)

    def check(self, value: dict[str, Any]) -> None:
        self._fitting.check(value, self._prepare is not None)

    @property
    def durable(self) -> bool:
        return self._saver is not None

    def stream(self, input: Input) -> Generator[NewEvent, None, FinishReason | None]:
        calls = RunCallbacks(_post)
        place = (
            find_start(self._saver, input)
            if self._saver is not None
            else StartPoint(StartMode.FRESH, {})
        )
        asks = place.how is StartMode.FOLLOWS and place.asks
        if self._saver is not None and asks and input.resume not in (NO_ANSWER, CONTINUE):
            place, given = answer(self._saver, place, input.resume)
            input = replace(input, resume=given)
        # A second try goes on in the same log: its messages are not those of the first.
        prefix = f"{new_id()[:6]}-m" if place.how is StartMode.CONTINUES else "m"
        said = [*input.value.values(), *(turn.question for turn in input.history)]
        asked = (one for one in said if isinstance(one, str))
        events = Events(self._state, prefix, asked)
        config: RunnableConfig = {"callbacks": [calls], "configurable": place.configurable}
        if input.run:
            config["metadata"] = {RUN: input.run}
        # What a step did is stored before the next begins: so no finished step is lost.
        durability: Any = {"durability": "sync"} if self.durable else {}
        chunks: Any = self._graph.stream(
            self._asked(input, place),
            config,
            stream_mode=self._modes,
            subgraphs=True,
            **durability,
        )
        try:
            for namespace, mode, data in chunks:
                if mode == _POSTED and isinstance(data, StreamMarker):
                    yield from calls.posted(data)
                else:
                    yield from events.of(namespace, mode, data)
                if calls.told:
                    yield from calls.take()
        except Exception as error:
            yield from calls.rest()
            if calls.failed_with(error):
                raise RunFailed(ErrorCode.MODEL_ERROR) from error
            raise
        finally:
            chunks.close()
        if events.interrupted and self._saver is not None and input.run:
            note(self._saver, place, input.run)
        yield from events.end()
        yield from calls.end()
        return calls.finish_reason

    def _asked(self, input: Input, place: StartPoint) -> Any:
        """The graph's input. Raises ValueError for an answer that nobody has asked for."""
        if place.how is StartMode.CONTINUES:
            return None
        if input.resume is not NO_ANSWER:
            if place.how is not StartMode.FOLLOWS:
                raise ValueError("the graph knows nothing of the run that has asked")
            # At a breakpoint nothing was asked: an answer would be taken for a later question's.
            answered = place.asks and input.resume is not CONTINUE
            return Command(resume=input.resume) if answered else None
        follows = place.how is StartMode.FOLLOWS
        if self._prepare is not None:
            return _marked(self._prepare(input))
        if follows:
            missed = len(input.history) - place.missed
            input = replace(input, history=input.history[max(0, missed) :])
        asked = self._fitting(input)
        if follows and isinstance(asked, dict) and "messages" in asked:
            asked["messages"] = [*place.unanswered(), *asked["messages"]]
        return _marked(asked)


def _post(place: StreamMarker) -> None:
    """Put it among what the graph streams, so that all comes in the order in which it was said.

    Raises RuntimeError or KeyError outside of a node.
    """
    stream_writer()(((), _POSTED, place))


def _marked(asked: Any) -> Any:
    """The input with an id for each message: a graph tells by it what it was asked with."""
    if not isinstance(asked, dict):
        return asked
    return {name: _mark(value) for name, value in asked.items()}


def _mark(value: Any) -> Any:
    if isinstance(value, BaseMessage):
        return value if value.id else value.model_copy(update={"id": new_id()})
    return [_mark(one) for one in value] if isinstance(value, list) else value
