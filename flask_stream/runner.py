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
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from enum import Enum

from . import pace, tasks
from .errors import Code
from .events import Said, encode
from .faults import code_of
from .log import Log, Trouble
from .sources.base import Input, Source

logger = logging.getLogger(__name__)

#: Seconds that whoever stops a run waits for it to have ended.
STOP_WAIT = 10.0
#: A chain that never blocks would never let another run: it gives way after so many seconds,
#: sooner at its beginning, so that the first words of many runs do not wait for each other.
FIRST_SLICE, SLICE = 0.0005, 0.005
#: How long a chain that cannot be interrupted (on a plain thread) may take to notice a Stop.
NOTICE = 1.0


class Stop(Enum):
    """Why a run is stopped: the status and code of its `end`."""

    CANCELLED = "cancelled", None
    TIMEOUT = "failed", Code.TIMEOUT
    STORE = "failed", Code.STORE_ERROR
    LOST = "failed", Code.WORKER_LOST  # this worker goes, or another has taken the run over

    def __init__(self, status: str, code: Code | None) -> None:
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class Limits:
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
        log: Log,
        source: Source,
        prepare: Callable[[], Input],
        limits: Limits,
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
        self._stop: Stop | None = None
        self._pumping = True
        self._used = 0
        self._rest_at = 0.0
        self._asks = False
        self._told = False
        self._lock = threading.Lock()
        self._task: tasks.Task | None = None

    def start(self) -> None:
        """Ask the chain."""
        with self._lock:  # a thread begins before its starter knows it: a Stop has to wait for that
            self._task = tasks.start(self._main, name=f"run {self.log.run}")

    # The run's own task

    def _main(self) -> None:
        try:
            status, code = self._ask()
        except tasks.Interrupted:
            status, code = self._stopped()
        # A Stop that comes only now is too late: the chain has ended already.
        with tasks.shield():
            self._finish(status, code)

    def _ask(self) -> tuple[str, Code | None]:
        try:
            if self._stop is None:
                input = self._prepare()
                self._asked = self._began = time.monotonic()
                if self._stop is None:
                    self._pump(input)
        except tasks.Interrupted:
            raise
        except BaseException as error:
            # A chain that wants to exit ends its run, and one that lets a cancellation out
            # (asyncio's, gevent's Timeout) has failed: whatever it raises, the log gets its end.
            if self._stop is not None:
                return self._stopped()
            code = code_of(error)
            logger.exception("run %s: failed: %s", self.log.run, code)
            return "failed", code
        finally:
            self._pumping = False
        if self._stop is not None:
            return self._stopped()
        return "interrupted" if self._asks else "done", None

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
        with closing(self._source.stream(input)) as said:
            for what in said:
                append(what)
                if what[0] != "chunk":
                    self._note(*what)
                self._heard = now = clock()
                if self._stop is not None:
                    tasks.scope().notice()
                    return
                if now > give_way:
                    self._rest()
                    slice = min(slice * 2, SLICE)
                    give_way = clock() + slice

    def _tell(self, what: Said) -> None:
        """Say at once what the chain tells beside what it yields, from whichever of its threads."""
        if not self._pumping:
            return
        self.log.append(what)
        self._note(*what)
        self._heard = now = time.monotonic()
        if now > self._rest_at:
            self._rest()
            self._rest_at = time.monotonic() + SLICE

    def _rest(self) -> None:
        pace.give_way()
        while self.log.full and self._stop is None:
            time.sleep(SLICE)

    def _stopped(self) -> tuple[str, Code | None]:
        self._pumping = False
        why = self._stop or Stop.LOST
        return why.status, why.code

    def _finish(self, status: str, code: Code | None) -> None:
        if self.log.close(status, ending(status, code)):
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

    def stop(self, why: Stop) -> None:
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

    def trouble(self, what: Trouble) -> None:
        """The log cannot be written."""
        self.stop(Stop.STORE if what is Trouble.UNREACHABLE else Stop.LOST)
        if what is Trouble.UNREACHABLE and self.log.closed:
            # It had said its last word already, and that is what could not be stored.
            self.log.tell(ending(Stop.STORE.status, Stop.STORE.code))


def ending(status: str, code: Code | None) -> str:
    """The data of an `end` event."""
    error = None
    if code is not None:
        error = {"code": code, "message": code.sentence, "retryable": code.retryable}
    return encode({"status": status, "error": error})


def _because(code: Code | None) -> str:
    return f" ({code})" if code else ""
