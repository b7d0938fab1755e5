"""What a chain tells beside what it yields is there when it is told, in order, and once."""

from __future__ import annotations

import json
import operator
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Annotated, Any, TypedDict

import pytest
from flask import Flask
from langchain_core.callbacks import dispatch_custom_event
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableGenerator, RunnableLambda, RunnableParallel
from langchain_openai import ChatOpenAI
from langgraph.config import get_stream_writer
from langgraph.graph import START, StateGraph

from flask_stream import FlaskStream
from flask_stream.engine.chain import Chain
from flask_stream.engine.log_reader import LogReader
from flask_stream.engine.maintenance import RunTimes
from flask_stream.engine.runner import RunLimits
from flask_stream.engine.runs import Runs
from flask_stream.engine.start_request import StartRequest
from flask_stream.events import Cursor, Event
from flask_stream.sources.base import Input, Source
from flask_stream.sources.langchain import LangChainSource
from flask_stream.sources.langgraph import LangGraphSource
from flask_stream.stores.memory import MemoryStore

from .provider import Provider, Script
from .server import Server, environment, gunicorn
from .sse import Stream

GENEROUS = RunLimits(first=30, silence=30, total=30)
Told = tuple[str, Any]
ASKED = Input({"question": "Why?"})


class State(TypedDict):
    """What is asked, and what the nodes made of it."""

    question: str
    answers: Annotated[list[str], operator.add]


def graph(*functions: Callable[[str], str]) -> Any:
    """These functions of the question as nodes that stand side by side."""
    made = StateGraph(State)
    for place, function in enumerate(functions):
        name = f"{function.__name__}{place}"
        made.add_node(name, lambda state, do=function: {"answers": [do(state["question"])]})
        made.add_edge(START, name)
    return made.compile()


def as_chain(function: Callable[[str], str]) -> Source:
    return LangChainSource(RunnableLambda(function))


def as_graph(function: Callable[[str], str]) -> Source:
    return LangGraphSource(graph(function))


def as_called_graph(function: Callable[[str], str]) -> Source:
    """In a graph that a node calls within a function."""
    inner = graph(function)

    def call(question: str) -> str:
        return str(inner.invoke({"question": question, "answers": []})["answers"][0])

    return LangGraphSource(graph(call))


def as_graph_in_a_chain(function: Callable[[str], str]) -> Source:
    def asked(question: str) -> State:
        return {"question": question, "answers": []}

    return LangChainSource(RunnableLambda(asked) | graph(function))


everywhere = pytest.mark.parametrize(
    "source_of", [as_chain, as_graph, as_called_graph, as_graph_in_a_chain]
)


class Asking:
    """One run, and what is read of it."""

    def __init__(self, source: Source, limits: RunLimits = GENEROUS) -> None:
        self.runs = Runs(
            MemoryStore(), {"chain": Chain("chain", source)}, RunTimes(limits, 30, 3600)
        )
        self.run = self.runs.admission.start(StartRequest("chain", {"question": "Why?"}))[0].id
        reader = self.runs.read(Cursor(self.run, 0))
        assert reader is not None
        self._reader: LogReader = reader
        self.events: list[Event] = []

    def until(self, type: str, count: int = 1, timeout: float = 20) -> list[Told]:
        """What has been said when so many events of this type have been."""
        end = time.monotonic() + timeout
        while sum(event.type == type for event in self.events) < count:
            assert time.monotonic() < end, f"no {count} of {type} in {self.events}"
            shared = self._reader.take()
            if shared is None:
                self._reader.wait(0.1)
            else:
                self.events += shared.events
        return [(event.type, event.value()) for event in self.events]

    def close(self) -> None:
        self._reader.close()
        self.runs.close()


@pytest.fixture
def ask() -> Iterator[Callable[..., Asking]]:
    made: list[Asking] = []

    def ask(source: Source, limits: RunLimits = GENEROUS) -> Asking:
        made.append(Asking(source, limits))
        return made[-1]

    yield ask
    for one in made:
        one.close()


@pytest.fixture
def gate() -> Iterator[threading.Semaphore]:
    """What a chain waits for; opened at the end so that no thread is left waiting."""
    gate = threading.Semaphore(0)
    yield gate
    gate.release(1000)


@pytest.fixture
def model(provider: Provider) -> ChatOpenAI:
    provider.script = Script([f"{number} " for number in range(40)])
    return ChatOpenAI(
        model="scripted", base_url=provider.url, api_key=lambda: "test", stream_usage=True
    )


@everywhere
def test_what_is_told_is_there_before_the_next_is(
    ask: Callable[..., Asking],
    gate: threading.Semaphore,
    source_of: Callable[[Callable[[str], str]], Source],
) -> None:
    def work(_: str) -> str:
        for number in range(3):
            dispatch_custom_event("progress", {"done": number})
            gate.acquire()
        return "finished"

    run = ask(source_of(work))
    for count in range(1, 4):
        told = [data["value"] for type, data in run.until("custom", count) if type == "custom"]
        assert told == [{"done": number} for number in range(count)]
        gate.release()
    types = [type for type, _ in run.until("end") if type not in ("step", "message_start", "chunk")]
    assert types[1:4] == ["custom"] * 3
    assert types.count("custom") == 3 + (source_of is as_graph_in_a_chain)  # and its output


@everywhere
def test_what_a_call_has_cost_is_told_when_it_is_over(
    ask: Callable[..., Asking],
    gate: threading.Semaphore,
    model: ChatOpenAI,
    source_of: Callable[[Callable[[str], str]], Source],
) -> None:
    def work(question: str) -> str:
        said = model.invoke(question).text
        gate.acquire()
        return said

    run = ask(source_of(work))
    assert run.until("usage")[-1][1]["model"] == "scripted"
    gate.release()
    events = run.until("end")
    assert events[-1][1]["status"] == "done"
    assert [type for type, _ in events].count("usage") == 1


@everywhere
def test_to_tell_something_is_a_sign_of_life(
    ask: Callable[..., Asking], source_of: Callable[[Callable[[str], str]], Source]
) -> None:
    def work(_: str) -> str:
        for number in range(8):
            dispatch_custom_event("progress", {"done": number})
            time.sleep(0.25)
        return "finished"

    events = ask(source_of(work), RunLimits(first=1.2, silence=1.2, total=30)).until("end")
    assert events[-1][1] == {"status": "done", "finish_reason": None, "error": None}


def test_a_nodes_words_and_what_it_tells_of_them_come_in_their_order(
    ask: Callable[..., Asking], model: ChatOpenAI
) -> None:
    def work(question: str) -> str:
        for piece in model.stream(question):
            if piece.text:
                dispatch_custom_event("said", piece.text)
        dispatch_custom_event("over", None)
        return ""

    events = ask(LangGraphSource(graph(work))).until("end")
    said = [data.get("content") or data.get("value") for type, data in events[2:-2]]
    pieces = [f"{number} " for number in range(40)]
    spoken = [piece for piece in said if piece in pieces]
    assert spoken == [piece for piece in pieces for _ in range(2)]
    types = [type for type, _ in events if type not in ("chunk", "custom")]
    assert types == ["start", "step", "message_start", "usage", "step", "end"]
    # Only when the model was through: after its last word, and before what came then.
    last = [(type, data.get("name")) for type, data in events[-5:]]
    assert [type for type, _ in last] == ["custom", "usage", "custom", "step", "end"]
    assert last[2][1] == "over"


@pytest.mark.parametrize("subgraphs", [True, False])
def test_a_node_that_streams_a_graph_hears_only_its_words(
    ask: Callable[..., Asking], model: ChatOpenAI, subgraphs: bool
) -> None:
    def work(question: str) -> str:
        get_stream_writer()({"name": "written", "value": 1})
        dispatch_custom_event("told", 2)
        return model.invoke(question).text

    inner, heard = graph(work), []

    def call(question: str) -> str:
        asked: State = {"question": question, "answers": []}
        for piece in inner.stream(asked, stream_mode=["custom", "updates"], subgraphs=subgraphs):
            heard.append(piece[-1])
        return "finished"

    events = ask(LangGraphSource(graph(call))).until("end")
    assert [next(iter(piece)) for piece in heard] == ["name", "work0"]
    assert [data["value"] for _, data in events if data.get("name") == "told"] == [2]
    assert [type for type, _ in events].count("usage") == 1


def test_a_chains_words_and_what_it_tells_of_them_come_in_their_order(
    ask: Callable[..., Asking], model: ChatOpenAI
) -> None:
    def heard(pieces: Iterator[str]) -> Iterator[str]:
        for piece in pieces:
            if piece:
                dispatch_custom_event("before", piece)
                yield piece

    events = ask(LangChainSource(model | StrOutputParser() | RunnableGenerator(heard)))
    said = [
        data.get("content") or data.get("value")
        for type, data in events.until("end")
        if type in ("chunk", "custom")
    ]
    assert said == [f"{number} " for number in range(40) for _ in range(2)]


def test_branches_tell_from_threads_of_their_own_and_nothing_is_lost_or_doubled(
    ask: Callable[..., Asking], model: ChatOpenAI
) -> None:
    together = threading.Barrier(4)

    def branch(name: str) -> Callable[[str], str]:
        def work(question: str) -> str:
            together.wait(10)
            for number in range(100):
                dispatch_custom_event(name, number)
            model.invoke(question)
            return ""

        return work

    names = [f"branch {number}" for number in range(4)]
    functions = {name: RunnableLambda(branch(name)) for name in names}
    sources = [
        LangChainSource(RunnableParallel(functions)),
        LangGraphSource(graph(*(branch(name) for name in names))),
    ]
    for source in sources:
        run = ask(source)
        events = run.until("end")
        for name in names:
            told = [data["value"] for _, data in events if data.get("name") == name]
            assert told == list(range(100))
        costs = [data["total_tokens"] for type, data in events if type == "usage"]
        assert len(costs) == 4
        assert [event.seq for event in run.events] == list(range(1, len(events) + 1))


@pytest.mark.parametrize("source_of", [as_chain, as_graph])
def test_what_was_told_before_a_failure_is_said(
    ask: Callable[..., Asking],
    model: ChatOpenAI,
    source_of: Callable[[Callable[[str], str]], Source],
) -> None:
    def work(question: str) -> str:
        model.invoke(question)
        dispatch_custom_event("last", "words")
        raise KeyError(question)

    events = ask(source_of(work)).until("end")
    types = [type for type, _ in events if type not in ("step", "message_start", "chunk")]
    assert types == ["start", "usage", "custom", "end"]
    assert events[-1][1]["error"]["code"] == "chain_error"


@pytest.mark.parametrize("source_of", [as_chain, as_graph])
def test_nothing_is_told_after_the_end(
    ask: Callable[..., Asking],
    gate: threading.Semaphore,
    source_of: Callable[[Callable[[str], str]], Source],
) -> None:
    threads: list[threading.Thread] = []

    def late() -> None:
        gate.acquire()
        dispatch_custom_event("too", "late")

    def work(_: str) -> str:
        threads.append(threading.Thread(target=copy_context().run, args=(late,)))
        threads[0].start()
        return "finished"

    run = ask(source_of(work))
    run.until("end")
    gate.release()
    threads[0].join(10)
    assert not threads[0].is_alive()
    assert "custom" not in [event.type for event in run.events]
    again = run.runs.read(Cursor(run.run, 0))
    assert again is not None
    stored = again.take()
    assert stored is not None
    assert [event.seq for event in stored.events] == [event.seq for event in run.events]
    again.close()


@pytest.mark.parametrize("source_of", [as_chain, as_graph])
def test_a_chain_that_was_stopped_finds_out_when_it_tells_something(
    ask: Callable[..., Asking],
    gate: threading.Semaphore,
    source_of: Callable[[Callable[[str], str]], Source],
) -> None:
    went_on, left = threading.Event(), threading.Event()

    def work(_: str) -> str:
        try:
            dispatch_custom_event("before", None)
            gate.acquire()
            dispatch_custom_event("after", None)
            went_on.set()
        finally:
            left.set()
        return ""

    run = ask(source_of(work))
    run.until("custom")
    assert run.runs.cancel(run.run, 10, "").status == "cancelled"
    gate.release()
    assert left.wait(10)
    assert not went_on.is_set()
    told = [data["name"] for type, data in run.until("end") if type == "custom"]
    assert told == ["before"]


def test_a_source_that_nobody_runs_tells_all_of_it_as_well() -> None:
    def work(_: str) -> AIMessage:
        dispatch_custom_event("found", 3)
        return AIMessage("finished")

    said = list(LangChainSource(RunnableLambda(work)).stream(ASKED))
    assert sorted(type for type, _ in said) == ["chunk", "custom", "message_start"]


# On gunicorn, in greenlets


def served() -> Flask:
    """An app of chains that take a second and a half, and tell of it every quarter of a second."""
    app = Flask(__name__)
    app.config.from_prefixed_env()
    stream = FlaskStream(app)

    def work(_: Any) -> str:
        for number in range(6):
            dispatch_custom_event("progress", {"done": number})
            time.sleep(0.25)
        return "finished"

    stream.add("chain", RunnableLambda(work))
    stream.add("branches", RunnableParallel(one=RunnableLambda(work), other=RunnableLambda(work)))
    stream.add("graph", graph(work, work))
    return app


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    env = environment(silence_timeout=0.8, first_token_timeout=0.8)
    with Server(gunicorn(app="tests.test_progress:served()"), env) as server:
        yield server


@pytest.mark.parametrize("chain", ["chain", "branches", "graph"])
def test_greenlets_tell_while_they_are_at_work(server: Server, chain: str) -> None:
    seen: list[tuple[float, Any]] = []
    with Stream(f"{server.url}/stream_{chain}?question=Why") as stream:
        for event in stream.events(20):
            seen.append((time.monotonic(), json.loads(event.data) | {"type": event.type}))
    assert seen[-1][1]["status"] == "done"
    told = [(at, data) for at, data in seen if data.get("name") == "progress"]
    assert len(told) == 6 if chain == "chain" else 12
    assert seen[-1][0] - told[0][0] > 1  # the first one long before the last
