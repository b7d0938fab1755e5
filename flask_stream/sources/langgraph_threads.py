"""Where in its thread a graph goes on.

A conversation is one thread of the graph's checkpointer, and a tree of runs. Every checkpoint
says in its metadata which run made it (`flask_stream_run`). So

- a run goes on from the newest checkpoint of its parent, wherever the thread is by now: an edited
  or regenerated answer is a fork at the right place;
- a run that follows nobody, in a thread that has others, starts from an empty checkpoint;
- a run that has checkpoints itself is tried again: it goes on after the last of them, and what
  its nodes have finished is not done anew.

A node that asks twice makes no checkpoint in between. So a run that answers, and whose graph asks
again, leaves a note: an empty checkpoint in a namespace of its own, whose metadata says where the
graph waits, and how many answers each task had by then. Answers of another branch are taken back
before a new one is given.

What a subgraph compiled with `checkpointer=True` keeps of its own is found by LangGraph by time,
not by branch: there, an edited question may see what was said on the branch that it left.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, cast

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    CheckpointMetadata,
    CheckpointTuple,
    empty_checkpoint,
)

from ..events import new_id
from .base import Input

#: Whose writes are nobody's: of the thread itself.
NULL_TASK_ID = "00000000-0000-0000-0000-000000000000"
#: The key under which a checkpoint's metadata says which run made it.
RUN = "flask_stream_run"
_INTERRUPT, _RESUME = "__interrupt__", "__resume__"
#: The namespace of notes, and what they say.
_NOTES, _AT, _ANSWERS = "flask_stream", "flask_stream_at", "flask_stream_answers"


class How(Enum):
    """How a run begins."""

    FRESH = "from an empty state"
    FOLLOWS = "from where its parent has left the graph"
    CONTINUES = "from where it has itself been broken off"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run begins: what to configure the graph with, and what is there already.

    `answers` is how many answers each task of the checkpoint had when the parent ended.
    """

    how: How
    configurable: dict[str, Any]
    checkpoint: CheckpointTuple | None = None
    answers: Mapping[str, int] = field(default_factory=dict)

    @property
    def asks(self) -> bool:
        """Whether the graph waits here for the answer to an `interrupt()`."""
        return any(write[1] == _INTERRUPT and write[2] for write in self._pending)

    def unanswered(self) -> Iterator[BaseMessage]:
        """A result for each tool call that was stopped: models refuse a call without one."""
        if self.checkpoint is None:
            return
        said = self.checkpoint.checkpoint["channel_values"].get("messages")
        messages = said if isinstance(said, list) else []
        # Results of tools that had finished beside one that was stopped: the graph adds them.
        written = [value for _, name, value in self._pending if name == "messages"]
        for value in written:
            messages = [*messages, *(value if isinstance(value, list) else [value])]
        answered = {one.tool_call_id for one in messages if isinstance(one, ToolMessage)}
        for message in messages:
            for call in message.tool_calls if isinstance(message, AIMessage) else ():
                if call["id"] not in answered:
                    yield ToolMessage(
                        "Stopped before it was done.",
                        tool_call_id=call["id"],
                        name=call["name"],
                        status="error",
                    )

    @property
    def _pending(self) -> list[tuple[str, str, Any]]:
        return (self.checkpoint.pending_writes or []) if self.checkpoint else []


def find(saver: BaseCheckpointSaver[Any], input: Input) -> Place:
    """Where a run begins. Raises whatever the checkpointer raises."""
    thread = {"thread_id": input.thread or input.run or new_id(), "checkpoint_ns": ""}
    config: RunnableConfig = {"configurable": thread}
    newest = saver.get_tuple(config)
    if newest is None:
        return Place(How.FRESH, thread)

    def at(how: How, run: str) -> Place | None:
        found, answers = _newest(saver, config, run), {}
        if found is None and (note := _newest(saver, _notes(config), run)):
            about: dict[str, Any] = {**note.metadata}
            found = saver.get_tuple({"configurable": thread | {"checkpoint_id": about[_AT]}})
            answers = json.loads(about[_ANSWERS])
        if found is None:
            return None
        if found.checkpoint["id"] == newest.checkpoint["id"]:
            # Not addressed by its id: that would be going back, and finished nodes would run anew.
            return Place(how, thread, newest, answers)
        return Place(how, thread | {"checkpoint_id": found.checkpoint["id"]}, found, answers)

    if input.run and (place := at(How.CONTINUES, input.run)):
        return place
    if input.parent and (place := at(How.FOLLOWS, input.parent)):
        return place
    root = saver.put(config, empty_checkpoint(), _about(), {})
    return Place(How.FRESH, {**root["configurable"]})


def take_back(saver: BaseCheckpointSaver[Any], place: Place) -> None:
    """Forget the answers that were given here after the parent had ended."""
    if place.checkpoint is None:
        return
    for task, answers in _answers(place.checkpoint):
        kept = place.answers.get(task, 0)
        if len(answers) > kept:
            saver.put_writes(place.checkpoint.config, [(_RESUME, answers[:kept])], task)


def note(saver: BaseCheckpointSaver[Any], place: Place, run: str) -> None:
    """Note where a run has left the graph waiting, if it has made no checkpoint by itself."""
    thread = {name: place.configurable[name] for name in ("thread_id", "checkpoint_ns")}
    config: RunnableConfig = {"configurable": thread}
    if place.checkpoint is None or _newest(saver, config, run) is not None:
        return
    left = saver.get_tuple(place.checkpoint.config)
    if left is not None:
        answers = {task: len(given) for task, given in _answers(left)}
        about = {RUN: run, _AT: left.checkpoint["id"], _ANSWERS: json.dumps(answers)}
        saver.put(_notes(config), empty_checkpoint(), _about(about), {})


def _newest(
    saver: BaseCheckpointSaver[Any], config: RunnableConfig, run: str
) -> CheckpointTuple | None:
    return next(saver.list(config, filter={RUN: run}, limit=1), None)


def _notes(config: RunnableConfig) -> RunnableConfig:
    thread = config["configurable"]["thread_id"]
    return {"configurable": {"thread_id": thread, "checkpoint_ns": _NOTES}}


def _about(more: Mapping[str, str] | None = None) -> CheckpointMetadata:
    about = {"source": "fork", "step": -2, "parents": {}, **(more or {})}
    return cast(CheckpointMetadata, about)


def _answers(checkpoint: CheckpointTuple) -> Iterator[tuple[str, list[Any]]]:
    """Task ids, and the answers that each has been given."""
    for task, name, given in checkpoint.pending_writes or []:
        if name == _RESUME and isinstance(given, list) and task != NULL_TASK_ID:
            yield task, given
