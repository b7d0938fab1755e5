"""Making the input of a chain for a run, when the runs before it have ended."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

from ..sources.base import CONTINUE, HISTORY_TOKENS, Input, resume_value
from ..stores.base import PurgedRun, Run, Store
from .chain import Chain
from .history import past
from .journal import Journal
from .ownership import is_anonymous


class RunInputs:
    """Makes the inputs of runs."""

    def __init__(self, store: Store, journal: Journal) -> None:
        self._store = store
        self._journal = journal

    def make(self, chain: Chain, run: Run, queued: bool) -> Input:
        """Wait for earlier runs to end, and return the chain's input for a run.

        It waits for the parent, and if the run is `queued`, for all live runs of the conversation
        that were created before it. Raises StoreError.
        """
        while queued and (earlier := self._earlier_live_run(run)) is not None:
            self._wait_for_end(earlier)
        limit = chain.source.turns
        branch = self._store.branch(run.parent, limit) if run.parent else []
        if branch and branch[0].live:
            self._wait_for_end(branch[0])
            branch = self._store.branch(branch[0].id, limit)
        parent = branch[0] if branch else None
        value = json.loads(run.input)
        resume: Any = resume_value(value)
        if resume is None and parent is not None and parent.status != "interrupted":
            resume = CONTINUE
        history, earlier_runs = past(self._store, branch, limit)
        budget = chain.history_tokens
        return Input(
            value,
            history,
            run=run.id,
            parent=run.parent,
            thread=thread_of(chain, run),
            resume=resume,
            before=earlier_runs,
            history_tokens=HISTORY_TOKENS if budget is None else budget,
        )

    def _earlier_live_run(self, run: Run) -> Run | None:
        runs = self._store.runs(run.principal, run.conversation)
        order = (run.created, run.id)
        return next(
            (other for other in runs if other.live and (other.created, other.id) < order), None
        )

    def _wait_for_end(self, run: Run) -> None:
        reader = self._journal.read(run, run.seq)
        try:
            while (batch := reader.take()) is None or not batch.ended:
                if batch is None:
                    reader.wait(1.0)
        finally:
            reader.close()


def thread_of(chain: Chain, run: Run | PurgedRun) -> str:
    """Return the id under which a graph saves the state of a conversation.

    It is a hash of the chain, the principal and the conversation, so principals never share one.
    """
    principal = "" if is_anonymous(run.principal) else run.principal
    key = json.dumps([chain.name, principal, run.conversation])
    return sha256(key.encode()).hexdigest()[:32]
