"""What is done again and again as long as the process lives, and letting others have their turn."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Periodic:
    """Calls `target` every so many seconds until it is stopped, whatever it raises."""

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
            except Exception:  # a fault in one look must not be the last of all looks
                logger.exception("%s: failed, and goes on", self._thread.name)

    def stop(self) -> None:
        """Call `target` no more; a call under way is waited for."""
        self._stopped.set()
        self._thread.join()
