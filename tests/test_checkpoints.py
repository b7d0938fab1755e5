"""Where graphs keep their state: in memory, SQLite, PostgreSQL, Valkey and Redis, all alike."""

from __future__ import annotations

import contextlib
import enum
import json
import operator
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypedDict

import psycopg
import pytest
import redis
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langgraph.channels import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from flask_stream.checkpoints import sqlite as checkpoints_sqlite
from flask_stream.checkpoints.allowed_types import with_types_of
from flask_stream.checkpoints.lazy import LazySaver
from flask_stream.concurrency import tasks
from flask_stream.errors import ConfigError, StoreError
from flask_stream.events import new_id
from flask_stream.registry import open_checkpoints
from flask_stream.sources.base import Input
from flask_stream.sources.langgraph import LangGraphSource

from . import postgres, valkey
from .postgres import Postgres
from .server import ROOT
from .valkey import Valkey

needs_postgres = pytest.mark.skipif(postgres.binaries() is None, reason="needs postgresql")
needs_redis = pytest.mark.skipif(not shutil.which("redis-server"), reason="needs redis-server")
SHARED = ["sqlite", pytest.param("postgres", marks=needs_postgres), "valkey"]
REDIS = pytest.param("redis", marks=needs_redis)

#: Processes that start together, and how often each asks.
WORKERS, ROUNDS = 8, 10
#: What another process says once it is in the middle of something.
READY = "ready\n"


# Graphs


def conversation(saver: BaseCheckpointSaver[Any]) -> Any:
    """Answers each question with how many messages there were before it."""

    def answer(state: MessagesState) -> dict[str, Any]:
        asked = state["messages"]
        return {"messages": [AIMessage(f"{asked[-1].text}: {len(asked) - 1}")]}

    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    return graph.compile(checkpointer=saver)


def careful(saver: BaseCheckpointSaver[Any]) -> Any:
    """Asks a person, in a subgraph."""

    def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(f"{interrupt({'sure': True})}, then")]}

    inner = StateGraph(MessagesState)
    inner.add_node("ask", ask)
    inner.add_edge(START, "ask")
    graph = StateGraph(MessagesState)
    graph.add_node("inner", inner.compile())
    graph.add_edge(START, "inner")
    return graph.compile(checkpointer=saver)


class Done(TypedDict):
    """Which nodes have run."""

    done: Annotated[list[str], operator.add]


def long(saver: BaseCheckpointSaver[Any], file: Path) -> Any:
    """First, then left beside right, then last; each adds its name to the file. Right hangs once.

    Where the file has its name already, it does not.
    """

    def node(name: str) -> Any:
        def work(state: Done) -> Done:
            hangs = name == "right" and "right" not in file.read_text()
            with file.open("a") as written:
                written.write(f"{name}\n")
            if hangs:
                time.sleep(600)
            return {"done": [name]}

        return work

    graph = StateGraph(Done)
    for name in ("first", "left", "right", "last"):
        graph.add_node(name, node(name))
    graph.add_edge(START, "first")
    graph.add_edge("first", "left")
    graph.add_edge("first", "right")
    graph.add_edge(["left", "right"], "last")
    return graph.compile(checkpointer=saver)


def of(thread: str, run: str | None = None, **more: str) -> RunnableConfig:
    config: RunnableConfig = {"configurable": {"thread_id": thread, **more}}
    return config | {"metadata": {"flask_stream_run": run}} if run else config


def ask(saver: BaseCheckpointSaver[Any], config: RunnableConfig, question: str) -> list[str]:
    """All messages of the conversation after the question."""
    asked = {"messages": [("user", question)]}
    said = conversation(saver).invoke(asked, config, durability="sync")
    return [message.text for message in said["messages"]]


# What another process does


def do_ask(saver: LazySaver, thread: str, question: str) -> object:
    return ask(saver, of(thread), question)


def do_interrupt(saver: LazySaver, thread: str) -> object:
    return len(careful(saver).invoke({"messages": [("user", "go")]}, of(thread))["__interrupt__"])


def do_work(saver: LazySaver, thread: str, file: str) -> object:
    return long(saver, Path(file)).invoke({"done": []}, of(thread), durability="sync")["done"]


def do_many(saver: LazySaver, prefix: str) -> object:
    return many(saver, prefix)


def until_it_is_held(saver: LazySaver) -> None:
    saver.get_tuple(of("any"))
    say_ready()
    sys.stdin.readline()


def say_ready() -> None:
    sys.stdout.write(READY)
    sys.stdout.flush()


def do_tick(saver: LazySaver, thread: str) -> object:
    """Wait for the server, and count meanwhile; say so when it was possible."""
    until_it_is_held(saver)
    over = threading.Event()

    def count() -> None:
        for _ in range(20):
            time.sleep(0.01)
        if not over.is_set():
            say_ready()

    counting = threading.Thread(target=count)
    counting.start()
    ask(saver, of(thread), "after you")
    over.set()
    counting.join()
    return True


def do_stop(saver: LazySaver, thread: str) -> object:
    """Be stopped while the server does not answer, and go on with the same connection."""
    until_it_is_held(saver)
    task = tasks.start_task(lambda: [ask(saver, of(thread), "stopped")], "asked")  # type: ignore[arg-type]
    time.sleep(0.1)  # it waits by then: it cannot get further
    task.interrupt()
    say_ready()
    assert task.join(20)
    with ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(ask, saver, of(new_id()), "one") for _ in range(20)]
    return [each.result() for each in asked] == [["one", "one: 0"]] * 20


def do_start(saver: LazySaver, thread: str) -> object:
    """Fork, and ask in all processes at once; whether each has answered."""
    children = []
    for number in range(WORKERS):
        child = os.fork()
        if not child:
            asked_after_fork(saver, f"{thread}-{number}")
        children.append(child)
    return [os.waitpid(child, 0)[1] for child in children] == [0] * WORKERS


def do_fork(saver: LazySaver, thread: str) -> object:
    """Use it, fork, and use it in both at once."""
    ask(saver, of(thread), "one")
    child = os.fork()
    if not child:
        asked_after_fork(saver, f"{thread}-0")
    for _ in range(ROUNDS):
        ask(saver, of(thread), "one")
    return os.waitpid(child, 0)[1] == 0


def asked_after_fork(saver: LazySaver, thread: str) -> NoReturn:
    status = 1
    try:
        for _ in range(ROUNDS):
            ask(saver, of(thread), "one")
        saver.close()
        status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def other(what: str, url: str, folder: Path, *words: str, gevent: bool = False) -> Any:
    """Another process, that does something with the same checkpoints."""
    patch = "from gevent import monkey; monkey.patch_all(); " if gevent else ""
    line = f"{patch}import sys; from tests.test_checkpoints import main; main(*sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", line, what, url, str(folder), *words],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def result(process: Any) -> Any:
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return json.loads(out.splitlines()[-1])


def many(saver: LazySaver, prefix: str) -> object:
    """Fifty conversations at once, of three questions each; whether each was kept to itself."""

    def talk(number: int) -> bool:
        for question in ("a", "b", "c"):
            said = ask(saver, of(f"{prefix}-{number}"), f"{question}{number}")
        return said == [
            *(f"a{number}", f"a{number}: 0", f"b{number}", f"b{number}: 2"),
            *(f"c{number}", f"c{number}: 4"),
        ]

    with ThreadPoolExecutor(50) as pool:
        return sum(pool.map(talk, range(50)))


# Servers


@pytest.fixture(scope="module")
def servers() -> Iterator[Callable[[str], Any]]:
    """The server of a kind, started when it is first wanted."""
    with contextlib.ExitStack() as stack:
        started: dict[str, Any] = {}

        def start(kind: str) -> Any:
            if kind not in started:
                with pytest.MonkeyPatch.context() as patch:
                    if kind == "redis":
                        patch.setattr(valkey, "binary", lambda: shutil.which("redis-server"))
                    server = Postgres() if kind == "postgres" else Valkey(appendonly=True)
                started[kind] = stack.enter_context(server)
            return started[kind]

        yield start


@pytest.fixture(params=SHARED)
def shared(request: pytest.FixtureRequest, servers: Callable[[str], Any]) -> str:
    """The URL of checkpoints that several processes can have."""
    kind: str = request.param
    return "sqlite:///kept/checkpoints.db" if kind == "sqlite" else servers(kind).url


@pytest.fixture(params=["memory", *SHARED, REDIS])
def url(request: pytest.FixtureRequest, servers: Callable[[str], Any]) -> str:
    kind: str = request.param
    if kind == "memory":
        return "memory://"
    return "sqlite:///kept/checkpoints.db" if kind == "sqlite" else servers(kind).url


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[str], LazySaver]]:
    """Opens checkpoints, and closes them after the test."""
    with contextlib.ExitStack() as stack:

        def open(url: str) -> LazySaver:
            saver = open_checkpoints(url, str(tmp_path))
            assert isinstance(saver, LazySaver)
            stack.callback(saver.close)
            return saver

        yield open


@pytest.fixture
def saver(url: str, opened: Callable[[str], LazySaver]) -> LazySaver:
    return opened(url)


# The contract


def seen(found: CheckpointTuple | None) -> Any:
    """What is said of a checkpoint, without what a saver may add of its own."""
    if found is None:
        return None
    return (
        {name: found.config["configurable"][name] for name in _CONFIG},
        found.checkpoint,
        found.metadata,
        found.parent_config,
        found.pending_writes,
    )


_CONFIG = ("thread_id", "checkpoint_ns", "checkpoint_id")


def checkpoint(**values: Any) -> Any:
    versions = {name: f"{number:032}.1" for number, name in enumerate(values)}
    return empty_checkpoint() | {"channel_values": values, "channel_versions": versions}


def filled(saver: BaseCheckpointSaver[Any], threads: list[str]) -> list[RunnableConfig]:
    """The places of what the contract's tests look at: a tree, a namespace, another thread."""
    one, two = threads
    ids = iter(_IDS)

    def put(config: RunnableConfig, about: dict[str, Any], **values: Any) -> RunnableConfig:
        stored = checkpoint(**values) | {"id": next(ids), "ts": "now"}
        versions = {name: stored["channel_versions"][name] for name in values}
        return saver.put(config, stored, about, versions)  # type: ignore[arg-type]

    root = put(of(one, checkpoint_ns=""), {"step": -1, "source": "input"})
    left = put(root, {"step": 0, "run": "left", "parents": {}}, words=["ä\0\n", 1], none=None)
    right = put(root, {"step": 0, "run": "right", "deep": {"a": [1]}}, data=b"\xff\n\0")
    inner = put(of(one, checkpoint_ns="a:1|b:2"), {"step": 0, "run": "left"}, words="inner")
    beside = put(of(one, checkpoint_ns="a"), {"step": 0}, words="beside")
    elsewhere = put(of(two, checkpoint_ns=""), {"step": 0, "run": "left"}, words="else")
    saver.put_writes(left, [("words", ["b"]), ("other", {"x": 1})], "task-b", "~2")
    saver.put_writes(left, [("words", ["a"])], "task-z", "~1")
    saver.put_writes(left, [("words", ["once"]), ("other", "once")], "task-b", "~2")
    for answer in ("first", "last"):
        saver.put_writes(left, [("__resume__", answer)], "task-b")
    saver.put_writes(left, [("__error__", "oh"), ("words", ["late"])], "task-y")
    saver.put_writes(inner, [("words", None)], "task-a")
    return [root, left, right, inner, beside, elsewhere]


_IDS = [f"1f0b5e3e-0000-6000-8000-00000000000{number}" for number in range(6)]


@pytest.fixture
def both(saver: LazySaver) -> Any:
    """The saver and LangGraph's reference, both filled, and their places."""
    threads = [new_id(), new_id()]
    reference = InMemorySaver()
    return saver, reference, filled(reference, threads), filled(saver, threads)


def test_a_checkpoint_comes_back_as_it_was_put(both: Any) -> None:
    saver, reference, places, same = both
    assert places == same
    for place in places:
        assert seen(saver.get_tuple(place)) == seen(reference.get_tuple(place))
        configurable = place["configurable"]
        newest = of(configurable["thread_id"], checkpoint_ns=configurable["checkpoint_ns"])
        assert seen(saver.get_tuple(newest)) == seen(reference.get_tuple(newest))
    thread = places[0]["configurable"]["thread_id"]
    for nowhere in (of(new_id()), of(thread, checkpoint_id="1f"), of(thread, checkpoint_ns="a:")):
        assert saver.get_tuple(nowhere) is None


@pytest.mark.parametrize("filter", [None, {}, {"run": "left"}, {"step": 0, "run": "left"}])
@pytest.mark.parametrize("limit", [None, 0, 1, 2])
def test_checkpoints_are_listed_as_the_reference_lists_them(
    both: Any, filter: dict[str, Any] | None, limit: int | None
) -> None:
    saver, reference, places, _ = both
    thread = places[0]["configurable"]["thread_id"]
    for asked in (of(thread, checkpoint_ns=""), of(thread, checkpoint_ns="a"), of(new_id())):
        for before in (None, *places[:3]):
            options: Any = {"filter": filter, "before": before, "limit": limit}
            found = [seen(each) for each in saver.list(asked, **options)]
            assert found == [seen(each) for each in reference.list(asked, **options)]
    assert [each.config for each in saver.list(places[1])] == [places[1]]


def test_a_thread_is_listed_with_all_namespaces_and_all_threads_are(both: Any) -> None:
    saver, _, places, _ = both
    threads = [places[0]["configurable"]["thread_id"], places[-1]["configurable"]["thread_id"]]
    # In which order those of several namespaces come, LangGraph's own savers do not agree.
    found = sorted((each.config for each in saver.list(of(threads[0]))), key=_id_of)
    assert found == places[:-1]
    everywhere = [each.config for each in saver.list(None, filter={"run": "left"})]
    mine = [each for each in everywhere if each["configurable"]["thread_id"] in threads]
    assert sorted(mine, key=_id_of) == [places[1], places[3], places[5]]


def _id_of(place: RunnableConfig) -> str:
    id: str = place["configurable"]["checkpoint_id"]
    return id


@pytest.mark.parametrize("name", ["none", {"a": 1}, [1, 2], True, 1.5])
def test_metadata_is_compared_as_it_was_put(saver: LazySaver, name: Any) -> None:
    thread = new_id()
    at = of(thread, checkpoint_ns="")
    about: Any = {"step": 0, "other": name}
    kept = saver.put(at, checkpoint(), about, {})
    about = {"step": 0, "other": "x"}
    saver.put(at, checkpoint(), about, {})
    assert [each.config for each in saver.list(at, filter={"other": name})] == [kept]


def test_a_long_thread_is_searched_to_its_end(saver: LazySaver) -> None:
    at = of(new_id(), checkpoint_ns="")
    first = saver.put(at, checkpoint(), {"step": 0, "run_id": "first"}, {})
    for step in range(230):
        saver.put(at, checkpoint(), {"step": step, "run_id": "later"}, {})
    found = [*saver.list(at, filter={"run_id": "first"}, limit=1)]
    assert [each.config for each in found] == [first]
    assert len([*saver.list(at, filter={"run_id": "later"})]) == 230
    assert [*saver.list(at, filter={"run_id": "nobody"}, limit=1)] == []


def test_a_removed_thread_leaves_nothing_and_no_other_is_touched(saver: LazySaver) -> None:
    prefix = new_id()
    kept = [filled(saver, [f"{prefix}{end}", new_id()])[0] for end in (":1", "\\*", "*")]
    gone = filled(saver, [prefix, new_id()])[0]
    saver.delete_thread(prefix)
    assert saver.get_tuple(gone) is None
    assert [*saver.list(of(prefix))] == []
    for each in kept:
        assert len([*saver.list(of(each["configurable"]["thread_id"]))]) == 5
    # Who had that thread before says nothing of who has it now.
    again = filled(saver, [prefix, new_id()])[1]
    found = saver.get_tuple(again)
    assert found is not None
    assert len(found.pending_writes or []) == 6
    saver.delete_thread("never there")


def test_removing_leaves_no_rows_and_no_keys(
    shared: str, opened: Callable[[str], LazySaver], tmp_path: Path
) -> None:
    saver = opened(shared)
    thread = "to-be-removed"
    filled(saver, [thread, new_id()])
    assert places_of(shared, tmp_path, thread) >= 3
    saver.delete_thread(thread)
    assert places_of(shared, tmp_path, thread) == 0


def places_of(url: str, folder: Path, thread: str) -> int:
    """How many rows or keys there are of a thread."""
    if url.startswith("redis"):
        with redis.Redis.from_url(url) as client:
            return len([*client.scan_iter(f"*{thread}*")])
    tables = ["checkpoints", "writes"]
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(folder / "kept/checkpoints.db")) as file:
            query = "SELECT count(*) FROM {} WHERE thread_id = ?"
            return sum(file.execute(query.format(each), (thread,)).fetchone()[0] for each in tables)
    tables = ["checkpoints", "checkpoint_blobs", "checkpoint_writes"]
    with psycopg.connect(url) as connection:
        query = "SELECT count(*) FROM {} WHERE thread_id = %s"
        asked = [connection.execute(query.format(each), (thread,)).fetchone() for each in tables]
        return sum(row[0] for row in asked if row)


# Graphs on them


def test_a_conversation_goes_on_in_another_process(
    shared: str, opened: Callable[[str], LazySaver], tmp_path: Path
) -> None:
    thread = new_id()
    said = result(other("ask", shared, tmp_path, thread, "one"))
    assert said == ["one", "one: 0"]
    said = ask(opened(shared), of(thread), "two")
    assert said == ["one", "one: 0", "two", "two: 2"]
    said = result(other("ask", shared, tmp_path, thread, "three", gevent=True))
    assert said[2:] == ["two", "two: 2", "three", "three: 4"]


def test_a_run_is_found_by_its_metadata_and_forked(saver: LazySaver) -> None:
    thread = new_id()
    for run in ("one", "two"):
        ask(saver, of(thread, run), run)
    found = next(saver.list(of(thread, checkpoint_ns=""), filter={_RUN: "one"}, limit=1))
    at = found.config["configurable"]["checkpoint_id"]
    said = ask(saver, of(thread, "edited", checkpoint_id=at), "edited")
    assert said == ["one", "one: 0", "edited", "edited: 2"]
    left = next(saver.list(of(thread, checkpoint_ns=""), filter={_RUN: "two"}, limit=1))
    texts = [message.text for message in left.checkpoint["channel_values"]["messages"]]
    assert texts == ["one", "one: 0", "two", "two: 2"]
    newest = saver.get_tuple(of(thread))
    assert newest is not None
    assert newest.metadata.get(_RUN) == "edited"


_RUN = "flask_stream_run"


def test_a_question_to_a_person_is_answered_in_another_process(
    shared: str, opened: Callable[[str], LazySaver], tmp_path: Path
) -> None:
    thread = new_id()
    assert result(other("interrupt", shared, tmp_path, thread)) == 1
    graph = careful(opened(shared))
    state = graph.get_state(of(thread))
    assert [each.value for each in state.interrupts] == [{"sure": True}]
    said = graph.invoke(Command(resume="yes"), of(thread))["messages"]
    assert [message.text for message in said] == ["go", "yes, then"]


def test_finished_nodes_of_a_killed_process_are_not_run_again(
    shared: str, opened: Callable[[str], LazySaver], tmp_path: Path
) -> None:
    saver, thread, file = opened(shared), new_id(), tmp_path / "ran"
    file.touch()
    process = other("work", shared, tmp_path, thread, str(file))
    until = time.monotonic() + 60
    while True:
        # What left has done is stored while right still works.
        there = saver.get_tuple(of(thread))
        writes = (there.pending_writes or []) if there else []
        if ("done", ["left"]) in [(name, value) for _, name, value in writes]:
            break
        assert time.monotonic() < until, writes
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    while "right" not in file.read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = long(saver, file).invoke(None, of(thread), durability="sync")["done"]
    assert done == ["first", "left", "right", "last"]
    ran = file.read_text().split()
    assert sorted(ran) == sorted(["first", "left", "right", "right", "last"])


@pytest.mark.parametrize("gevent", [False, True], ids=["threads", "gevent"])
def test_fifty_conversations_at_once(shared: str, tmp_path: Path, gevent: bool) -> None:
    assert result(other("many", shared, tmp_path, new_id(), gevent=gevent)) == 50


def test_fifty_conversations_at_once_in_memory(opened: Callable[[str], LazySaver]) -> None:
    assert many(opened("memory://"), new_id()) == 50


def test_a_channel_of_differences_is_put_together_again(saver: LazySaver) -> None:
    class Log(TypedDict):
        lines: Annotated[list[str], DeltaChannel(_joined, snapshot_frequency=3)]

    def graph(saver: BaseCheckpointSaver[Any]) -> Any:
        graph = StateGraph(Log)
        for name in ("left", "right"):
            graph.add_node(name, lambda state, name=name: {"lines": [f"{name} {len(state)}"]})
            graph.add_edge(START, name)
        return graph.compile(checkpointer=saver)

    thread, expected = of(new_id()), []
    for turn in range(8):
        expected += [f"turn {turn}", "left 1", "right 1"]
        assert graph(saver).invoke({"lines": [f"turn {turn}"]}, thread)["lines"] == expected
        assert graph(saver).get_state(thread).values["lines"] == expected
    found = [*graph(saver).get_state_history(thread)]
    assert found[8].values["lines"] == expected[: len(found[8].values["lines"])]
    reference = InMemorySaver()
    for turn in range(8):
        graph(reference).invoke({"lines": [f"turn {turn}"]}, thread)
    told = saver.get_delta_channel_history(config=thread, channels=["lines"])["lines"]
    model = reference.get_delta_channel_history(config=thread, channels=["lines"])["lines"]
    assert [write[1:] for write in told["writes"]] == [write[1:] for write in model["writes"]]
    assert told.get("seed") == model.get("seed")


def _joined(state: list[str], writes: list[list[str]]) -> list[str]:
    return [*state, *(line for write in writes for line in write)]


# Through a source


@dataclass
class Note:
    """A type of the graph's own."""

    text: str


class State(MessagesState):
    note: Note


def count(state: State) -> dict[str, Any]:
    return {"messages": [AIMessage(f"{len(state['messages'])} so far")], "note": Note("kept")}


def decide(state: State) -> dict[str, Any]:
    asked = state["messages"][-2].content
    answer = interrupt("Really?") if asked == "ask" else "nothing"
    return {"messages": [AIMessage(f"{answer}, {state['note'].text}")]}


builder = StateGraph(State)
builder.add_node("count", count)
builder.add_node("decide", decide)
builder.add_edge(START, "count")
builder.add_edge("count", "decide")
graph = builder.compile()


def source(saver: BaseCheckpointSaver[Any]) -> LangGraphSource:
    return LangGraphSource(graph, checkpointer=with_types_of(saver, graph))


def chunks(source: LangGraphSource, run: str, text: str, **more: Any) -> list[str]:
    """What a run says; its thread is what its id begins with."""
    input = Input({"question": text}, run=run, thread=run[:32], **more)
    events = [(type, json.loads(data)) for type, data in source.stream(input)]
    return [data["content"] for type, data in events if type == "chunk"]


def test_a_source_goes_on_where_another_has_left_its_thread(
    shared: str, opened: Callable[[str], LazySaver]
) -> None:
    a, b, c, d = (f"{thread}{end}" for thread in [new_id()] for end in "abcd")
    assert chunks(source(opened(shared)), a, "hi") == ["1 so far", "nothing, kept"]
    later = source(opened(shared))
    assert chunks(later, b, "more", parent=a)[0] == "4 so far"
    # Asked again after the same run: a fork, which does not know of the other branch.
    assert chunks(later, c, "other", parent=a)[0] == "4 so far"
    # And a question that follows nobody begins anew.
    assert chunks(later, d, "new")[0] == "1 so far"


def test_a_source_is_answered_what_another_has_asked(
    shared: str, opened: Callable[[str], LazySaver]
) -> None:
    thread = new_id()
    assert chunks(source(opened(shared)), f"{thread}a", "ask") == ["1 so far"]
    again = source(opened(shared))
    said = chunks(again, f"{thread}b", "", parent=f"{thread}a", resume="yes")
    assert said == ["yes, kept"]


def test_what_a_source_forgets_is_gone(shared: str, opened: Callable[[str], LazySaver]) -> None:
    thread = new_id()
    first = source(opened(shared))
    chunks(first, f"{thread}a", "hi")
    first.forget(thread)
    said = chunks(source(opened(shared)), f"{thread}b", "more", parent=f"{thread}a")
    assert said[0] == "1 so far"


# Types


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Part:
    name: str


class Whole(BaseModel):
    parts: list[Part]
    colour: Colour


class Sent(BaseModel):
    to: str


@dataclass
class Odd:
    """What it is made of cannot be told."""


Odd.__annotations__["it"] = "NotHere"


@dataclass
class Tree:
    branches: list[Tree]
    odd: Odd | None = None


class Made(TypedDict, total=False):
    """A state of one's own types."""

    whole: Whole
    parts: dict[str, list[Part]]
    colour: Colour | None
    anything: Any


def made(saver: BaseCheckpointSaver[Any]) -> Any:
    def make(state: Made) -> Made:
        part = Part("wheel")
        return {
            "whole": Whole(parts=[part], colour=Colour.RED),
            "parts": {"all": [part]},
            "colour": Colour.RED,
            "anything": Unnamed("x"),
        }

    inner = StateGraph(Made)
    inner.add_node("make", make)
    inner.add_edge(START, "make")
    graph = StateGraph(MessagesState)
    graph.add_node("inner", inner.compile(checkpointer=True))
    graph.add_edge(START, "inner")
    return inner.compile(checkpointer=saver)


@dataclass
class Unnamed:
    name: str

    def __post_init__(self) -> None:
        ran.append(self.name)


ran: list[str] = []


def test_types_that_a_graph_declares_come_back_and_no_others(saver: LazySaver) -> None:
    thread = of(new_id())
    made(saver).invoke({}, thread)
    ran.clear()
    plain = made(saver).get_state(thread).values
    assert plain["parts"] == {"all": [{"name": "wheel"}]}
    assert plain["colour"] == "red"
    values = made(with_types_of(saver, made(saver))).get_state(thread).values
    assert values["whole"] == Whole(parts=[Part("wheel")], colour=Colour.RED)
    assert values["parts"] == {"all": [Part("wheel")]}
    assert values["colour"] is Colour.RED
    assert values["anything"] == {"name": "x"}
    assert ran == []
    assert made(saver).get_state(thread).values == plain  # the saver itself is as strict as before


def test_types_of_subgraphs_and_nodes_are_declared_too() -> None:
    inner = StateGraph(Made)
    inner.add_node("make", lambda state: {})
    inner.add_edge(START, "make")
    graph = StateGraph(MessagesState)
    graph.add_node("inner", inner.compile())
    graph.add_node("sent", lambda state: {}, input_schema=Sent)
    graph.add_node("odd", lambda state: {}, input_schema=Tree)
    for name in ("inner", "sent", "odd"):
        graph.add_edge(START, name)
    saver = with_types_of(open_checkpoints("memory://", "") or InMemorySaver(), graph.compile())
    for value in (Part("x"), Colour.RED, Sent(to="you"), Odd(), Tree([Tree([])])):
        assert saver.serde.loads_typed(saver.serde.dumps_typed(value)) == value
    packed = JsonPlusSerializer().dumps_typed(Unnamed("x"))
    assert saver.serde.loads_typed(packed) == {"name": "x"}


def test_nothing_is_pickled_and_no_pickle_is_read(saver: LazySaver) -> None:
    at = of(new_id(), checkpoint_ns="")
    with pytest.raises(TypeError):
        saver.put(at, checkpoint(x=threading.Lock()), {"step": 0}, {"x": "1.1"})
    assert saver.get_tuple(at) is None
    with pytest.raises(NotImplementedError):
        saver.serde.loads_typed(("pickle", b""))


def test_a_foreign_type_in_the_database_runs_no_code(
    shared: str, opened: Callable[[str], LazySaver]
) -> None:
    saver, at = opened(shared), of(new_id(), checkpoint_ns="")
    stored = saver.put(at, checkpoint(), {"step": 0}, {})
    saver.put_writes(stored, [("x", Unnamed("evil"))], "task")
    ran.clear()
    found = saver.get_tuple(at)
    assert found is not None
    assert found.pending_writes == [("task", "x", {"name": "evil"})]
    assert ran == []


# Connections


def test_workers_that_start_together_make_the_tables_once(
    shared: str, tmp_path: Path, opened: Callable[[str], LazySaver]
) -> None:
    url = shared
    if url.startswith("postgres"):
        name = f"new_{new_id()}"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        url = url.removesuffix("/postgres") + f"/{name}"
    thread = new_id()
    assert result(other("start", url, tmp_path, thread)) is True
    saver = opened(url)
    for number in range(WORKERS):
        assert count_of(saver, f"{thread}-{number}") == 2 * ROUNDS


def test_no_connection_is_carried_through_a_fork(
    shared: str, tmp_path: Path, opened: Callable[[str], LazySaver]
) -> None:
    thread = new_id()
    assert result(other("fork", shared, tmp_path, thread)) is True
    saver = opened(shared)
    assert count_of(saver, thread) == 2 * ROUNDS + 2
    assert count_of(saver, f"{thread}-0") == 2 * ROUNDS


def count_of(saver: LazySaver, thread: str) -> int:
    """How many messages a conversation has."""
    found = saver.get_tuple(of(thread))
    assert found is not None
    return len(found.checkpoint["channel_values"]["messages"])


@contextlib.contextmanager
def held(url: str, folder: Path, server: Any) -> Iterator[None]:
    """Checkpoints that answer nobody else meanwhile."""
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(folder / "kept/checkpoints.db")) as file:
            file.execute("BEGIN IMMEDIATE")
            yield
    elif url.startswith("redis"):
        server.pause()
        yield
        server.resume()
    else:
        with psycopg.connect(url) as connection:
            connection.execute("LOCK TABLE checkpoints")
            yield


@pytest.mark.parametrize("what", ["tick", "stop"])
def test_others_go_on_while_the_server_is_waited_for(
    shared: str,
    tmp_path: Path,
    servers: Callable[[str], Any],
    request: pytest.FixtureRequest,
    what: str,
) -> None:
    kind = request.node.callspec.params["shared"]
    server = None if kind == "sqlite" else servers(kind)
    process = other(what, shared, tmp_path, new_id(), gevent=True)
    assert process.stdout.readline() == READY
    with held(shared, tmp_path, server):
        process.stdin.write("held\n")
        process.stdin.flush()
        said = process.stdout.readline()
    assert said == READY, process.communicate()
    assert result(process) is True


def test_a_server_that_was_restarted_is_found_again(
    servers: Callable[[str], Any], opened: Callable[[str], LazySaver], restarted: str
) -> None:
    server, thread = servers(restarted), new_id()
    saver = opened(server.url)
    with ThreadPoolExecutor(8) as pool:  # so that there is more than one connection to lose
        [*pool.map(lambda n: ask(saver, of(f"{thread}-{n}"), "one"), range(8))]
    server.restart()
    assert ask(saver, of(f"{thread}-0"), "two") == ["one", "one: 0", "two", "two: 2"]


@pytest.fixture(params=[*SHARED[1:], REDIS])
def restarted(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@needs_postgres
def test_a_server_that_is_gone_is_an_error_without_its_password(
    servers: Callable[[str], Any], opened: Callable[[str], LazySaver]
) -> None:
    server = servers("postgres")
    for url, stopped in ((server.url, True), (server.url.replace("se%3A", "wrong"), False)):
        saver = opened(url)
        if stopped:
            server.halt()
        try:
            with pytest.raises(StoreError) as caught:
                saver.get_tuple(of("x"))
        finally:
            if stopped:
                server.start()
        text = "".join(traceback.format_exception(caught.value))
        assert "cret" not in text


def test_what_is_closed_stays_closed_and_leaves_no_connection(
    url: str, servers: Callable[[str], Any], opened: Callable[[str], LazySaver]
) -> None:
    saver = opened(url)
    ask(saver, of(new_id()), "one")
    saver.close()
    saver.close()
    with pytest.raises(RuntimeError, match="closed"):
        saver.get_tuple(of("x"))
    if url.startswith("redis"):
        with redis.Redis.from_url(url) as client:
            assert len(client.client_list()) == 1
    elif url.startswith("postgres"):
        with psycopg.connect(url) as connection:
            query = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            until = time.monotonic() + 10  # a backend ends a little after its connection
            while connection.execute(query).fetchone() != (1,):
                assert time.monotonic() < until
                time.sleep(0.02)


def test_a_copy_shares_the_connection(saver: LazySaver) -> None:
    thread = new_id()
    ask(saver, of(thread), "one")
    copy = with_types_of(saver, made(saver))
    assert copy is not saver
    assert ask(copy, of(thread), "two") == ["one", "one: 0", "two", "two: 2"]
    copy.close()  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError):
        saver.get_tuple(of(thread))


# Redis


def test_a_url_that_wants_text_is_answered_all_the_same(
    servers: Callable[[str], Any], opened: Callable[[str], LazySaver]
) -> None:
    saver, thread = opened(f"{servers('valkey').url}?decode_responses=True"), new_id()
    assert ask(saver, of(thread), "one") == ["one", "one: 0"]
    assert ask(saver, of(thread), "two") == ["one", "one: 0", "two", "two: 2"]


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-lru", "noeviction"])
def test_a_server_that_would_drop_checkpoints_is_told_at_start(
    opened: Callable[[str], LazySaver], policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Valkey(maxmemory="100mb", maxmemory_policy=policy) as server:
        if policy == "allkeys-lru":
            with pytest.raises(ConfigError, match=r"allkeys-lru deletes .* noeviction") as caught:
                opened(server.url)
            assert caught.value.setting == "STREAM_CHECKPOINTS"
        else:
            # No checkpoint has a time to live.
            ask(opened(server.url), of(new_id()), "one")
        assert not caplog.messages
        with redis.Redis.from_url(server.url) as admin:
            admin.config_set("maxmemory", 0)
            opened(server.url)
        told = "STREAM_CHECKPOINTS" in caplog.text and "allkeys-lru" in caplog.text
        assert told == (policy == "allkeys-lru")


def test_a_redis_that_is_gone_is_an_error_without_its_password(
    opened: Callable[[str], LazySaver],
) -> None:
    with Valkey(requirepass="pa:ssw0rd") as server:
        url = server.url.replace("//", "//:pa%3Assw0rd@")
        saver = opened(url)
        server.halt()
        with pytest.raises(StoreError, match=str(server.port)) as gone:
            saver.get_tuple(of("x"))
        server.start()
        assert saver.get_tuple(of("x")) is None
        with pytest.raises(ConfigError, match="which does not answer") as wrong:
            opened(url.replace("pa%3A", "wrong"))
        assert wrong.value.setting == "STREAM_CHECKPOINTS"
        for error in (gone.value, wrong.value):
            assert "ssw0rd" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("url", ["redis://:s3cret@127.0.0.1:1/0", "unix://:s3cret@/no/such.sock"])
def test_a_server_that_is_not_there_is_told_at_start(url: str) -> None:
    with pytest.raises(ConfigError, match="which does not answer") as caught:
        open_checkpoints(url, "")
    assert caught.value.setting == "STREAM_CHECKPOINTS"
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_a_server_that_became_a_replica_is_left_for_the_one_that_is_not(
    opened: Callable[[str], LazySaver],
) -> None:
    with Valkey() as server, Valkey() as primary, redis.Redis.from_url(server.url) as admin:
        saver, thread = opened(server.url), new_id()
        ask(saver, of(thread), "one")
        admin.replicaof("127.0.0.1", primary.port)
        with pytest.raises(StoreError, match=r"(?i)read only|MASTERDOWN"):
            ask(saver, of(thread), "two")
        admin.replicaof("NO", "ONE")
        assert ask(saver, of(thread), "three")[-1].startswith("three: ")


# SQLite


def test_a_file_is_made_for_this_user_alone(
    tmp_path: Path, opened: Callable[[str], LazySaver]
) -> None:
    ask(opened("sqlite:///kept/checkpoints.db"), of(new_id()), "one")
    folder = tmp_path / "kept"
    assert folder.stat().st_mode & 0o777 == 0o700
    modes = {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}
    assert modes == {f"checkpoints.db{end}": 0o600 for end in ("", "-wal", "-shm")}


@pytest.mark.parametrize("content", [None, b"this is no database at all" * 50])
def test_a_file_that_cannot_be_is_an_error(
    tmp_path: Path, opened: Callable[[str], LazySaver], content: bytes | None
) -> None:
    if content is None:
        (tmp_path / "kept.db").mkdir()
    else:
        (tmp_path / "kept.db").write_bytes(content)
    saver = opened("sqlite:///kept.db")
    for _ in range(2):
        with pytest.raises(StoreError, match=r"kept\.db"):
            saver.get_tuple(of("x"))


def test_a_locked_file_is_waited_for_and_then_an_error(
    tmp_path: Path, opened: Callable[[str], LazySaver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints_sqlite, "BUSY", 0.2)
    saver, thread = opened("sqlite:///kept/checkpoints.db"), new_id()
    ask(saver, of(thread), "one")
    with (
        held("sqlite", tmp_path, None),
        pytest.raises(StoreError, match="locked"),
    ):
        ask(saver, of(thread), "two")
    assert ask(saver, of(thread), "three")[-1].startswith("three: ")


# URLs


@pytest.mark.parametrize(
    "url",
    [
        *("sqlite://", "sqlite:///", "memory://x", "mysql://host", "file", "/path"),
        *("postgres://u:se:cret/@host/db", "postgres://u:secret@host:port/db"),
        *("postgres://u:secret@host/db?nonsense=1", "postgresql://u:secret@[/db"),
        *("redis://:secret@host:port", "redis://:se:cret/x@host", "redis://:secret@host?no=1"),
        *("redis://:secret@host/db", "unix://socket?nonsense=secret", "redis://[:secret"),
    ],
)
def test_a_wrong_url_is_told_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_checkpoints(url, "")
    assert caught.value.setting == "STREAM_CHECKPOINTS"
    assert "cret" not in "".join(traceback.format_exception(caught.value))


def test_no_url_is_no_saver() -> None:
    assert open_checkpoints("", "") is None


@pytest.mark.parametrize(
    ("url", "module", "needed", "extra"),
    [
        ("sqlite:///x", "sqlite", "langgraph.checkpoint.sqlite", "graph"),
        ("postgres://host", "postgres", "langgraph.checkpoint.postgres", "postgres"),
        ("postgres://host", "postgres", "psycopg", "postgres"),
        ("redis://host", "redis", "redis", "redis"),
    ],
)
def test_a_package_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, url: str, module: str, needed: str, extra: str
) -> None:
    monkeypatch.delitem(sys.modules, f"flask_stream.checkpoints.{module}", raising=False)
    monkeypatch.setitem(sys.modules, needed, None)
    with pytest.raises(ConfigError) as caught:
        open_checkpoints(url, "")
    assert caught.value.setting == "STREAM_CHECKPOINTS"
    assert f"pip install 'flask-llm-stream[{extra}]'" in str(caught.value)


def main(what: str, url: str, folder: str, *words: str) -> None:
    saver = open_checkpoints(url, folder)
    assert saver is not None
    said = globals()[f"do_{what}"](saver, *words)
    saver.close()
    print(json.dumps(said))
