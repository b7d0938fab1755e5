"""The live runs of this process: start them, take them over, stop them, clean up after them."""

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

#: Seconds in which all runs together must end when their worker shuts down.
_STOP_TIMEOUT = 2.0


class LiveRuns:
    """The live runs of this process.

    `add_tokens` is called with the principal and the tokens of each run that has ended. It may
    raise StoreError.
    """

    def __init__(
        self,
        store: Store,
        chains: Mapping[str, Chain],
        times: RunTimes,
        add_tokens: Callable[[str, int], None],
    ) -> None:
        self.draining = False
        self.journal = Journal(store, retry_timeout=times.lease_duration, on_cancel=self.cancel)
        self._store = store
        self._chains = chains
        self._times = times
        self._add_tokens = add_tokens
        self._runners: dict[str, Runner] = {}
        self._inputs = RunInputs(store, self.journal)
        self._recovery = Recovery(
            chains, self.journal, self.start, times.lease_duration, lambda: self.draining
        )
        self._maintenance = Maintenance(
            store,
            self.journal,
            times,
            self._runners,
            self._recovery.recover,
            self._forget_purged,
            lambda: self.draining,
        )

    def __len__(self) -> int:
        return len(self._runners)

    def start_maintenance(self) -> None:
        """Start maintenance, which also takes over runs of dead workers. It may be called again."""
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
        """Start a runner for a run whose lease this process holds.

        `source` produces the answer: the chain's source, or one that replays a cached answer. `key`
        is the cache key that the run has claimed; it is released unless the run ends as `done`.
        A `queued` run begins when the earlier runs of its conversation have ended.
        """
        runner: Runner

        def fail(failure: WriteFailure) -> None:
            runner.on_write_failure(failure)

        def ended(runner: Runner) -> None:
            self._finish(run, runner, key)

        log = self.journal.open(run, lease_token, fail)
        limits = self._times.limits
        previous = self._runners.get(run.id)
        if previous is not None:  # this process lost its own lease and took the run over again
            previous.log.lose_lease()
        runner = Runner(log, source, lambda: self._inputs.make(chain, run, queued), limits, ended)
        self._runners[run.id] = runner
        if run.seq == 0:
            log.append(start_event(run), time.monotonic())
        elif not source.durable:
            data = encode({"attempt": run.attempt, "reason": ErrorCode.WORKER_LOST})
            log.append(("reset", data), time.monotonic())
        runner.start()

    def _finish(self, run: Run, runner: Runner, key: str | None) -> None:
        # The lease must be renewed until the end is stored.
        runner.log.settled.wait()
        tokens = runner.tokens
        if tokens is None:
            # Stopped before the model reported its usage. Estimate one token per event, and one per
            # four characters of input.
            tokens = runner.log.committed + len(run.input) // 4
        try:
            if key is not None and runner.status != "done":
                self._store.release_claim(key, run.id)
            self._add_tokens(run.principal, tokens)
        except StoreError as error:
            logger.error("store: %s: %d tokens were not counted", error, tokens)
        if self._runners.get(run.id) is runner:
            del self._runners[run.id]
        self.journal.release(runner.log)

    def _forget_purged(self, runs: list[PurgedRun]) -> None:
        """Let chains delete their state of conversations in which they have no runs left."""
        for run in set(runs):
            try:
                remaining = self._store.runs(run.principal, run.conversation)
            except StoreError as error:
                logger.error("store: %s: the state of a chain was not removed", error)
                continue
            if all(other.chain != run.chain for other in remaining):
                self.forget(run)

    def forget(self, run: Run | PurgedRun) -> None:
        """Let the run's chain delete its state of the run's conversation."""
        chain = self._chains.get(run.chain)
        if chain is not None:
            try:
                chain.source.forget(thread_of(chain, run))
            except Exception as error:  # a checkpointer may raise anything
                logger.error(
                    "chain %s: the state of a conversation was not removed: %s", run.chain, error
                )

    def runner(self, run: str) -> Runner | None:
        """Return the runner of a run, or None if this process is not working on it."""
        return self._runners.get(run)

    def cancel(self, run: str) -> None:
        """Stop a run if this process is working on it. It does not wait for the end."""
        runner = self._runners.get(run)
        if runner is not None:
            runner.stop(StopReason.CANCELLED)

    def drain(self, grace: float) -> None:
        """Refuse new runs, disconnect readers, and stop runs still live after `grace` seconds."""
        self.draining = True
        self.journal.wake()
        deadline = time.monotonic() + grace
        while self._runners and time.monotonic() < deadline:
            time.sleep(0.05)
        runners = list(self._runners.values())
        for runner in runners:
            runner.stop(StopReason.LOST)
        deadline = time.monotonic() + _STOP_TIMEOUT
        for runner in runners:
            runner.wait(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """End every run and every thread."""
        self.drain(0)
        self._maintenance.stop()
        self.journal.close()
