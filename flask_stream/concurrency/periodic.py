"""Work that is repeated as long as the process lives."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Periodic:
    """Calls `target` every `seconds` seconds until it is stopped, whatever `target` raises."""

    def __init__(self, seconds: float, target: Callable[[], None], name: str) -> None:
        self._seconds = seconds
        self._target = target
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while not self._stopped.wait(self._seconds):
            try:
                self._target()
            except Exception:  # one failed call must not end all later ones
                logger.exception(
                    "%s: failed; trying again in %g s", self._thread.name, self._seconds
                )

    def stop(self) -> None:
        """Stop calling `target`. A call that is under way is waited for."""
        self._stopped.set()
        self._thread.join()
