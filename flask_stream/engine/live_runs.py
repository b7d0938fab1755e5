"""The runs that this process works on: started, taken over, stopped, and seen to their end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from ..errors import ErrorCode, StoreError
from ..events import encode
from ..sources.base import Source
from ..stores.base import PurgedRun, Run, Store
from .chain import Chain
from .journal import Journal
from .log_writer import WriteFailure
from .maintenance import Maintenance, RunTimes
from .recovery import Recovery
from .run_input import RunInputs, thread_of
from .runner import Runner, StopReason, start_event

logger = logging.getLogger(__name__)

#: Seconds that all runs together have for their ends to be stored when their worker goes.
_STOPPING = 2.0


class LiveRuns:
    """Runs under way. `spent` is told what one has cost its principal; it may raise StoreError."""

    def __init__(
        self,
        store: Store,
        chains: Mapping[str, Chain],
        times: RunTimes,
        spent: Callable[[str, int], None],
    ) -> None:
        self.draining = False
        self.journal = Journal(store, patience=times.hold, on_cancel=self.cancel)
        self._store = store
        self._chains = chains
        self._times = times
        self._spent = spent
        self._runners: dict[str, Runner] = {}
        self._inputs = RunInputs(store, self.journal)
        self._recovery = Recovery(
            chains, self.journal, self.start, times.hold, lambda: self.draining
        )
        self._maintenance = Maintenance(
            store,
            self.journal,
            times,
            self._runners,
            self._recovery.recover,
            self._purged,
            lambda: self.draining,
        )

    def __len__(self) -> int:
        return len(self._runners)

    def begin(self) -> None:
        """Look after runs, those of dead workers included. Again does nothing."""
        self._maintenance.start()

    def start(
        self,
        chain: Chain,
        run: Run,
        lease_token: str,
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

        def fail(failure: WriteFailure) -> None:
            runner.on_write_failure(failure)

        def ended(runner: Runner) -> None:
            self._ended(run, runner, key)

        log = self.journal.open(run, lease_token, fail)
        limits = self._times.limits
        earlier = self._runners.get(run.id)
        if earlier is not None:  # it was taken over from this very process
            earlier.log.lose_lease()
        runner = Runner(log, source, lambda: self._inputs.make(chain, run, queued), limits, ended)
        self._runners[run.id] = runner
        if run.seq == 0:
            log.append(start_event(run), time.monotonic())
        elif not source.durable:
            data = encode({"attempt": run.attempt, "reason": ErrorCode.WORKER_LOST})
            log.append(("reset", data), time.monotonic())
        runner.start()

    def _ended(self, run: Run, runner: Runner, key: str | None) -> None:
        # Not before its end is stored: until then the lease has to be renewed.
        runner.log.settled.wait()
        tokens = runner.tokens
        if tokens is None:
            # Broken off before it was told: about a token an event, and one for four characters.
            tokens = runner.log.committed + len(run.input) // 4
        try:
            if key is not None and runner.status != "done":
                self._store.release_claim(key, run.id)
            self._spent(run.principal, tokens)
        except StoreError as error:
            logger.error("store: %s: %d tokens are not counted", error, tokens)
        if self._runners.get(run.id) is runner:
            del self._runners[run.id]
        self.journal.release(runner.log)

    def _purged(self, runs: list[PurgedRun]) -> None:
        """Have chains forget conversations of which no run of theirs is kept any longer."""
        for run in set(runs):
            try:
                left = self._store.runs(run.principal, run.conversation)
            except StoreError as error:
                logger.error("store: %s: a chain's state is not removed", error)
                continue
            if all(one.chain != run.chain for one in left):
                self.forget(run)

    def forget(self, run: Run | PurgedRun) -> None:
        """Have the run's chain remove what it knows of the run's conversation."""
        chain = self._chains.get(run.chain)
        if chain is not None:
            try:
                chain.source.forget(thread_of(chain, run))
            except Exception as error:  # whatever a checkpointer raises: the runs are gone already
                logger.error("chain %s: a state is not removed: %s", run.chain, error)

    def runner(self, run: str) -> Runner | None:
        """Who works on the run, if it is somebody here."""
        return self._runners.get(run)

    def cancel(self, run: str) -> None:
        """Somebody, here or elsewhere, asks for the run to be stopped."""
        runner = self._runners.get(run)
        if runner is not None:
            runner.stop(StopReason.CANCELLED)

    def drain(self, grace: float) -> None:
        """Take no new runs, send the readers away, and end what is live after `grace` seconds."""
        self.draining = True
        self.journal.wake()
        until = time.monotonic() + grace
        while self._runners and time.monotonic() < until:
            time.sleep(0.05)
        runners = list(self._runners.values())
        for runner in runners:
            runner.stop(StopReason.LOST)
        until = time.monotonic() + _STOPPING
        for runner in runners:
            runner.wait(max(0.0, until - time.monotonic()))

    def close(self) -> None:
        """End every run and every thread."""
        self.drain(0)
        self._maintenance.stop()
        self.journal.close()
