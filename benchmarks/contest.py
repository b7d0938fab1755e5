"""One contestant, once: started, warmed up, measured at every number of streams, ended."""

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

#: Our gunicorn settings would start the embedded model, which nobody asks here.
OWN = {
    "FLASK_SECRET_KEY": "a key for benchmarks",
    "FLASK_STREAM_MODEL": "openai:bench",
    "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
    # Everybody here has one address, and nobody has a limit.
    "FLASK_STREAM_START_LIMIT": "",
    "FLASK_STREAM_ADDRESS_LIMIT": "",
    "FLASK_STREAM_MAX_RUNS_PER_ADDRESS": "0",
    "FLASK_STREAM_MAX_STREAMS_PER_ADDRESS": "0",
}
#: Streams read one after another where only one is open at once.
ALONE = 10


@dataclass(slots=True)
class Result:
    """What one contestant did with so many streams open. CPU in seconds, memory in bytes."""

    seen: Seen
    cpu: float = 0.0
    store_cpu: float = 0.0
    memory: int = 0

    @property
    def rate(self) -> float:
        return self.seen.tokens / self.seen.seconds if self.seen.seconds else 0.0


@dataclass(slots=True)
class Terms:
    """What is the same for all. `provider` is a URL; without one the model is the fake one."""

    tokens: int
    streams: list[int]
    cap: float
    chain: str = "prompt"
    provider: str = ""


@dataclass(slots=True)
class Server:
    """A contestant that answers."""

    process: Process
    port: int
    store: Valkey | None


@contextmanager
def serving(contestant: Contestant, env: dict[str, str]) -> Iterator[Server]:
    """Run a contestant on the server's core, its Valkey on the other. RuntimeError if it fails."""
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
    """A result for every number of streams. Raises RuntimeError when it cannot run."""
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
        # Imports on first use, connections to the provider, the interpreter's caches.
        warm = client.do(job)
        if warm.error:
            raise RuntimeError(f"{warm.error} ({server.process.why})")
        for streams in terms.streams:
            job.streams, job.cap = streams, terms.cap
            job.total = ALONE if streams == 1 else streams
            # Runs that were cut go on where a lost connection is no Stop.
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
