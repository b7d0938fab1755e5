"""How long tests wait for what must come: a deadline, never a measurement."""

from __future__ import annotations

import os

#: By how much longer a slow or busy machine is waited for.
FACTOR = float(os.environ.get("STREAM_TESTS_TIME_FACTOR", "1"))
#: Seconds.
PATIENCE = 40 * FACTOR
