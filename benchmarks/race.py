"""The race: all contestants in turn, in several rounds, so that a slow minute affects all."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .client import Job
from .contest import Terms, run
from .field import Contestant, request
from .processes import Client, Process, cores, free_port
from .report import Results


@contextmanager
def provider(tokens: int, on: set[int]) -> Iterator[int]:
    """Run a scripted provider. Yields its port."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.provider", str(port), str(tokens)]
    with Process(command, on) as process:
        process.listening(port)
        yield port


def ceilings(tokens: int, streams: int) -> dict[str, float]:
    """Return the tokens/s that the client reads directly from the provider.

    `whole` is the answer as the contestants get it. `each` is the client's worst case: one write
    per token.
    """
    server_core, other = cores()
    found = {}
    with provider(tokens, server_core) as port, Client(other) as client:
        for name, path in (("whole", "/v1/chat/completions"), ("each", "/each")):
            asked = [request(path, "{}")]
            seen = client.do(Job(port, asked, "openai", tokens, streams, streams * 2, cap=10))
            if seen.error:
                raise RuntimeError(seen.error)
            found[name] = seen.tokens / seen.seconds
    return found


def race(field: Sequence[Contestant], model: str, rounds: int, terms: Terms) -> dict[int, Results]:
    """Return results by number of streams, or the reason why a contestant cannot run."""
    results: dict[int, Results] = {streams: {} for streams in terms.streams}
    with provider(terms.tokens, cores()[1]) as port, Client(cores()[1]) as client:
        terms.provider = f"http://127.0.0.1:{port}/v1" if model == "openai" else ""
        for number in range(rounds):
            for contestant in field:
                _note(f"{model}, round {number + 1} of {rounds}: {contestant.name}")
                _once(contestant, terms, client, results)
    _note("")
    return results


def _once(
    contestant: Contestant, terms: Terms, client: Client, results: dict[int, Results]
) -> None:
    if contestant.missing:
        said = f"not available: {contestant.missing} not installed"
    else:
        try:
            for streams, result in run(contestant, terms, client).items():
                got = results[streams].setdefault(contestant.name, [])
                if result.seen.error:
                    results[streams][contestant.name] = f"error: {result.seen.error}"
                elif isinstance(got, list):
                    got.append(result)
            return
        except RuntimeError as error:
            said = f"does not run: {error}"
    for of in results.values():
        of[contestant.name] = said


def _note(text: str) -> None:
    """Show progress on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
