"""The client: one process with one loop that does nothing but receive while the clock runs.

It records bytes and times only. Afterwards it computes the arrival time of every token, and
checks every text word for word against what the model said.
"""

from __future__ import annotations

import gc
import json
import selectors
import socket
import sys
import time
from bisect import bisect_left
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from .shapes import SHAPES, Shape, tokens_of
from .words import words

#: Seconds without data after which the client gives up.
SILENCE = 60.0


@dataclass(slots=True)
class Job:
    """Keep `streams` open at once until `total` are read or `cap` seconds have passed.

    `requests` are sent in turn. Each follows the `opening`, a list of pairs: what to send, and
    what to wait for. Each answer has `tokens` tokens in the format `shape`. It ends with the
    text `over`, or with the connection if `over` is empty.
    """

    port: int
    requests: list[str]
    shape: str
    tokens: int
    streams: int
    total: int
    cap: float
    opening: list[tuple[str, str]] = field(default_factory=list)
    over: str = ""


@dataclass(slots=True)
class Seen:
    """The result of a job. Times are in seconds; `gap_p99` leaves out each stream's first token."""

    tokens: int
    seconds: float
    whole: int
    cut: int
    first_p50: float
    first_p99: float
    gap_p99: float
    error: str = ""


class _Stream:
    __slots__ = ("began", "data", "done", "marks", "says", "sock", "times")

    def __init__(self, port: int, says: list[tuple[bytes, bytes]]) -> None:
        self.says = says[::-1]
        self.data = bytearray()
        self.times: list[float] = []
        self.marks: list[int] = []
        self.done = False
        self.began = time.perf_counter()
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.connect_ex(("127.0.0.1", port))


def receive(job: Job) -> tuple[list[_Stream], float]:
    """Read the streams. Return all that were opened, and when the first was opened."""
    selector = selectors.DefaultSelector()
    opening = [(say.encode("latin-1"), wait.encode()) for say, wait in job.opening]
    requests = [request.encode("latin-1") for request in job.requests]
    over = job.over.encode()
    opened: list[_Stream] = []
    clock = time.perf_counter
    began = heard = clock()
    live = 0

    def start() -> None:
        stream = _Stream(job.port, [*opening, (requests[len(opened) % len(requests)], b"")])
        opened.append(stream)
        selector.register(stream.sock, selectors.EVENT_WRITE, stream)

    for _ in range(min(job.streams, job.total)):
        start()
        live += 1
    while live and clock() - began < job.cap and clock() - heard < SILENCE:
        for key, events in selector.select(0.1):
            stream: _Stream = key.data
            if events & selectors.EVENT_WRITE:
                stream.sock.send(stream.says[-1][0])
                selector.modify(stream.sock, selectors.EVENT_READ, stream)
                continue
            data = stream.sock.recv(262_144)
            heard = clock()
            if data:
                stream.data += data
                stream.times.append(heard)
                stream.marks.append(len(stream.data))
                wait = stream.says[-1][1]
                if wait:
                    if wait in stream.data:
                        stream.says.pop()
                        selector.modify(stream.sock, selectors.EVENT_WRITE, stream)
                    continue
                # The text may be split over two reads.
                if not over or over not in stream.data[-len(data) - len(over) :]:
                    continue
            stream.done = True
            selector.unregister(stream.sock)
            stream.sock.close()
            if len(opened) < job.total:
                start()
            else:
                live -= 1
    for stream in opened:
        stream.sock.close()
    selector.close()
    return opened, began


def judge(job: Job, opened: list[_Stream], began: float) -> Seen:
    """Return the result of a job. It is an error if a text differs from the model's."""
    said, shape = words(job.tokens), SHAPES[job.shape]
    firsts: list[float] = []
    gaps: list[float] = []
    tokens = whole = cut = 0
    last = began
    for stream in opened:
        if not stream.done and not stream.data:
            cut += 1
            continue
        try:
            times = _arrivals(stream, said, shape)
        except (ValueError, KeyError, TypeError, OSError) as error:
            return Seen(0, 0, 0, 0, 0, 0, 0, error=f"{type(error).__name__}: {error}")
        if stream.done:
            whole += 1
        else:
            cut += 1
        if times:
            tokens += len(times)
            firsts.append(times[0] - stream.began)
            gaps += [after - before for before, after in pairwise(times)]
            last = max(last, times[-1])
    if not tokens:
        return Seen(0, 0, 0, 0, 0, 0, 0, error="no token came")
    return Seen(
        tokens, last - began, whole, cut, part(firsts, 0.5), part(firsts, 0.99), part(gaps, 0.99)
    )


def _arrivals(stream: _Stream, said: list[str], shape: Shape) -> list[float]:
    found = tokens_of(bytes(stream.data), shape)
    text = [token for token, _ in found]
    if text != said[: len(text)]:
        raise ValueError(f"the text is not the model's: {''.join(text)[:80]!r}")
    if stream.done and len(text) != len(said):
        raise ValueError(f"the stream ended after {len(text)} of {len(said)} tokens")
    return [stream.times[bisect_left(stream.marks, at)] for _, at in found]


def part(values: list[float], share: float) -> float:
    """Return the value below which that share of the values lies; 0 for no values."""
    values = sorted(values)
    return values[min(int(len(values) * share), len(values) - 1)] if values else 0.0


def main() -> None:
    """Do the jobs on stdin, one JSON object per line, and write two lines for each."""
    for line in sys.stdin:
        job = Job(**json.loads(line))
        gc.collect()
        gc.disable()
        opened, began = receive(job)
        gc.enable()
        # Written at once, so that the server's CPU time ends here.
        print("received", flush=True)
        answer: dict[str, Any] = asdict(judge(job, opened, began))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
