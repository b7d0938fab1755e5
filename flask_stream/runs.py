"""Runs: start one, read one, cancel one. What every transport calls, and all that it calls.

This module knows contracts only: a store, sources, a journal. It does not know Flask.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import BadRequest, Code, Conflict, Gone, NotFound, StoreError, Unavailable
from .events import Cursor, encode, is_id, new_id
from .history import turns
from .journal import Journal
from .keeper import Keeper, Times
from .log import Trouble
from .runner import Runner, Stop, ending
from .sources.base import Input, Source, Turn
from .stores.base import Run, Store
from .tail import Reader

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain that can be asked by name.

    `attempts` is how many workers may try a run in all: one, or more if a run whose worker is
    gone is to be started anew.
    """

    name: str
    source: Source
    attempts: int = 1


class Runs:
    """The runs of one service. `chains` may grow while it lives."""

    def __init__(self, store: Store, chains: Mapping[str, Chain], times: Times) -> None:
        self.store = store
        self.draining = False
        self._chains = chains
        self._times = times
        self._journal = Journal(store, patience=times.hold, on_cancel=self._asked_to_cancel)
        self._live: dict[str, Runner] = {}
        self._keeper = Keeper(store, self._journal, times, self._live, self._bury)

    @property
    def live(self) -> int:
        """How many runs this process works on."""
        return len(self._live)

    # Starting

    def chain(self, name: str) -> Chain:
        """The chain of that name. Raises NotFound."""
        chain = self._chains.get(name)
        if chain is None:
            raise NotFound(f"There is no chain named {name!r}.", field="chain")
        return chain

    def start(
        self,
        chain: str,
        value: dict[str, Any],
        *,
        run: str | None = None,
        conversation: str | None = None,
        parent: str | None = None,
    ) -> tuple[Run, bool]:
        """Start a run, or find the one of that id; the run, and whether it is new.

        Of any number of calls with one `run` id, one calls the model. Raises NotFound for an
        unknown chain or parent, Conflict for an id that another question has, BadRequest for
        ids that can be none, Unavailable when the store cannot be reached or the worker leaves.
        """
        found = self.chain(chain)
        for field, text in (("run", run), ("conversation", conversation), ("parent", parent)):
            if text is not None and not is_id(text):
                raise BadRequest(
                    "An id is 16 to 64 letters, digits, '-' or '_'; a UUID will do.", field=field
                )
        if self.draining:
            raise Unavailable("This worker is being replaced.", retry_after=1)
        try:
            if parent is not None:
                conversation = self._parent(parent, conversation).conversation
            earlier = turns(self.store, parent)
            return self._start(
                found,
                Run(
                    id=run or new_id(),
                    chain=chain,
                    conversation=conversation or new_id(),
                    parent=parent,
                    principal="",
                    input=encode(value),
                    created=time.time(),
                ),
                earlier,
            )
        except StoreError as error:
            logger.error("store: %s: no run can be started", error)
            raise Unavailable("Answers cannot be stored right now.", retry_after=2) from error

    def _start(self, chain: Chain, run: Run, earlier: list[Turn]) -> tuple[Run, bool]:
        self._keeper.start()
        owner = new_id()
        there = self.store.create(run, owner, self._times.hold)
        if there is not None:
            if (there.chain, there.input) != (run.chain, run.input):
                raise Conflict("This run id belongs to another question.", field="run")
            return there, False
        logger.info("run %s: started, chain %s", run.id, run.chain)
        self._pump(chain, run, owner, earlier)
        return run, True

    def _pump(self, chain: Chain, run: Run, owner: str, earlier: list[Turn]) -> None:
        """Have a runner work on a run that this process owns, from the chain's beginning."""
        runner: Runner

        def trouble(what: Trouble) -> None:
            runner.trouble(what)

        log = self._journal.open(run, owner, trouble)
        asked = Input(json.loads(run.input), earlier)
        runner = Runner(log, chain.source, asked, self._times.limits, self._ended)
        self._live[run.id] = runner
        if run.seq == 0:
            log.append(("start", _started(run)))
        else:
            log.append(("reset", encode({"attempt": run.attempt, "reason": Code.WORKER_LOST})))
        runner.start()

    def _bury(self, runs: list[Run], owner: str) -> None:
        """End runs whose workers are gone, or start them anew where the chain is for that."""
        logs = []
        for run in runs:
            chain = self._chains.get(run.chain)
            if chain is not None and run.attempt <= chain.attempts and not self.draining:
                logger.info("run %s: attempt %d of %d", run.id, run.attempt, chain.attempts)
                self._pump(chain, run, owner, turns(self.store, run.parent))
                continue
            log = self._journal.open(run, owner, lambda trouble: None)
            if run.seq == 0:
                log.append(("start", _started(run)))
            log.close("failed", ending("failed", Code.WORKER_LOST))
            logs.append(log)
        for log in logs:
            log.settled.wait(self._times.hold)
            self._journal.release(log)

    def _ended(self, runner: Runner) -> None:
        # Not before its end is stored: until then the lease has to be renewed.
        runner.log.settled.wait()
        if self._live.pop(runner.log.run, None) is runner:
            self._journal.release(runner.log)

    def _parent(self, parent: str, conversation: str | None) -> Run:
        run = self.store.get(parent)
        if run is None:
            raise NotFound("There is no such run to follow.", field="parent")
        if conversation is not None and run.conversation != conversation:
            raise BadRequest("The parent belongs to another conversation.", field="conversation")
        return run

    # Reading

    def check(self) -> None:
        """Raise Unavailable where no run can be started now."""
        if self.draining:
            raise Unavailable("This worker is being replaced.", retry_after=1)
        try:
            self.store.get("0" * 32)
        except StoreError as error:
            logger.error("store: %s: not ready", error)
            raise Unavailable("Answers cannot be stored right now.", retry_after=2) from error

    def get(self, run: str) -> Run:
        """The run. Raises NotFound, or Gone when its log is no longer kept, or Unavailable."""
        self._keeper.start()
        try:
            found = self.store.get(run) if is_id(run) else None
            if found is None:
                if is_id(run) and self.store.expired(run):
                    raise Gone("This answer is no longer kept.", field="run")
                raise NotFound("There is no such run.", field="run")
            return found
        except StoreError as error:
            logger.error("store: %s: run %s cannot be read", error, run)
            raise Unavailable("Answers cannot be read right now.", retry_after=2) from error

    def read(self, cursor: Cursor) -> Reader | None:
        """A reader of what comes after the cursor; None when the run is over and all was read.

        Raises what `get` raises, and BadRequest for a place where the log has not been yet.
        """
        run = self.get(cursor.run)
        if cursor.seq >= run.seq and not run.live:
            return None
        if cursor.seq > run.seq:
            raise BadRequest("The run has not come that far.", field="after")
        return self._journal.read(run, cursor.seq)

    # Ending

    def cancel(self, run: str, timeout: float) -> Run:
        """Stop a run and wait for its end, up to `timeout` seconds; the run as it is then.

        Raises what `get` raises, and Unavailable when the run has not ended by then.
        """
        found = self.get(run)
        if not found.live:
            return found
        runner = self._live.get(run)
        if runner is not None:
            runner.stop(Stop.CANCELLED)
            ended = runner.wait(timeout)
        else:
            ended = self._cancel_elsewhere(found, timeout)
        if not ended:
            raise Unavailable("The run has not stopped yet.", field="run", retry_after=1)
        return self.get(run)

    def _cancel_elsewhere(self, run: Run, timeout: float) -> bool:
        until = time.monotonic() + timeout
        reader = self._journal.read(run, run.seq)
        try:
            self.store.cancel(run.id)
            while (left := until - time.monotonic()) > 0:
                events = reader.take()
                if events is None:
                    reader.wait(left)
                elif events.ended:
                    return True
            return False
        finally:
            reader.close()

    def _asked_to_cancel(self, run: str) -> None:
        runner = self._live.get(run)
        if runner is not None:
            runner.stop(Stop.CANCELLED)

    def drain(self, grace: float) -> None:
        """Take no new runs, send the readers away, and end what is live after `grace` seconds."""
        self.draining = True
        self._journal.wake()
        until = time.monotonic() + grace
        while self._live and time.monotonic() < until:
            time.sleep(0.05)
        runners = list(self._live.values())
        for runner in runners:
            runner.stop(Stop.LOST)
        for runner in runners:
            runner.wait(1.0)

    def close(self) -> None:
        """End every run and every thread, and close the store."""
        self.drain(0)
        self._keeper.stop()
        self._journal.close()
        self.store.close()


def _started(run: Run) -> str:
    return encode(
        {
            "run": run.id,
            "chain": run.chain,
            "conversation": run.conversation,
            "parent": run.parent,
            "input": json.loads(run.input),
        }
    )
