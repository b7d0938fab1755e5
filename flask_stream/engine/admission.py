"""Starting runs: check the request, find its conversation and parent, create the run."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import (
    BadRequest,
    Conflict,
    NotFound,
    TooManyRequests,
    Unavailable,
    unavailable_on_store_error,
)
from ..events import encode, is_id, new_id
from ..sources.base import resume_value
from ..stores.base import ConversationBusy, CreateConditions, Run, Store, TooManyLiveRuns
from .answer_cache import AnswerCache
from .chain import Chain
from .history import check_history, interrupt_ids, title
from .live_runs import LiveRuns
from .maintenance import RunTimes
from .ownership import is_anonymous, may_access, require_access
from .runner import STOP_WAIT
from .start_request import MULTITASK, NEWEST, StartRequest

logger = logging.getLogger(__name__)

#: Statuses of runs that did not finish, so that a later run can continue them.
_UNFINISHED = ("failed", "cancelled")
#: Seconds for which a start claims its run id, or its place in a queue. Others wait as long.
_CLAIM_TIME = 10.0


class Admission:
    """Starts runs. `cancel` stops a live run and waits up to a number of seconds for its end."""

    def __init__(
        self,
        store: Store,
        chains: Mapping[str, Chain],
        times: RunTimes,
        live_runs: LiveRuns,
        cancel: Callable[[Run, float], None],
    ) -> None:
        self._store = store
        self._chains = chains
        self._times = times
        self._live_runs = live_runs
        self._cancel = cancel
        self._cache = AnswerCache(store, lambda run: live_runs.journal.read(run, 0))

    def chain(self, name: str) -> Chain:
        """Return the chain with that name. Raises NotFound."""
        chain = self._chains.get(name)
        if chain is None:
            raise NotFound(f"There is no chain named {name!r}.", field="chain")
        return chain

    def chain_names(self) -> list[str]:
        """Return the names of all chains."""
        return list(self._chains)

    @property
    def has_public_chain(self) -> bool:
        """Whether there is a chain that callers may use without signing in."""
        return any(self.chain(name).public for name in self._chains)

    def start(self, request: StartRequest) -> tuple[Run, bool]:
        """Start a run, or find the existing run with that id; return it, and whether it is new.

        However many calls have the same `run` id, the model is called once. Raises:

        - NotFound for an unknown chain or parent, or another principal's run
        - Conflict for a run id that belongs to another question, a conversation that is busy, or an
          answer that no run has asked for
        - BadRequest for an invalid id or value
        - TooManyRequests if the principal has too many live runs
        - Unavailable if the store cannot be reached, this worker is shutting down, or the chain
          cannot answer
        """
        chain = self.chain(request.chain)
        _check_id("run", request.run)
        if not request.resumes:
            chain.source.check(request.value)
        multitask = request.multitask or chain.multitask
        if multitask not in MULTITASK:
            raise BadRequest(f"multitask must be one of {', '.join(MULTITASK)}.", field="multitask")
        if self._live_runs.draining:
            raise Unavailable("This worker is being replaced.", retry_after=1)
        refusal = chain.refusal() if chain.refusal is not None else None
        if refusal is not None:
            raise Unavailable(refusal, field="chain")
        with unavailable_on_store_error(
            "no run can be started", "Answers cannot be stored right now."
        ):
            existing, claim = self._find_or_claim(request.run) if request.run else (None, "")
            if existing is not None:
                value = encode(request.value)
                return _check_same(existing, request.chain, value, request.principal), False
            try:
                with self._queue_lock(request, multitask):
                    return self._start_new(chain, request, multitask)
            except BaseException as error:
                if request.run:
                    self._store.release_claim(f"start:{request.run}", claim)
                if isinstance(error, TooManyLiveRuns):
                    message = "You have too many answers in progress."
                    raise TooManyRequests(message, retry_after=5) from None
                raise

    def _find_or_claim(self, id: str) -> tuple[Run | None, str]:
        """Return the run with that id; or None and a claim, for the one caller who starts it.

        A double click sends the same run twice at once. It is admitted and counted once.
        """
        deadline = time.monotonic() + _CLAIM_TIME
        while (existing := self._store.get(id)) is None:
            claim = new_id()
            if self._store.claim(f"start:{id}", claim, _CLAIM_TIME) == claim:
                return self._store.get(id), claim
            if time.monotonic() > deadline:
                raise Unavailable(
                    "Another request is starting this run.", field="run", retry_after=1
                )
            time.sleep(0.02)
        return existing, ""

    @contextmanager
    def _queue_lock(self, request: StartRequest, multitask: str) -> Iterator[None]:
        """Queue runs in one conversation one at a time, so that each follows the one before."""
        if multitask != "queue" or request.parent != NEWEST or not request.conversation:
            yield
            return
        key = f"turn:{request.principal}:{request.conversation}"
        try:
            with self._store.lock(key, _CLAIM_TIME):
                yield
        except TimeoutError:
            message = "Too many questions are being queued in this conversation."
            raise Unavailable(message, field="conversation", retry_after=1) from None

    def _start_new(self, chain: Chain, request: StartRequest, multitask: str) -> tuple[Run, bool]:
        conversation, parent = self._resolve_parent(
            request.principal, request.conversation, request.parent
        )
        if request.resumes:
            self._check_resume(chain, resume_value(request.value), parent)
        check_history(self._store, chain.source, request.value, parent)
        request.admit()
        run = Run(
            id=request.run or new_id(),
            chain=request.chain,
            conversation=conversation or new_id(),
            parent=parent.id if parent else None,
            principal=request.principal,
            input=encode(request.value),
            created=_time_after(parent),
        )
        return self._create(chain, run, request, multitask)

    def _check_resume(self, chain: Chain, answer: Any, parent: Run | None) -> None:
        """Raise Conflict if the parent cannot be resumed, BadRequest if the answer is invalid."""
        if parent is None or parent.chain != chain.name:
            raise Conflict("This chain has not asked for an answer.", field="resume")
        # A run that did not finish continues without an answer, from its last saved state.
        if parent.status != "interrupted" and (
            parent.status not in _UNFINISHED or answer is not None
        ):
            raise Conflict("This run has not asked for an answer.", field="resume")
        if not chain.source.durable:
            raise Conflict("This chain saves no state, so it cannot resume.", field="resume")
        ids = interrupt_ids(self._store, parent)
        if len(ids) > 1 and not (isinstance(answer, dict) and answer and answer.keys() <= ids):
            message = (
                "The run has several interrupts: resume must be an object with an answer per "
                "interrupt id."
            )
            raise BadRequest(message, field="resume")

    def _create(
        self, chain: Chain, run: Run, request: StartRequest, multitask: str
    ) -> tuple[Run, bool]:
        self._live_runs.start_maintenance()
        lease_token = new_id()
        conditions = CreateConditions(
            request.live_run_limit, only_live_run=True, title=title(request.value)
        )
        lease = self._times.lease_duration
        while True:
            try:
                existing = self._store.create(run, lease_token, lease, conditions)
                break
            except ConversationBusy:
                if multitask == "queue":
                    # Sort it after the runs it waits for, even those created just now.
                    newest = self._store.newest(run.principal, run.conversation)
                    created = max(run.created, _time_after(newest))
                    run = dataclasses.replace(run, created=created)
                    conditions = conditions._replace(only_live_run=False)
                else:
                    run = self._stop_live_runs(run, multitask)
        if existing is not None:
            return _check_same(existing, run.chain, run.input, run.principal), False
        logger.info("run %s: started, chain %s", run.id, run.chain)
        key, source = self._cache.source(chain, run)
        queued = not conditions.only_live_run
        self._live_runs.start(chain, run, lease_token, source, key, queued=queued)
        return run, True

    def _stop_live_runs(self, run: Run, multitask: str) -> Run:
        """Stop the live runs of the conversation for `run`; return it with its final parent.

        Raises Conflict if `multitask` refuses the run.
        """
        if multitask == "refuse":
            raise Conflict(
                "This conversation already has an answer in progress.", field="conversation"
            )
        if is_anonymous(run.principal) and run.parent is None:
            # A conversation id gives anonymous callers no rights; a run id does.
            raise Conflict("Name the run that this one follows as its parent.", field="parent")
        # The newest first, so that no queued run begins when the one before it ends.
        for other in reversed(self._store.runs(run.principal, run.conversation)):
            if not other.live:
                continue
            logger.info("run %s: %ss run %s", run.id, multitask, other.id)
            self._cancel(other, STOP_WAIT)
            if multitask == "replace" and run.parent == other.id:
                run = dataclasses.replace(run, parent=other.parent)
        return run

    def check_parent(self, principal: str, conversation: str | None, parent: str | None) -> None:
        """Raise what `start` raises for an invalid conversation or parent."""
        with unavailable_on_store_error("no run can be found"):
            self._resolve_parent(principal, conversation, parent)

    def _resolve_parent(
        self, principal: str, conversation: str | None, parent: str | None
    ) -> tuple[str | None, Run | None]:
        """Return the conversation's id, or None for a new one, and the parent run, or None."""
        _check_id("conversation", conversation)
        if parent == NEWEST:
            # Anonymous callers share no conversations: they must name the parent run by its id.
            if conversation is None or is_anonymous(principal):
                return conversation, None
            return conversation, self._store.newest(principal, conversation)
        _check_id("parent", parent)
        if parent is None:
            return conversation, None
        run = self._store.get(parent)
        if run is None or not may_access(principal, run.principal):
            raise NotFound("There is no such parent run.", field="parent")
        if conversation is not None and run.conversation != conversation:
            raise BadRequest("The parent belongs to another conversation.", field="conversation")
        return run.conversation, run


def _check_same(existing: Run, chain: str, input: str, principal: str) -> Run:
    """Return the existing run. Raises Conflict if the request for the same id differs from it."""
    require_access(principal, existing)
    if existing.chain != chain or json.loads(existing.input) != json.loads(input):
        raise Conflict("This run id belongs to another question.", field="run")
    return existing


def _time_after(run: Run | None) -> float:
    """Return the current time, but later than the run's, since workers' clocks may differ."""
    now = time.time()
    return now if run is None else max(now, math.nextafter(run.created, math.inf))


def _check_id(field: str, text: str | None) -> None:
    if text is not None and not is_id(text):
        raise BadRequest(
            "An id has 16 to 64 letters, digits, '-' or '_'. A UUID is valid.", field=field
        )
