"""One round of one contestant: start, warm up, measure at every number of streams, stop."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory

from tests.valkey import Valkey

from .client import Job, Seen
from .field import Contestant
from .processes import Client, Process, cores, cpu, forget_peak, free_port, memory, settle

#: The project's own gunicorn settings would start the embedded model, which is not used here.
OWN = {
    "FLASK_SECRET_KEY": "a key for benchmarks",
    "FLASK_STREAM_MODEL": "openai:bench",
    "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
    # All clients share one address, so there must be no limits.
    "FLASK_STREAM_START_LIMIT": "",
    "FLASK_STREAM_ADDRESS_LIMIT": "",
    "FLASK_STREAM_MAX_RUNS_PER_ADDRESS": "0",
    "FLASK_STREAM_MAX_STREAMS_PER_ADDRESS": "0",
}
#: Streams that are read one after another when only one is open at once.
ALONE = 10


@dataclass(slots=True)
class Result:
    """One contestant's result at one number of streams. CPU in seconds, memory in bytes."""

    seen: Seen
    cpu: float = 0.0
    store_cpu: float = 0.0
    memory: int = 0

    @property
    def rate(self) -> float:
        return self.seen.tokens / self.seen.seconds if self.seen.seconds else 0.0


@dataclass(slots=True)
class Terms:
    """The terms that all contestants share. Without a `provider` URL the model is the fake one."""

    tokens: int
    streams: list[int]
    cap: float
    chain: str = "prompt"
    provider: str = ""


@dataclass(slots=True)
class Server:
    """A contestant that is running."""

    process: Process
    port: int
    store: Valkey | None


@contextmanager
def serving(contestant: Contestant, env: dict[str, str]) -> Iterator[Server]:
    """Run a contestant on the server's core and its Valkey on the other. Raises RuntimeError."""
    server_core, other = cores()
    with ExitStack() as stack:
        store = None
        folder = stack.enter_context(TemporaryDirectory())
        file = f"sqlite:///{folder}/runs.db"
        url = {"memory": "memory://", "sqlite": file}.get(contestant.store, "")
        if contestant.store == "valkey":
            store = stack.enter_context(Valkey())
            os.sched_setaffinity(store.pid, other)
            url = store.url
        port = free_port()
        given = {**env, **OWN, "BENCH_STORE": url, "PYTHONPATH": str(contestant.root)}
        process = stack.enter_context(Process(contestant.command(port), server_core, given))
        process.listening(port)
        yield Server(process, port, store)


def run(contestant: Contestant, terms: Terms, client: Client) -> dict[int, Result]:
    """Return a result for every number of streams. Raises RuntimeError if it cannot run."""
    env = {
        "BENCH_TOKENS": str(terms.tokens),
        "BENCH_CHAIN": terms.chain,
        "BENCH_PROVIDER": terms.provider,
    }
    if contestant.server == "none":
        return dict.fromkeys(terms.streams, _bare(terms, env))
    results = {}
    with serving(contestant, env) as server:
        job = Job(
            port=server.port,
            requests=[contestant.request(terms.chain)],
            shape=contestant.shape,
            tokens=terms.tokens,
            streams=2,
            total=4,
            cap=30,
            opening=list(contestant.opening),
            over=contestant.over,
        )
        # This pays for imports on first use, connections to the provider and the caches.
        warm = client.do(job)
        if warm.error:
            raise RuntimeError(f"{warm.error} ({server.process.why})")
        for streams in terms.streams:
            job.streams, job.cap = streams, terms.cap
            job.total = ALONE if streams == 1 else streams
            # Runs go on after the client has closed its connection, unless that stops them.
            settle(server.process.pid)
            results[streams] = _measure(server, job, client)
    return results


def _measure(server: Server, job: Job, client: Client) -> Result:
    pid, store = server.process.pid, server.store
    forget_peak(pid)

    def used() -> tuple[float, float]:
        return cpu(pid), cpu(store.pid) if store else 0.0

    before, after = used(), (0.0, 0.0)

    def received() -> None:
        nonlocal after
        after = used()

    seen = client.do(job, received)
    return Result(seen, after[0] - before[0], after[1] - before[1], memory(pid, "VmHWM"))


def _bare(terms: Terms, env: dict[str, str]) -> Result:
    command = [sys.executable, "-m", "benchmarks.contestants.bare"]
    arguments = [str(max(terms.streams)), str(terms.tokens), str(terms.cap)]
    with Process(command + arguments, cores()[0], env) as process:
        told = json.loads(process.output(terms.cap + 60))
    used, peak = told.pop("cpu"), told.pop("memory")
    return Result(Seen(**told), used, memory=peak)
