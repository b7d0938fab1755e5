"""Applies the answer to a question of a graph (`interrupt()`).

Before an answer is applied, later answers of other branches are removed.

A subgraph has its own namespace in the thread. The metadata of its checkpoints names the checkpoint
of the top graph that they belong to. If a subgraph has continued since it asked, it is reset to the
checkpoint at which it asked. LangGraph then forks the subgraph and drops its earlier answers. So
only the first question of a subgraph can be answered again, only if it is the only one, and never
that of a subgraph inside a subgraph.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple, empty_checkpoint

from .langgraph_internals import CHECKPOINT_MAP, INTERRUPT, NO_WRITES, NULL_TASK_ID, RESUME
from .langgraph_resume import (
    StartPoint,
    answers_of,
    new_metadata,
    subgraph_checkpoints,
    subgraph_config,
)

#: The form of LangGraph's interrupt ids.
_INTERRUPT_ID = re.compile("[0-9a-f]{32}")


def apply_answer(
    saver: BaseCheckpointSaver[Any], start: StartPoint, answer: Any
) -> tuple[StartPoint, Any]:
    """Return the start point for an answer, and the answer in the form that LangGraph expects.

    Removes answers that were given after the parent had ended. Raises ValueError if the question
    can no longer be answered.
    """
    if start.checkpoint is None:
        return start, answer
    levels, changed = _restore(saver, start, start.checkpoint)
    if "" in changed and "checkpoint_id" not in start.configurable:
        # LangGraph applies the pending writes of the newest checkpoint, among them what nodes have
        # made of old answers. A newer empty checkpoint prevents that.
        saver.put({"configurable": start.configurable}, empty_checkpoint(), new_metadata(), {})
        selected = {"checkpoint_id": start.checkpoint.checkpoint["id"]}
        start = replace(start, configurable=start.configurable | selected)
    asking = [
        (level, task)
        for level in levels.values()
        for task in {task for task, name, _ in level.pending_writes or [] if name == INTERRUPT}
        if not any(task in ns for ns in levels)  # for a subgraph's node, only the subgraph counts
    ]
    reset = {ns: start.subgraphs[ns] for ns in changed - {""}}
    if reset:
        if (
            isinstance(answer, dict)
            and len(answer) == 1
            and _INTERRUPT_ID.fullmatch(next(iter(answer)))
        ):
            (answer,) = answer.values()  # the interrupt id is another one in the fork
        repeated = any(
            start.answers.get(task) for ns in reset for task, _ in answers_of(levels[ns])
        )
        # Subgraphs within a fork start from the beginning, and might ask something else.
        nested = any(
            ns.startswith(f"{above}|") and ":" in ns[len(above) :]
            for above in reset
            for ns in levels
        )
        if repeated or nested or len(asking) != 1 or answer in (None, {}):
            raise ValueError(
                "the subgraph has continued since it asked: this question can no longer be answered"
            )
        return replace(start, configurable=start.configurable | {CHECKPOINT_MAP: reset}), answer
    if answer is None or answer == {}:
        # LangGraph reads None as no answer, and {} as answers to no questions. So the answer is
        # stored where LangGraph stores earlier answers.
        if len(asking) == 1:
            level, task = asking[0]
            kept = dict(answers_of(level)).get(task, [])[: start.answers.get(task, 0)]
            saver.put_writes(level.config, [(RESUME, [*kept, answer])], task)
        answer = {}
    return start, answer


def _restore(
    saver: BaseCheckpointSaver[Any], start: StartPoint, top: CheckpointTuple
) -> tuple[dict[str, CheckpointTuple], set[str]]:
    """Restore the graph to the state in which the parent left it.

    Return the checkpoints of the graph and its subgraphs by namespace, and the namespaces that
    have changed since.
    """
    current = subgraph_checkpoints(saver, top)
    levels = {"": top}
    for ns, id in start.subgraphs.items():
        if (found := saver.get_tuple(subgraph_config(top, ns, id))) is not None:
            levels[ns] = found
    changed = {
        ns for ns in levels if ns and current.get(ns, start.subgraphs[ns]) != start.subgraphs[ns]
    }
    changed |= {ns for ns, level in levels.items() if _remove_answers(saver, level, start.answers)}
    for ns in current.keys() - start.subgraphs.keys():  # started by another branch only
        metadata = new_metadata({"parents": {"": top.checkpoint["id"]}})
        saver.put(subgraph_config(top, ns), empty_checkpoint(), metadata, {})
    return levels, changed


def _remove_answers(
    saver: BaseCheckpointSaver[Any], level: CheckpointTuple, kept: Mapping[str, int]
) -> bool:
    """Remove all but the first `kept` answers of each task.

    Return whether a task has finished with a removed answer.
    """
    writes = level.pending_writes or []
    done = {task for task, name, _ in writes if name == NO_WRITES or not name.startswith("__")}
    if any(task == NULL_TASK_ID and name == RESUME for task, name, _ in writes):
        saver.put_writes(level.config, [(RESUME, None)], NULL_TASK_ID)
    finished = False
    for task, answers in answers_of(level):
        count = kept.get(task, 0)
        if len(answers) > count:
            saver.put_writes(level.config, [(RESUME, answers[:count])], task)
            finished = finished or task in done
    return finished
