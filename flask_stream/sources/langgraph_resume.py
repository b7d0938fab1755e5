"""Finds the checkpoint from which a run of a graph starts.

A conversation is one thread of the graph's checkpointer, and a tree of runs. The metadata of every
checkpoint names the run that created it (`flask_stream_run`). So there are three cases:

- A run usually starts from the newest checkpoint of its parent, even if the thread has moved on
  since. So an edited question or a regenerated answer forks the thread at the right checkpoint.
- A run without a parent starts from an empty checkpoint, even if the thread has others.
- A run that has checkpoints itself is a restart. It continues after its last checkpoint and does
  not repeat finished nodes.

LangGraph creates no checkpoint between two interrupts of one node. So if a run answers an interrupt
and its graph interrupts again, the run saves a note: an empty checkpoint in a separate namespace.
The metadata of the note names the checkpoint at which the graph waits, and the number of answers
that each task had. `langgraph_answers` applies the answer.

LangGraph finds the state of a subgraph compiled with `checkpointer=True` by time, not by branch.
There, an edited question may see messages from the branch that it left.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
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

from ..checkpoints.shielded import TOP
from ..events import new_id
from .base import NO_ANSWER, Input
from .langgraph_internals import INTERRUPT, NULL_TASK_ID, RESUME

#: The metadata key under which a checkpoint names the run that created it.
RUN = "flask_stream_run"
#: The namespace of notes and the keys of their metadata.
_NOTES, _CHECKPOINT, _ANSWERS = "flask_stream", "flask_stream_at", "flask_stream_answers"
_SUBGRAPHS = "flask_stream_below"


class StartMode(Enum):
    """How a run starts."""

    FRESH = "from an empty state"
    FOLLOWS = "from the last checkpoint of its parent"
    CONTINUES = "from its own last checkpoint, after a restart"


@dataclass(frozen=True, slots=True)
class StartPoint:
    """The checkpoint from which a run starts, and the `configurable` that selects it.

    `answers` is the number of answers that each task of the checkpoint had when the parent ended.
    `subgraphs` are the checkpoints of its subgraphs at that time: namespace → checkpoint id.
    `missed_turns` is the number of turns since then, which the graph has not seen.
    """

    mode: StartMode
    configurable: dict[str, Any]
    checkpoint: CheckpointTuple | None = None
    answers: Mapping[str, int] = field(default_factory=dict)
    subgraphs: Mapping[str, str] = field(default_factory=dict)
    missed_turns: int = 0

    @property
    def waits_for_answer(self) -> bool:
        """Whether the graph waits here for the answer to an `interrupt()`."""
        return any(write[1] == INTERRUPT and write[2] for write in self._pending)

    def unanswered(self) -> Iterator[BaseMessage]:
        """Yield a result for each tool call that was stopped: models refuse a call without one."""
        if self.checkpoint is None:
            return
        value = self.checkpoint.checkpoint["channel_values"].get("messages")
        messages = value if isinstance(value, list) else []
        # Parallel tools may have finished. The graph will add their results, which are pending.
        written = [value for _, name, value in self._pending if name == "messages"]
        for value in written:
            messages = [*messages, *(value if isinstance(value, list) else [value])]
        answered = {
            message.tool_call_id for message in messages if isinstance(message, ToolMessage)
        }
        for message in messages:
            for call in message.tool_calls if isinstance(message, AIMessage) else ():
                if call["id"] not in answered:
                    yield ToolMessage(
                        "The tool was stopped before it finished.",
                        tool_call_id=call["id"],
                        name=call["name"],
                        status="error",
                    )

    @property
    def _pending(self) -> list[tuple[str, str, Any]]:
        return (self.checkpoint.pending_writes or []) if self.checkpoint else []


def find_start(saver: BaseCheckpointSaver[Any], input: Input) -> StartPoint:
    """Return the point from which a run starts. Raises what the checkpointer raises."""
    thread = {"thread_id": input.thread or input.run or new_id(), "checkpoint_ns": ""}
    config: RunnableConfig = {"configurable": thread}
    newest = saver.get_tuple(config)
    if newest is None:
        return StartPoint(StartMode.FRESH, thread)

    def start_after(run: str, mode: StartMode) -> StartPoint | None:
        found, answers, subgraphs = _newest(saver, config, run), {}, {}
        if found is not None:
            if input.resume is not NO_ANSWER:
                subgraphs = subgraph_checkpoints(saver, found, run)
        elif note := _newest(saver, _note_config(config), run):
            saved: dict[str, Any] = {**note.metadata}
            found = saver.get_tuple(
                {"configurable": thread | {"checkpoint_id": saved[_CHECKPOINT]}}
            )
            answers = json.loads(saved[_ANSWERS])
            if found is not None:  # older notes do not name subgraphs
                subgraphs = json.loads(saved.get(_SUBGRAPHS, "null"))
                subgraphs = subgraphs or subgraph_checkpoints(saver, found)
        if found is None:
            return None
        if found.checkpoint["id"] == newest.checkpoint["id"]:
            # Without its id: with an id, LangGraph would fork and run finished nodes again.
            return StartPoint(mode, thread, newest, answers, subgraphs)
        return StartPoint(
            mode, thread | {"checkpoint_id": found.checkpoint["id"]}, found, answers, subgraphs
        )

    if input.run and (start := start_after(input.run, StartMode.CONTINUES)):
        return start
    before = [(input.parent, 0)] if input.parent else []
    if input.resume is NO_ANSWER and input.before:  # only the parent can be answered
        before = [*input.before]
    for run, missed_turns in before:
        if start := start_after(run, StartMode.FOLLOWS):
            return replace(start, missed_turns=missed_turns)
    root = saver.put(config, empty_checkpoint(), new_metadata(), {})
    return StartPoint(StartMode.FRESH, {**root["configurable"]})


def subgraph_checkpoints(
    saver: BaseCheckpointSaver[Any], top: CheckpointTuple, run: str | None = None
) -> dict[str, str]:
    """Return the newest checkpoints of this checkpoint's subgraphs: namespace → checkpoint id.

    With `run`, only those that this run created.
    """
    thread: RunnableConfig = {
        "configurable": {"thread_id": top.config["configurable"]["thread_id"]}
    }
    newest: dict[str, str] = {}
    of_run = {RUN: run} if run else {}
    for found in saver.list(thread, filter={TOP: top.checkpoint["id"], **of_run}):
        ns, id = found.config["configurable"]["checkpoint_ns"], found.checkpoint["id"]
        if ns:
            newest[ns] = max(newest.get(ns, id), id)
    return newest


def save_note(saver: BaseCheckpointSaver[Any], start: StartPoint, run: str) -> None:
    """Save where the graph waits, if the interrupted run has created no checkpoint."""
    thread = {name: start.configurable[name] for name in ("thread_id", "checkpoint_ns")}
    config: RunnableConfig = {"configurable": thread}
    if start.checkpoint is None or _newest(saver, config, run) is not None:
        return
    waiting = saver.get_tuple(start.checkpoint.config)
    if waiting is not None:
        subgraphs = subgraph_checkpoints(saver, waiting)
        counts = {task: len(answers) for task, answers in answers_of(waiting)}
        for ns, id in subgraphs.items():
            if (level := saver.get_tuple(subgraph_config(waiting, ns, id))) is not None:
                counts |= {task: len(answers) for task, answers in answers_of(level)}
        note = {
            RUN: run,
            _CHECKPOINT: waiting.checkpoint["id"],
            _ANSWERS: json.dumps(counts),
            _SUBGRAPHS: json.dumps(subgraphs),
        }
        saver.put(_note_config(config), empty_checkpoint(), new_metadata(note), {})


def _newest(
    saver: BaseCheckpointSaver[Any], config: RunnableConfig, run: str
) -> CheckpointTuple | None:
    return next(saver.list(config, filter={RUN: run}, limit=1), None)


def subgraph_config(top: CheckpointTuple, ns: str, id: str | None = None) -> RunnableConfig:
    """Return the config of a subgraph's checkpoint, without an id of its newest."""
    thread = top.config["configurable"]["thread_id"]
    selected = {"checkpoint_id": id} if id else {}
    return {"configurable": {"thread_id": thread, "checkpoint_ns": ns, **selected}}


def _note_config(config: RunnableConfig) -> RunnableConfig:
    thread = config["configurable"]["thread_id"]
    return {"configurable": {"thread_id": thread, "checkpoint_ns": _NOTES}}


def new_metadata(more: Mapping[str, Any] | None = None) -> CheckpointMetadata:
    """Return the metadata of an empty checkpoint, with these additional keys."""
    metadata = {"source": "fork", "step": -2, "parents": {}, **(more or {})}
    return cast(CheckpointMetadata, metadata)


def answers_of(checkpoint: CheckpointTuple) -> Iterator[tuple[str, list[Any]]]:
    """Yield the id and the answers of each task that has answers."""
    for task, name, answers in checkpoint.pending_writes or []:
        if name == RESUME and isinstance(answers, list) and task != NULL_TASK_ID:
            yield task, answers
