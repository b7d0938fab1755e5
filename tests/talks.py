"""Helpers for tests with `tests.talk`: services that share a store, questions and answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flask_stream.engine.runs import Runs
from flask_stream.events import Cursor, Event
from flask_stream.stores.base import Run

from .people import NOBODY, Sent, Site, cookie
from .provider import JSON, Call, Provider, Script
from .server import Server, environment, gunicorn
from .sse import Response, ServerSentEvent, request
from .valkey import Valkey

#: The stores of the tests that need more than one worker.
STORES = ["sqlite", "redis"]

#: Seconds for which the chain `brief` keeps its answers.
BRIEF = 2.0


class Pair(NamedTuple):
    """Two services of one worker each that share a store; with `memory`, the same one twice."""

    one: Site
    two: Site
    provider: Provider

    def turn(self, n: int) -> Site:
        """Return the services alternately."""
        return (self.one, self.two)[n % 2]


@contextmanager
def serving(
    kind: str, folder: Path, provider: Provider, two: str = "", **settings: object
) -> Iterator[Pair]:
    """Run the services. `two` is the cache version of the second service's chain `cached`."""
    with Valkey() if kind == "redis" else nullcontext() as valkey:
        stores = {"memory": "memory://", "sqlite": f"sqlite:///{folder}/runs.db"}
        given: dict[str, object] = {
            "store": valkey.url if valkey else stores[kind],
            "page": "true",
            "lease": 3,
            "TALK_BRIEF": BRIEF,
            "OPENAI_BASE_URL": provider.url,
        }
        command = gunicorn(app="tests.talk:app")
        env, other = (environment(**given | settings, TALK_VERSION=name) for name in ("", two))
        with Server(command, env) as first:
            one = Site(first)
            if kind == "memory":
                yield Pair(one, one, provider)
                return
            with Server(command, other) as second:
                yield Pair(one, Site(second), provider)


def person(site: Site) -> Sent:
    """Return the headers of a browser that has visited the page: its session cookie."""
    return cookie(request("GET", f"{site.url}/"))


def at_once(*calls: Callable[[], Response]) -> list[Response]:
    """Call all at the same time; return their responses."""
    barrier = threading.Barrier(len(calls))

    def called(call: Callable[[], Response]) -> Response:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(called, calls))


# The model


def about(asked: JSON) -> Script:
    """Return a script that answers with the question."""
    return Script(["about ", asked["messages"][-1]["content"]])


def told(call: Call) -> list[str]:
    """Return the messages of a call, as `human: …` and `ai: …`."""
    names = {"user": "human", "assistant": "ai"}
    return [f"{names[message['role']]}: {message['content']}" for message in call.json["messages"]]


# Answers


@dataclass(frozen=True)
class Answer:
    """A run that was read to its end."""

    run: str
    events: list[ServerSentEvent]

    @property
    def shown(self) -> list[ServerSentEvent]:
        """Return the events that a client shows: those after the last `reset`."""
        resets = [place for place, event in enumerate(self.events) if event.type == "reset"]
        return self.events[resets[-1] + 1 :] if resets else self.events

    @property
    def text(self) -> str:
        chunks = [json.loads(event.data) for event in self.shown if event.type == "message"]
        return "".join(data["content"] for data in chunks)

    @property
    def types(self) -> list[str]:
        """Return the types of the events, with consecutive equal types merged."""
        types = ["chunk" if "content" in e.data else e.type for e in self.events]
        return [type for place, type in enumerate(types) if types[place - 1 : place] != [type]]

    @property
    def end(self) -> dict[str, Any]:
        """Return the data of `end`; check that the log is complete, in order, and ends with it."""
        places = [event.id.rpartition(":") for event in self.events]
        assert [int(seq) for _, _, seq in places] == list(range(1, len(places) + 1))
        assert {run for run, _, _ in places} == {self.run}
        assert [event.type for event in self.events].count("end") == 1
        end: dict[str, Any] = json.loads(self.events[-1].data)
        return end

    @property
    def status(self) -> str:
        status: str = self.end["status"]
        return status

    @property
    def start(self) -> dict[str, Any]:
        start: dict[str, Any] = json.loads(self.events[0].data)
        assert self.events[0].type == "start"
        return start

    @property
    def cached(self) -> bool:
        """Return whether the answer says that it came from the cache."""
        values = [json.loads(event.data) for event in self.shown if event.type == "custom"]
        assert values in ([], [{"name": "cached", "value": True}])
        return bool(values)


def read(site: Site, run: str, who: Sent = NOBODY) -> Answer:
    """Read a run to its end."""
    with site.follow(run, who) as stream:
        assert stream.status == 200, stream.read()
        return Answer(run, list(stream.events(20)))


def ask(site: Site, question: str, who: Sent = NOBODY, **fields: Any) -> Answer:
    """Ask a question, and read the answer to its end."""
    return read(site, site.start(question, who, **fields), who)


# Conversations


def described(site: Site, run: str, who: Sent = NOBODY) -> dict[str, Any]:
    """Return the description of a run, from `GET /runs/<run>`."""
    answer = site.status(run, who)
    assert answer.status == 200, answer.body
    description: dict[str, Any] = answer.json()
    return description


def conversation_of(site: Site, run: str, who: Sent = NOBODY) -> str:
    id: str = described(site, run, who)["conversation"]
    return id


def stop(site: Site, run: str, who: Sent = NOBODY) -> Response:
    """Cancel a run."""
    return request("POST", f"{site.url}/runs/{run}/cancel", headers=who)


def conversation(site: Site, method: str, id: str, who: Sent, json: Any = None) -> Response:
    """Send `GET`, `PATCH` or `DELETE` for a conversation."""
    return request(method, f"{site.url}/conversations/{id}", json=json, headers=who)


def tree(site: Site, id: str, who: Sent) -> list[tuple[str, str | None, str]]:
    """Return a conversation's runs, as (question, the parent's question, status)."""
    answer = conversation(site, "GET", id, who)
    assert answer.status == 200, answer.body
    runs = answer.json()["runs"]
    questions = {run["run"]: run["input"]["question"] for run in runs}
    questions[None] = None
    return [(questions[r["run"]], questions[r["parent"]], r["status"]) for r in runs]


def begun(site: Site, question: str, who: Sent = NOBODY, **fields: Any) -> str:
    """Start a run that says `half of ` and then stalls until the provider is released."""
    run = site.start(question, who, **fields)
    half(site, run, who)
    return run


def half(site: Site, run: str, who: Sent = NOBODY) -> None:
    """Read a run until its text contains `half of `."""
    with site.follow(run, who) as stream:
        while (event := stream.next_event(20)) is not None and "half of " not in event.data:
            pass
    assert event is not None, site.server.log


#: The script of the model for `begun`.
HALF = Script(["half of ", "an answer"], stall=1)


# In one process


def finish(runs: Runs, run: Run) -> tuple[str, list[Event]]:
    """Read a run to its end; return its status and its events."""
    reader = runs.read(Cursor(run.id, 0), run.principal)
    assert reader is not None
    events: list[Event] = []
    until = time.monotonic() + 20
    try:
        while not events or events[-1].type != "end":
            assert time.monotonic() < until, events
            shared = reader.take()
            if shared is None:
                reader.wait(1)
            else:
                events += shared.events
    finally:
        reader.close()
    status: str = events[-1].value()["status"]
    return status, events
