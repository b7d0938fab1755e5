"""Recovering runs whose worker has died: restart them, or end them as failed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from ..errors import ErrorCode
from ..sources.base import Source
from ..stores.base import Run
from .chain import Chain
from .journal import Journal
from .log_writer import LogWriter
from .runner import end_data, start_event

logger = logging.getLogger(__name__)


class StartRun(Protocol):
    """Starts a runner for a run whose lease this process holds."""

    def __call__(
        self, chain: Chain, run: Run, lease_token: str, source: Source, *, queued: bool
    ) -> None: ...


class Recovery:
    """Restarts or ends runs that this process has taken over from dead workers."""

    def __init__(
        self,
        chains: Mapping[str, Chain],
        journal: Journal,
        start: StartRun,
        end_timeout: float,
        draining: Callable[[], bool],
    ) -> None:
        self._chains = chains
        self._journal = journal
        self._start = start
        self._end_timeout = end_timeout
        self._draining = draining

    def recover(self, runs: list[Run], lease_token: str) -> None:
        """Restart each run whose chain has attempts left. End the others as `worker_lost`."""
        ended = []
        for run in runs:
            chain = self._chains.get(run.chain)
            if chain is not None and run.attempt <= chain.attempts and not self._draining():
                logger.info("run %s: attempt %d of %d", run.id, run.attempt, chain.attempts)
                self._start(chain, run, lease_token, chain.source, queued=True)
                continue
            log = self._journal.open(run, lease_token, lambda failure: None)
            if run.seq == 0:
                log.append(start_event(run), time.monotonic())
            log.close("failed", end_data("failed", ErrorCode.WORKER_LOST))
            ended.append(log)
        # On a thread, because the caller has leases to renew and must not wait for these ends.
        if ended:
            threading.Thread(
                target=self._release, args=(ended,), name="recovery", daemon=True
            ).start()

    def _release(self, logs: list[LogWriter]) -> None:
        deadline = time.monotonic() + self._end_timeout
        for log in logs:
            log.settled.wait(max(0.0, deadline - time.monotonic()))
            self._journal.release(log)
