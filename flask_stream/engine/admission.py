"""From a question to a live run: its place in a conversation, its terms, its source."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import (
    BadRequest,
    Conflict,
    NotFound,
    TooManyRequests,
    Unavailable,
    unavailable_on_store_error,
)
from ..events import encode, is_id, new_id
from ..sources.base import NO_ANSWER, resume_value
from ..stores.base import ConversationBusy, CreateConditions, Run, Store, TooManyLiveRuns
from .answer_cache import AnswerCache
from .chain import Chain
from .history import check_history, interrupt_ids, title
from .live_runs import LiveRuns
from .maintenance import RunTimes
from .ownership import is_anonymous, may_access, require_access
from .runner import STOP_WAIT

logger = logging.getLogger(__name__)

#: What may be done with a question in a conversation that has a live run.
MULTITASK = ("refuse", "queue", "interrupt", "replace")
Multitask = Literal["refuse", "queue", "interrupt", "replace"]
#: A parent that is not named: the conversation's newest run.
NEWEST = "newest"
#: Ends after which a run can be gone on with.
_BROKEN = ("failed", "cancelled")
#: Seconds that the same run, asked for twice at once, waits for the first to be there.
_TWICE = 10.0


def nothing() -> None:
    """Does nothing, where something could be done."""


@dataclass(frozen=True, slots=True)
class StartRequest:
    """What somebody wants to have started. Ids are as they came, and not yet checked.

    `most` is how many live runs `who` may have with it, 0 for any number. `admit` is called
    where a run would be started, and may raise what forbids it. `multitask` is None for what
    the chain says.
    """

    chain: str
    value: dict[str, Any]
    who: str = ""
    run: str | None = None
    conversation: str | None = None
    parent: str | None = NEWEST
    multitask: str | None = None
    most: int = 0
    admit: Callable[[], None] = nothing

    @property
    def resumes(self) -> bool:
        """Whether it is the answer to what another run has asked."""
        return resume_value(self.value) is not NO_ANSWER


class Admission:
    """Starts runs. `cancel` stops a live run and waits, up to so many seconds."""

    def __init__(
        self,
        store: Store,
        chains: Mapping[str, Chain],
        times: RunTimes,
        live: LiveRuns,
        cancel: Callable[[Run, float], None],
    ) -> None:
        self._store = store
        self._chains = chains
        self._times = times
        self._live = live
        self._cancel = cancel
        self._cache = AnswerCache(store, lambda run: live.journal.read(run, 0))

    def chain(self, name: str) -> Chain:
        """The chain of that name. Raises NotFound."""
        chain = self._chains.get(name)
        if chain is None:
            raise NotFound(f"There is no chain named {name!r}.", field="chain")
        return chain

    def names(self) -> list[str]:
        """What chains there are."""
        return list(self._chains)

    @property
    def public(self) -> bool:
        """Whether there is a chain that anyone may ask."""
        return any(self.chain(name).public for name in self._chains)

    def start(self, asked: StartRequest) -> tuple[Run, bool]:
        """Start a run, or find the one of that id; the run, and whether it is new.

        Of any number of calls with one `run` id, one calls the model. Raises NotFound for an
        unknown chain or parent or another's run; Conflict for an id that another question has,
        for a conversation that is busy, and for an answer that nobody has asked for; BadRequest
        for ids that can be none; TooMany; and Unavailable when the store cannot be reached, the
        worker leaves, or the chain cannot answer.
        """
        chain = self.chain(asked.chain)
        _check_id("run", asked.run)
        if not asked.resumes:
            chain.source.check(asked.value)
        multitask = asked.multitask or chain.multitask
        if multitask not in MULTITASK:
            raise BadRequest(f"multitask is one of {', '.join(MULTITASK)}.", field="multitask")
        if self._live.draining:
            raise Unavailable("This worker is being replaced.", retry_after=1)
        refusal = chain.refusal() if chain.refusal is not None else None
        if refusal is not None:
            raise Unavailable(refusal, field="chain")
        with unavailable_on_store_error(
            "no run can be started", "Answers cannot be stored right now."
        ):
            there, claim = self._found(asked.run) if asked.run else (None, "")
            if there is not None:
                return _same(there, asked.chain, encode(asked.value), asked.who), False
            try:
                with self._turn(asked, multitask):
                    return self._admitted(chain, asked, multitask)
            except BaseException as error:
                if asked.run:
                    self._store.release_claim(f"start:{asked.run}", claim)
                if isinstance(error, TooManyLiveRuns):
                    told = "You have too many answers under way."
                    raise TooManyRequests(told, retry_after=5) from None
                raise

    def _found(self, id: str) -> tuple[Run | None, str]:
        """The run of that id; or None and a claim, for the one caller who is to start it.

        A double click sends the same run twice at once: it is admitted, and counted, once.
        """
        until = time.monotonic() + _TWICE
        while (there := self._store.get(id)) is None:
            mine = new_id()
            if self._store.claim(f"start:{id}", mine, _TWICE) == mine:
                return self._store.get(id), mine
            if time.monotonic() > until:
                raise Unavailable("This question is being taken.", field="run", retry_after=1)
            time.sleep(0.02)
        return there, ""

    @contextmanager
    def _turn(self, asked: StartRequest, multitask: str) -> Iterator[None]:
        """Of those who queue for the end of a conversation one at a time: each has its own end."""
        if multitask != "queue" or asked.parent != NEWEST or not asked.conversation:
            yield
            return
        try:
            with self._store.lock(f"turn:{asked.who}:{asked.conversation}", _TWICE):
                yield
        except TimeoutError:
            told = "Others are asking here."
            raise Unavailable(told, field="conversation", retry_after=1) from None

    def _admitted(self, chain: Chain, asked: StartRequest, multitask: str) -> tuple[Run, bool]:
        conversation, parent = self._place(asked.who, asked.conversation, asked.parent)
        if asked.resumes:
            self._check_answer(chain, resume_value(asked.value), parent)
        check_history(self._store, chain.source, asked.value, parent)
        asked.admit()
        run = Run(
            id=asked.run or new_id(),
            chain=asked.chain,
            conversation=conversation or new_id(),
            parent=parent.id if parent else None,
            principal=asked.who,
            input=encode(asked.value),
            created=_after(parent),
        )
        return self._start(chain, run, asked, multitask)

    def _check_answer(self, chain: Chain, answer: Any, parent: Run | None) -> None:
        """Raise Conflict where nobody has asked, BadRequest for an answer to something else."""
        if parent is None or parent.chain != chain.name:
            raise Conflict("This chain has not asked for an answer.", field="resume")
        # What was broken off goes on with no answer, from where the chain was.
        if parent.status != "interrupted" and (parent.status not in _BROKEN or answer is not None):
            raise Conflict("This run has not asked for an answer.", field="resume")
        if not chain.source.durable:
            raise Conflict("This chain keeps no state to go on from.", field="resume")
        ids = interrupt_ids(self._store, parent)
        if len(ids) > 1 and not (isinstance(answer, dict) and answer and answer.keys() <= ids):
            told = "Several things were asked: resume is an object, interrupt id to answer."
            raise BadRequest(told, field="resume")

    def _start(
        self, chain: Chain, run: Run, asked: StartRequest, multitask: str
    ) -> tuple[Run, bool]:
        self._live.begin()
        lease_token = new_id()
        conditions = CreateConditions(asked.most, only_live_run=True, title=title(asked.value))
        while True:
            try:
                there = self._store.create(run, lease_token, self._times.hold, conditions)
                break
            except ConversationBusy:
                if multitask == "queue":
                    # After those that it waits for, though they were quicker only just now.
                    ahead = self._store.newest(run.principal, run.conversation)
                    created = max(run.created, _after(ahead))
                    run = dataclasses.replace(run, created=created)
                    conditions = conditions._replace(only_live_run=False)
                else:
                    run = self._make_room(run, multitask)
        if there is not None:
            return _same(there, run.chain, run.input, run.principal), False
        logger.info("run %s: started, chain %s", run.id, run.chain)
        key, source = self._cache.source(chain, run)
        self._live.start(chain, run, lease_token, source, key, queued=not conditions.only_live_run)
        return run, True

    def _make_room(self, run: Run, multitask: str) -> Run:
        """End what is live in this conversation, if that is how it goes on; the run to start."""
        if multitask == "refuse":
            raise Conflict(
                "The answer before is still under way in this conversation.", field="conversation"
            )
        if is_anonymous(run.principal) and run.parent is None:
            # Nobody's conversations are nobody's: it is the run's id that gives the right.
            raise Conflict("Say which run this follows, as its parent.", field="parent")
        # The last one first: none that waits for another is to begin when that ends.
        for busy in reversed(self._store.runs(run.principal, run.conversation)):
            if not busy.live:
                continue
            logger.info("run %s: %ss run %s", run.id, multitask, busy.id)
            self._cancel(busy, STOP_WAIT)
            if multitask == "replace" and run.parent == busy.id:
                run = dataclasses.replace(run, parent=busy.parent)
        return run

    def place(self, who: str, conversation: str | None, parent: str | None) -> None:
        """Raise what `start` would raise for this place."""
        with unavailable_on_store_error("no run can be found"):
            self._place(who, conversation, parent)

    def _place(
        self, who: str, conversation: str | None, parent: str | None
    ) -> tuple[str | None, Run | None]:
        """The conversation, None for a new one, and the run that is followed, if there is one."""
        _check_id("conversation", conversation)
        if parent == NEWEST:
            # Nobody's conversations are nobody's: there, a run is followed by its own id only.
            known = conversation is not None and not is_anonymous(who)
            newest = self._store.newest(who, conversation) if known and conversation else None
            return conversation, newest
        _check_id("parent", parent)
        if parent is None:
            return conversation, None
        run = self._store.get(parent)
        if run is None or not may_access(who, run.principal):
            raise NotFound("There is no such run to follow.", field="parent")
        if conversation is not None and run.conversation != conversation:
            raise BadRequest("The parent belongs to another conversation.", field="conversation")
        return run.conversation, run


def _same(there: Run, chain: str, input: str, who: str) -> Run:
    """The run that is there already, if it is the one that would be started."""
    require_access(who, there)
    if there.chain != chain or json.loads(there.input) != json.loads(input):
        raise Conflict("This run id belongs to another question.", field="run")
    return there


def _after(run: Run | None) -> float:
    """Now, or just after that run: workers' clocks differ, and what comes next is later."""
    now = time.time()
    return now if run is None else max(now, math.nextafter(run.created, math.inf))


def _check_id(field: str, text: str | None) -> None:
    if text is not None and not is_id(text):
        raise BadRequest(
            "An id is 16 to 64 letters, digits, '-' or '_'; a UUID will do.", field=field
        )
