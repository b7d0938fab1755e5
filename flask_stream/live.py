"""The runs that this process works on: started, taken over, stopped, and seen to their end."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256

from .errors import Code, StoreError
from .events import encode
from .history import past, shown
from .journal import Journal
from .keeper import Keeper, Times
from .log import Log, Trouble
from .rights import anyones
from .runner import Runner, Stop, ending
from .sources.base import BROKEN_OFF, HISTORY_TOKENS, Input, Source, answer_of
from .stores.base import Purged, Run, Store

logger = logging.getLogger(__name__)

#: Seconds that all runs together have for their ends to be stored when their worker goes.
_STOPPING = 2.0


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain that can be asked by name.

    `attempts` is how many workers may try a run in all: one, or more if a run whose worker is
    gone is to be started anew. `public` opens it to those who are not signed in. `multitask` is
    what happens to a question whose conversation has a live run. Answers are read again for
    `cache` seconds, 0 for never: by the same principal, or by everybody where they are `shared`;
    another `version` has other answers. `refusal` tells why it cannot answer at all. Earlier turns
    reach it as messages of about `history_tokens` tokens, None for the usual.
    """

    name: str
    source: Source
    attempts: int = 1
    public: bool = False
    multitask: str = "refuse"
    cache: float = 0.0
    shared: bool = False
    version: str = ""
    refusal: Callable[[], str | None] | None = None
    history_tokens: int | None = None


class Live:
    """Runs under way. `spent` is told what one has cost its principal; it may raise StoreError."""

    def __init__(
        self,
        store: Store,
        chains: Mapping[str, Chain],
        times: Times,
        spent: Callable[[str, int], None],
    ) -> None:
        self.draining = False
        self.journal = Journal(store, patience=times.hold, on_cancel=self.cancel)
        self._store = store
        self._chains = chains
        self._times = times
        self._spent = spent
        self._runners: dict[str, Runner] = {}
        self._keeper = Keeper(
            store,
            self.journal,
            times,
            self._runners,
            self._bury,
            self._purged,
            lambda: self.draining,
        )

    def __len__(self) -> int:
        return len(self._runners)

    def begin(self) -> None:
        """Look after runs, those of dead workers included. Again does nothing."""
        self._keeper.start()

    def start(
        self,
        chain: Chain,
        run: Run,
        owner: str,
        source: Source,
        key: str | None = None,
        *,
        queued: bool = False,
    ) -> None:
        """Have a runner work on a run that this process owns, from the chain's beginning.

        `source` answers, in the chain's place perhaps. `key` is what others find the answer by;
        it is unset when the run does not come to a good end. A `queued` run begins when those
        before it in its conversation have ended.
        """
        runner: Runner

        def trouble(what: Trouble) -> None:
            runner.trouble(what)

        def ended(runner: Runner) -> None:
            self._ended(run, runner, key)

        log = self.journal.open(run, owner, trouble)
        limits = self._times.limits
        earlier = self._runners.get(run.id)
        if earlier is not None:  # it was taken over from this very process
            earlier.log.lose()
        runner = Runner(log, source, lambda: self._input(chain, run, queued), limits, ended)
        self._runners[run.id] = runner
        if run.seq == 0:
            log.append(("start", _started(run)))
        elif not source.durable:
            log.append(("reset", encode({"attempt": run.attempt, "reason": Code.WORKER_LOST})))
        runner.start()

    def _input(self, chain: Chain, run: Run, queued: bool) -> Input:
        """What the chain is asked with. Waits for the runs before, should they be live."""
        while queued and (before := self._before(run)) is not None:
            self._wait(before)
        parent = self._store.get(run.parent) if run.parent else None
        if parent is not None and parent.live:
            self._wait(parent)
        value = json.loads(run.input)
        answer = answer_of(value)
        if answer is None and parent is not None and parent.status != "interrupted":
            answer = BROKEN_OFF
        history, runs = past(self._store, run.parent, chain.source.turns)
        most = chain.history_tokens
        return Input(
            value,
            history,
            run=run.id,
            parent=run.parent,
            thread=_thread(chain, run),
            resume=answer,
            before=runs,
            history_tokens=HISTORY_TOKENS if most is None else most,
        )

    def _before(self, run: Run) -> Run | None:
        """A live run of its conversation that was started before it."""
        runs = self._store.runs(run.principal, run.conversation)
        place = (run.created, run.id)
        return next((one for one in runs if one.live and (one.created, one.id) < place), None)

    def _wait(self, run: Run) -> None:
        reader = self.journal.read(run, run.seq)
        try:
            while (events := reader.take()) is None or not events.ended:
                if events is None:
                    reader.wait(1.0)
        finally:
            reader.close()

    def _bury(self, runs: list[Run], owner: str) -> None:
        """End runs whose workers are gone, or start them anew where the chain is for that."""
        logs = []
        for run in runs:
            chain = self._chains.get(run.chain)
            if chain is not None and run.attempt <= chain.attempts and not self.draining:
                logger.info("run %s: attempt %d of %d", run.id, run.attempt, chain.attempts)
                self.start(chain, run, owner, chain.source, queued=True)
                continue
            log = self.journal.open(run, owner, lambda trouble: None)
            if run.seq == 0:
                log.append(("start", _started(run)))
            log.close("failed", ending("failed", Code.WORKER_LOST))
            logs.append(log)
        # Not here: who waits for these ends renews no leases meanwhile.
        if logs:
            threading.Thread(target=self._see_off, args=(logs,), name="bury", daemon=True).start()

    def _see_off(self, logs: list[Log]) -> None:
        until = time.monotonic() + self._times.hold
        for log in logs:
            log.settled.wait(max(0.0, until - time.monotonic()))
            self.journal.release(log)

    def _ended(self, run: Run, runner: Runner, key: str | None) -> None:
        # Not before its end is stored: until then the lease has to be renewed.
        runner.log.settled.wait()
        tokens = runner.tokens
        if tokens is None:
            # Broken off before it was told: about a token an event, and one for four characters.
            tokens = runner.log.committed + len(run.input) // 4
        try:
            if key is not None and runner.status != "done":
                self._store.disclaim(key, run.id)
            self._spent(run.principal, tokens)
        except StoreError as error:
            logger.error("store: %s: %d tokens are not counted", error, tokens)
        if self._runners.get(run.id) is runner:
            del self._runners[run.id]
        self.journal.release(runner.log)

    def _purged(self, runs: list[Purged]) -> None:
        """Have chains forget conversations of which no run of theirs is kept any longer."""
        for run in set(runs):
            try:
                left = self._store.runs(run.principal, run.conversation)
            except StoreError as error:
                logger.error("store: %s: a chain's state is not removed", error)
                continue
            if all(one.chain != run.chain for one in left):
                self.forget(run)

    def forget(self, run: Run | Purged) -> None:
        """Have the run's chain remove what it knows of the run's conversation."""
        chain = self._chains.get(run.chain)
        if chain is not None:
            try:
                chain.source.forget(_thread(chain, run))
            except Exception as error:  # whatever a checkpointer raises: the runs are gone already
                logger.error("chain %s: a state is not removed: %s", run.chain, error)

    def runner(self, run: str) -> Runner | None:
        """Who works on the run, if it is somebody here."""
        return self._runners.get(run)

    def cancel(self, run: str) -> None:
        """Somebody, here or elsewhere, asks for the run to be stopped."""
        runner = self._runners.get(run)
        if runner is not None:
            runner.stop(Stop.CANCELLED)

    def drain(self, grace: float) -> None:
        """Take no new runs, send the readers away, and end what is live after `grace` seconds."""
        self.draining = True
        self.journal.wake()
        until = time.monotonic() + grace
        while self._runners and time.monotonic() < until:
            time.sleep(0.05)
        runners = list(self._runners.values())
        for runner in runners:
            runner.stop(Stop.LOST)
        until = time.monotonic() + _STOPPING
        for runner in runners:
            runner.wait(max(0.0, until - time.monotonic()))

    def close(self) -> None:
        """End every run and every thread."""
        self.drain(0)
        self._keeper.stop()
        self.journal.close()


def _started(run: Run) -> str:
    return encode(
        {
            "run": run.id,
            "chain": run.chain,
            "conversation": run.conversation,
            "parent": run.parent,
            "input": shown(json.loads(run.input)),
        }
    )


def _thread(chain: Chain, run: Run | Purged) -> str:
    """Where a graph keeps what it knows of this conversation; nobody else's is the same."""
    who = "" if anyones(run.principal) else run.principal
    return sha256(json.dumps([chain.name, who, run.conversation]).encode()).hexdigest()[:32]
