"""Background maintenance of runs.

It renews the leases of this process's runs, takes over the runs of workers that have died, stops
runs that exceed a time limit, and removes runs that are older than the retention period.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..concurrency.periodic import Periodic
from ..errors import StoreError
from ..events import new_id
from ..stores.base import LeaseState, PurgedRun, Run, Store
from .journal import Journal
from .runner import RunLimits, Runner, StopReason

logger = logging.getLogger(__name__)

#: The most runs that are taken over, or removed because of their age, at a time.
BATCH_SIZE = 100
#: Seconds between two checks of the time limits.
LIMIT_CHECK_INTERVAL = 0.2


@dataclass(frozen=True, slots=True)
class RunTimes:
    """The times of runs, in seconds.

    `limits` are the time limits of a run. The runs of a worker that dies are taken over within
    `takeover_time`. Runs are removed after `retention`.
    """

    limits: RunLimits
    takeover_time: float
    retention: float

    @property
    def lease_duration(self) -> float:
        """How long a lease is valid without being renewed.

        Shorter than `takeover_time`, to leave time for another worker to notice and take over.
        """
        return self.takeover_time * 0.6

    @property
    def renew_interval(self) -> float:
        """The time between two renewals of leases, and two searches for expired ones."""
        return self.takeover_time * 0.15


class Maintenance:
    """Maintains the runs in `runners`.

    Calls `recover` with runs that it has taken over and their lease token, and `on_purge` with runs
    that it has removed. While `draining` returns true, it takes over no runs.
    """

    def __init__(
        self,
        store: Store,
        journal: Journal,
        times: RunTimes,
        runners: dict[str, Runner],
        recover: Callable[[list[Run], str], None],
        on_purge: Callable[[list[PurgedRun]], None],
        draining: Callable[[], bool],
    ) -> None:
        self._store = store
        self._journal = journal
        self._times = times
        self._runners = runners
        self._recover = recover
        self._on_purge = on_purge
        self._draining = draining
        self._lock = threading.Lock()
        self._loops: list[Periodic] = []

    def start(self) -> None:
        """Start the background threads, once. Call it after any fork."""
        if self._loops:
            return
        with self._lock:
            if not self._loops:
                self._loops = [
                    Periodic(LIMIT_CHECK_INTERVAL, self._check_limits, "limits"),
                    Periodic(self._times.renew_interval, self._maintain, "leases"),
                ]

    def stop(self) -> None:
        for loop in self._loops:
            loop.stop()

    def _check_limits(self) -> None:
        now = time.monotonic()
        for runner in list(self._runners.values()):
            if runner.overdue(now):
                logger.warning("run %s: time limit exceeded", runner.log.run)
                runner.stop(StopReason.TIMEOUT)

    def _maintain(self) -> None:
        # Renew first: when the store is back, this process still holds the runs with unwritten
        # events.
        for step, description in (
            (self._renew, "renewing leases"),
            (self._journal.retry, "writing pending events"),
            (self._take_over, "taking over runs"),
            (self._purge, "removing old runs"),
        ):
            try:
                step()
            except StoreError as error:
                logger.warning("store: %s: %s failed, trying again later", error, description)
                return

    def _purge(self) -> None:
        removed = self._store.purge(self._times.retention, BATCH_SIZE)
        if removed:
            # On a thread, because this one has leases to renew.
            threading.Thread(
                target=self._on_purge, args=(removed,), name="purge", daemon=True
            ).start()

    def _take_over(self) -> None:
        if self._draining():
            return
        lease_token = new_id()
        taken = self._store.take_over(lease_token, self._times.lease_duration, BATCH_SIZE)
        for run in taken:
            logger.warning("run %s: its worker has died", run.id)
        if taken:
            self._recover(taken, lease_token)

    def _renew(self) -> None:
        tokens = {log.run: log.lease_token for log in self._journal.unwritten()}
        tokens |= {id: runner.log.lease_token for id, runner in dict(self._runners).items()}
        if not tokens:
            return
        for id, state in self._store.renew(tokens, self._times.lease_duration).items():
            runner = self._runners.get(id)
            if runner is None:  # it has ended
                continue
            if state is LeaseState.CANCEL:
                runner.stop(StopReason.CANCELLED)
            elif state is LeaseState.LOST and not runner.log.closed:
                logger.warning("run %s: this worker has lost the lease", id)
                runner.log.lose_lease()
