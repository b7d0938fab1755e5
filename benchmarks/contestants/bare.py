"""LangChain alone: `chain.stream` in a loop without a server. It is the upper limit."""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import pairwise

from ..client import part
from ..model import asked, chain, text
from ..processes import forget_peak, memory
from ..words import words


def main(streams: int, tokens: int, cap: float) -> None:
    """Read streams for at most `cap` seconds. Print the time it took as JSON."""
    said = words(tokens)
    for _ in chain.stream(asked):  # imports, and the connection to the provider
        pass
    forget_peak(os.getpid())
    began, used = time.perf_counter(), time.process_time()
    firsts: list[float] = []
    gaps: list[float] = []
    count = whole = 0
    while whole < streams and time.perf_counter() - began < cap:
        times = [time.perf_counter()]
        heard = []
        for piece in chain.stream(asked):
            if token := text(piece):
                heard.append(token)
                times.append(time.perf_counter())
        assert heard == said, "the text is not the model's"
        firsts.append(times[1] - times[0])
        gaps += [after - before for before, after in pairwise(times[1:])]
        count += len(heard)
        whole += 1
    took, used = time.perf_counter() - began, time.process_time() - used
    print(
        json.dumps(
            {
                "tokens": count,
                "seconds": took,
                "whole": whole,
                "cut": 0,
                "first_p50": part(firsts, 0.5),
                "first_p99": part(firsts, 0.99),
                "gap_p99": part(gaps, 0.99),
                "cpu": used,
                "memory": memory(os.getpid(), "VmHWM"),
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
