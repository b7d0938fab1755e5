"""The keeper: looks after runs independently of what they say.

It renews the leases of this process's runs, so that a model that thinks for minutes is not
taken for dead; takes over the runs of workers that are gone; stops runs that are over their
time limits; and removes runs that are over their age.
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

#: Runs taken over, or removed for their age, in one look.
SWEEP = 100
#: Seconds between two looks at the time limits.
LOOK = 0.2


@dataclass(frozen=True, slots=True)
class RunTimes:
    """Seconds: a run's limits; how soon a dead worker's runs end; how long logs are kept."""

    limits: RunLimits
    lease: float
    keep: float

    @property
    def hold(self) -> float:
        """How long a lease is held without being renewed.

        A part of what is promised, so that the look that finds it has run out is in time, too.
        """
        return self.lease * 0.6

    @property
    def beat(self) -> float:
        """How often leases are renewed, and those of others are looked at."""
        return self.lease * 0.15


class Maintenance:
    """Looks after the runs in `live`.

    Calls `bury` with those that it has taken over, and `purged` with those that it has removed.
    """

    def __init__(
        self,
        store: Store,
        journal: Journal,
        times: RunTimes,
        live: dict[str, Runner],
        bury: Callable[[list[Run], str], None],
        purged: Callable[[list[PurgedRun]], None],
        leaving: Callable[[], bool],
    ) -> None:
        self._leaving = leaving
        self._store = store
        self._journal = journal
        self._times = times
        self._live = live
        self._bury = bury
        self._purged = purged
        self._lock = threading.Lock()
        self._loops: list[Periodic] = []

    def start(self) -> None:
        """Begin, once. Not before a run is looked at, so after any fork."""
        if self._loops:
            return
        with self._lock:
            if not self._loops:
                self._loops = [
                    Periodic(LOOK, self._watch_limits, "limits"),
                    Periodic(self._times.beat, self._tend, "leases"),
                ]

    def stop(self) -> None:
        for loop in self._loops:
            loop.stop()

    def _watch_limits(self) -> None:
        now = time.monotonic()
        for runner in list(self._live.values()):
            if runner.overdue(now):
                logger.warning("run %s: over its time limit", runner.log.run)
                runner.stop(StopReason.TIMEOUT)

    def _tend(self) -> None:
        # In this order: what could not be stored is still ours when the store is there again.
        for what in (self._renew, self._journal.retry, self._adopt, self._purge):
            try:
                what()
            except StoreError as error:
                logger.warning("store: %s: %s has to wait", error, what.__name__.strip("_"))
                return

    def _purge(self) -> None:
        gone = self._store.purge(self._times.keep, SWEEP)
        if gone:
            # Not here: no lease is renewed meanwhile.
            threading.Thread(target=self._purged, args=(gone,), name="purge", daemon=True).start()

    def _adopt(self) -> None:
        if self._leaving():
            return
        lease_token = new_id()
        lost = self._store.take_over(lease_token, self._times.hold, SWEEP)
        for run in lost:
            logger.warning("run %s: its worker is gone", run.id)
        if lost:
            self._bury(lost, lease_token)

    def _renew(self) -> None:
        tokens = {log.run: log.lease_token for log in self._journal.unwritten()}
        tokens |= {id: runner.log.lease_token for id, runner in dict(self._live).items()}
        if not tokens:
            return
        for id, held in self._store.renew(tokens, self._times.hold).items():
            runner = self._live.get(id)
            if runner is None:  # it has ended
                continue
            if held is LeaseState.CANCEL:
                runner.stop(StopReason.CANCELLED)
            elif held is LeaseState.LOST and not runner.log.closed:
                logger.warning("run %s: no longer ours", id)
                runner.log.lose_lease()
