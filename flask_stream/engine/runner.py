"""The runner: one run, from its first event to its last, in a task of its own.

It pumps what the source says into the run's log. It ends because the chain has ended or
failed, or because somebody stops it: a person, a time limit, the store, the end of the worker.
However it ends, the log gets one `end`.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from enum import Enum

from ..concurrency import tasks
from ..concurrency.fairness import yield_control
from ..errors import ErrorCode
from ..events import NewEvent, encode
from ..sources.base import Input, Source
from ..sources.error_codes import error_code
from ..sources.finish_reasons import FinishReason, error_finish_reason
from ..stores.base import Run
from .history import shown
from .log_writer import LogWriter, WriteFailure

logger = logging.getLogger(__name__)

#: Seconds that whoever stops a run waits for it to have ended.
STOP_WAIT = 10.0
#: A chain that never blocks would never let another run: it gives way after so many seconds,
#: sooner at its beginning, so that the first words of many runs do not wait for each other.
FIRST_SLICE, SLICE = 0.0005, 0.005
#: How long a chain that cannot be interrupted (on a plain thread) may take to notice a Stop.
NOTICE = 1.0


class StopReason(Enum):
    """Why a run is stopped: the status and code of its `end`."""

    CANCELLED = "cancelled", None
    TIMEOUT = "failed", ErrorCode.TIMEOUT
    STORE = "failed", ErrorCode.STORE_ERROR
    LOST = "failed", ErrorCode.WORKER_LOST  # this worker goes, or another has taken the run over

    def __init__(self, status: str, code: ErrorCode | None) -> None:
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class RunLimits:
    """Seconds that a run may take: to its first event, between two events, in all."""

    first: float
    silence: float
    total: float


class Runner:
    """Pumps one run. `done` is called when the run has ended, in the run's own task.

    `prepare` makes the chain's input, and may take its time: the limits do not count yet.
    `status` is how the run has ended, None before.
    """

    def __init__(
        self,
        log: LogWriter,
        source: Source,
        prepare: Callable[[], Input],
        limits: RunLimits,
        done: Callable[[Runner], None],
    ) -> None:
        self.log = log
        self.status: str | None = None
        self._source = source
        self._prepare = prepare
        self._limits = limits
        self._done = done
        self._began = time.monotonic()
        self._asked: float | None = None
        self._heard: float | None = None
        self._stop: StopReason | None = None
        self._pumping = True
        self._used = 0
        self._rest_at = 0.0
        self._asks = False
        self._finish_reason: FinishReason | None = None
        self._told = False
        self._lock = threading.Lock()
        self._task: tasks.Task | None = None

    def start(self) -> None:
        """Ask the chain."""
        with self._lock:  # a thread begins before its starter knows it: a Stop has to wait for that
            self._task = tasks.start_task(self._main, name=f"run {self.log.run}")

    # The run's own task

    def _main(self) -> None:
        try:
            status, code = self._ask()
        except tasks.Interrupted:
            status, code = self._stopped()
        # A Stop that comes only now is too late: the chain has ended already.
        with tasks.shield():
            self._finish(status, code)

    def _ask(self) -> tuple[str, ErrorCode | None]:
        try:
            if self._stop is None:
                input = self._prepare()
                self._asked = self._began = time.monotonic()
                self.log.mark_started(self._asked)
                if self._stop is None:
                    self._pump(input)
        except tasks.Interrupted:
            raise
        except BaseException as error:
            # A chain that wants to exit ends its run, and one that lets a cancellation out
            # (asyncio's, gevent's Timeout) has failed: whatever it raises, the log gets its end.
            if self._stop is not None:
                return self._stopped()
            code = error_code(error)
            self._finish_reason = error_finish_reason(error)
            logger.exception("run %s: failed: %s", self.log.run, code)
            return "failed", code
        finally:
            self._pumping = False
        if self._stop is not None:
            return self._stopped()
        if self._asks:
            self._finish_reason = None  # the answer is not over: a person is asked
            return "interrupted", None
        return "done", None

    def _note(self, type: str, data: str) -> None:
        if type == "usage":
            with self._lock:  # branches of a chain tell theirs from threads of their own
                self._used += json.loads(data)["total_tokens"]
        elif type == "interrupt":
            self._asks = True

    def _pump(self, input: Input) -> None:
        append, clock = self.log.append, time.monotonic
        tasks.scope().tell = self._tell
        slice = FIRST_SLICE
        give_way = clock() + slice
        with closing(self._read(input)) as said:
            for what in said:
                self._heard = now = clock()
                append(what, now)
                if what[0] != "chunk":
                    self._note(*what)
                if self._stop is not None:
                    tasks.scope().notice()
                    return
                if now > give_way:
                    self._rest()
                    slice = min(slice * 2, SLICE)
                    give_way = clock() + slice

    def _read(self, input: Input) -> Generator[NewEvent, None, None]:
        self._finish_reason = yield from self._source.stream(input)

    def _tell(self, what: NewEvent) -> None:
        """Say at once what the chain tells beside what it yields, from whichever of its threads."""
        if not self._pumping:
            return
        self._heard = now = time.monotonic()
        self.log.append(what, now)
        self._note(*what)
        if now > self._rest_at:
            self._rest()
            self._rest_at = time.monotonic() + SLICE

    def _rest(self) -> None:
        yield_control()
        while self.log.full and self._stop is None:
            time.sleep(SLICE)

    def _stopped(self) -> tuple[str, ErrorCode | None]:
        self._pumping = False
        self._finish_reason = None
        why = self._stop or StopReason.LOST
        return why.status, why.code

    def _finish(self, status: str, code: ErrorCode | None) -> None:
        if self.log.close(status, end_data(status, code, self._finish_reason)):
            self.status = status
            took = time.monotonic() - self._began
            logger.info("run %s: %s%s after %.1f s", self.log.run, status, _because(code), took)
        with self._lock:
            told, self._told = self._told, True
        if not told:  # a chain that was given up comes here once more when it has found out
            self._done(self)

    # From outside

    @property
    def tokens(self) -> int | None:
        """What the run has cost, as its models have told; None if none has come to tell."""
        return self._used or (0 if self.status == "done" else None)

    def stop(self, why: StopReason) -> None:
        """End the run, wherever its chain is. A run that has ended, or is ending, ends as it was.

        Returns at once; `wait` tells when the run has ended.
        """
        with self._lock:
            if self._stop is not None or not self._pumping:
                return
            self._stop = why
        if self._task is not None and not self._task.interrupt():
            threading.Thread(target=self._abandon, name="abandon", daemon=True).start()

    def _abandon(self) -> None:
        """End the run without its chain, which is blocked and cannot be interrupted.

        On a plain thread (`flask run`) the chain is left to itself: it finds out at its next
        word, and what it says then is not written.
        """
        assert self._task is not None
        if not self._task.join(NOTICE):
            status, code = self._stopped()
            self._finish(status, code)

    def wait(self, timeout: float) -> bool:
        """Wait until the run's `end` is stored; whether it is."""
        return self.log.settled.wait(timeout)

    def overdue(self, now: float) -> bool:
        """Whether the run has used up one of its limits, on the monotonic clock."""
        limits = self._limits
        if self._heard is None:
            late = now - self._began > limits.first
        else:
            late = now - self._heard > limits.silence
        return (
            self._pumping and self._asked is not None and (late or now - self._began > limits.total)
        )

    def on_write_failure(self, failure: WriteFailure) -> None:
        """Stop the run because its log can no longer be written."""
        self.stop(StopReason.STORE if failure is WriteFailure.UNREACHABLE else StopReason.LOST)
        if failure is WriteFailure.UNREACHABLE and self.log.closed:
            # Its `end` was added already, and could not be stored.
            self.log.show_end(end_data(StopReason.STORE.status, StopReason.STORE.code))


def start_event(run: Run) -> NewEvent:
    """Return a run's first event."""
    data = {
        "run": run.id,
        "chain": run.chain,
        "conversation": run.conversation,
        "parent": run.parent,
        "input": shown(json.loads(run.input)),
    }
    return "start", encode(data)


def end_data(status: str, code: ErrorCode | None, finish_reason: FinishReason | None = None) -> str:
    """The data of an `end` event."""
    error = None
    if code is not None:
        error = {"code": code, "message": code.sentence, "retryable": code.retryable}
    return encode({"status": status, "finish_reason": finish_reason, "error": error})


def _because(code: ErrorCode | None) -> str:
    return f" ({code})" if code else ""
