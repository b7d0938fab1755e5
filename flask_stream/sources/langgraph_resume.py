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

A subgraph has a namespace of its own in the thread. Its checkpoints say which one above them they
belong to, and one that has gone on since it asked is sent back to where it did. LangGraph forks it
there and drops all its earlier answers, so only a first and single question can be answered anew,
and none of a subgraph within it.

What a subgraph compiled with `checkpointer=True` keeps of its own is found by LangGraph by time,
not by branch: there, an edited question may see what was said on the branch that it left.
"""

from __future__ import annotations

import json
import re
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
from .langgraph_internals import CHECKPOINT_MAP, INTERRUPT, NO_WRITES, NULL_TASK_ID, RESUME

#: The key under which a checkpoint's metadata says which run made it.
RUN = "flask_stream_run"
#: The namespace of notes, and what they say.
_NOTES, _AT, _ANSWERS = "flask_stream", "flask_stream_at", "flask_stream_answers"
_BELOW = "flask_stream_below"
#: How LangGraph names questions.
_ID = re.compile("[0-9a-f]{32}")


class StartMode(Enum):
    """How a run begins."""

    FRESH = "from an empty state"
    FOLLOWS = "from where its parent has left the graph"
    CONTINUES = "from where it has itself been broken off"


@dataclass(frozen=True, slots=True)
class StartPoint:
    """Where a run begins: what to configure the graph with, and what is there already.

    `answers` is how many answers each task of the checkpoint had when the parent ended, and
    `below` where its subgraphs were: namespace → checkpoint id. `missed` counts the turns since
    then, of which the graph knows nothing.
    """

    how: StartMode
    configurable: dict[str, Any]
    checkpoint: CheckpointTuple | None = None
    answers: Mapping[str, int] = field(default_factory=dict)
    below: Mapping[str, str] = field(default_factory=dict)
    missed: int = 0

    @property
    def asks(self) -> bool:
        """Whether the graph waits here for the answer to an `interrupt()`."""
        return any(write[1] == INTERRUPT and write[2] for write in self._pending)

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


def find_start(saver: BaseCheckpointSaver[Any], input: Input) -> StartPoint:
    """Where a run begins. Raises whatever the checkpointer raises."""
    thread = {"thread_id": input.thread or input.run or new_id(), "checkpoint_ns": ""}
    config: RunnableConfig = {"configurable": thread}
    newest = saver.get_tuple(config)
    if newest is None:
        return StartPoint(StartMode.FRESH, thread)

    def at(how: StartMode, run: str) -> StartPoint | None:
        found, answers, below = _newest(saver, config, run), {}, {}
        if found is not None:
            if input.resume is not NO_ANSWER:
                below = _subgraphs(saver, found, run)
        elif note := _newest(saver, _notes(config), run):
            about: dict[str, Any] = {**note.metadata}
            found = saver.get_tuple({"configurable": thread | {"checkpoint_id": about[_AT]}})
            answers = json.loads(about[_ANSWERS])
            if found is not None:  # older notes do not say what is below
                below = json.loads(about.get(_BELOW, "null")) or _subgraphs(saver, found)
        if found is None:
            return None
        if found.checkpoint["id"] == newest.checkpoint["id"]:
            # Not addressed by its id: that would be going back, and finished nodes would run anew.
            return StartPoint(how, thread, newest, answers, below)
        return StartPoint(
            how, thread | {"checkpoint_id": found.checkpoint["id"]}, found, answers, below
        )

    if input.run and (place := at(StartMode.CONTINUES, input.run)):
        return place
    before = [(input.parent, 0)] if input.parent else []
    if input.resume is NO_ANSWER and input.before:  # an answer is for the one that has asked
        before = [*input.before]
    for run, since in before:
        if place := at(StartMode.FOLLOWS, run):
            return replace(place, missed=since)
    root = saver.put(config, empty_checkpoint(), _about(), {})
    return StartPoint(StartMode.FRESH, {**root["configurable"]})


def answer(
    saver: BaseCheckpointSaver[Any], place: StartPoint, given: Any
) -> tuple[StartPoint, Any]:
    """Where the graph goes on with an answer, and what LangGraph is told as the answer.

    What was answered there after the parent had ended is forgotten. Raises ValueError for an
    answer that cannot be given anew.
    """
    if place.checkpoint is None:
        return place, given
    levels, moved = _as_it_was(saver, place, place.checkpoint)
    if "" in moved and "checkpoint_id" not in place.configurable:
        # As long as it is the newest, what its nodes have made of the old answers is taken over.
        saver.put({"configurable": place.configurable}, empty_checkpoint(), _about(), {})
        here = {"checkpoint_id": place.checkpoint.checkpoint["id"]}
        place = replace(place, configurable=place.configurable | here)
    asking = [
        (level, task)
        for level in levels.values()
        for task in {task for task, name, _ in level.pending_writes or [] if name == INTERRUPT}
        if not any(task in ns for ns in levels)  # a node that is a subgraph does not ask itself
    ]
    back = {ns: place.below[ns] for ns in moved - {""}}
    if back:
        if isinstance(given, dict) and len(given) == 1 and _ID.fullmatch(next(iter(given))):
            (given,) = given.values()  # the fork asks under another id
        again = any(place.answers.get(task) for ns in back for task, _ in _answers(levels[ns]))
        # A fork has no subgraphs yet: they would begin anew, and might ask something else.
        deep = any(
            ns.startswith(f"{above}|") and ":" in ns[len(above) :]
            for above in back
            for ns in levels
        )
        if again or deep or len(asking) != 1 or given in (None, {}):
            raise ValueError("the subgraph has gone on: this answer cannot be given anew")
        return replace(place, configurable=place.configurable | {CHECKPOINT_MAP: back}), given
    if given is None or given == {}:
        # LangGraph takes null for no answer, and {} for answers to none: it finds this one there.
        if len(asking) == 1:
            level, task = asking[0]
            kept = dict(_answers(level)).get(task, [])[: place.answers.get(task, 0)]
            saver.put_writes(level.config, [(RESUME, [*kept, given])], task)
        given = {}
    return place, given


def _as_it_was(
    saver: BaseCheckpointSaver[Any], place: StartPoint, top: CheckpointTuple
) -> tuple[dict[str, CheckpointTuple], set[str]]:
    """The graph and its subgraphs as the parent has left them, and which have gone on since."""
    now = _subgraphs(saver, top)
    levels = {"": top}
    for ns, id in place.below.items():
        if (found := saver.get_tuple(_at(top, ns, id))) is not None:
            levels[ns] = found
    moved = {ns for ns in levels if ns and now.get(ns, place.below[ns]) != place.below[ns]}
    moved |= {ns for ns, level in levels.items() if _take_back(saver, level, place.answers)}
    for ns in now.keys() - place.below.keys():  # begun by another branch: here it has not begun
        about = _about({"parents": {"": top.checkpoint["id"]}})
        saver.put(_at(top, ns), empty_checkpoint(), about, {})
    return levels, moved


def _take_back(
    saver: BaseCheckpointSaver[Any], level: CheckpointTuple, kept: Mapping[str, int]
) -> bool:
    """Forget later answers. Whether a task has finished with one."""
    writes = level.pending_writes or []
    done = {task for task, name, _ in writes if name == NO_WRITES or not name.startswith("__")}
    if any(task == NULL_TASK_ID and name == RESUME for task, name, _ in writes):
        saver.put_writes(level.config, [(RESUME, None)], NULL_TASK_ID)
    finished = False
    for task, answers in _answers(level):
        most = kept.get(task, 0)
        if len(answers) > most:
            saver.put_writes(level.config, [(RESUME, answers[:most])], task)
            finished = finished or task in done
    return finished


def _subgraphs(
    saver: BaseCheckpointSaver[Any], top: CheckpointTuple, run: str | None = None
) -> dict[str, str]:
    """Return where the subgraphs of this checkpoint's nodes are: namespace → newest checkpoint.

    With `run`, only those that this run has taken there.
    """
    whole: RunnableConfig = {"configurable": {"thread_id": top.config["configurable"]["thread_id"]}}
    newest: dict[str, str] = {}
    of_run = {RUN: run} if run else {}
    for found in saver.list(whole, filter={TOP: top.checkpoint["id"], **of_run}):
        ns, id = found.config["configurable"]["checkpoint_ns"], found.checkpoint["id"]
        if ns:
            newest[ns] = max(newest.get(ns, id), id)
    return newest


def note(saver: BaseCheckpointSaver[Any], place: StartPoint, run: str) -> None:
    """Note where a run has left the graph waiting, if it has made no checkpoint by itself."""
    thread = {name: place.configurable[name] for name in ("thread_id", "checkpoint_ns")}
    config: RunnableConfig = {"configurable": thread}
    if place.checkpoint is None or _newest(saver, config, run) is not None:
        return
    left = saver.get_tuple(place.checkpoint.config)
    if left is not None:
        below = _subgraphs(saver, left)
        answers = {task: len(given) for task, given in _answers(left)}
        for ns, id in below.items():
            if (level := saver.get_tuple(_at(left, ns, id))) is not None:
                answers |= {task: len(given) for task, given in _answers(level)}
        about = {RUN: run, _AT: left.checkpoint["id"], _ANSWERS: json.dumps(answers)}
        about[_BELOW] = json.dumps(below)
        saver.put(_notes(config), empty_checkpoint(), _about(about), {})


def _newest(
    saver: BaseCheckpointSaver[Any], config: RunnableConfig, run: str
) -> CheckpointTuple | None:
    return next(saver.list(config, filter={RUN: run}, limit=1), None)


def _at(top: CheckpointTuple, ns: str, id: str | None = None) -> RunnableConfig:
    """That checkpoint, or the newest, of a subgraph."""
    thread = top.config["configurable"]["thread_id"]
    named = {"checkpoint_id": id} if id else {}
    return {"configurable": {"thread_id": thread, "checkpoint_ns": ns, **named}}


def _notes(config: RunnableConfig) -> RunnableConfig:
    thread = config["configurable"]["thread_id"]
    return {"configurable": {"thread_id": thread, "checkpoint_ns": _NOTES}}


def _about(more: Mapping[str, Any] | None = None) -> CheckpointMetadata:
    about = {"source": "fork", "step": -2, "parents": {}, **(more or {})}
    return cast(CheckpointMetadata, about)


def _answers(checkpoint: CheckpointTuple) -> Iterator[tuple[str, list[Any]]]:
    """Task ids, and the answers that each has been given."""
    for task, name, given in checkpoint.pending_writes or []:
        if name == RESUME and isinstance(given, list) and task != NULL_TASK_ID:
            yield task, given
